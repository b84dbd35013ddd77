"""The doctor: each hop between a user, the Prefect server and the jobs, tested before a run."""
