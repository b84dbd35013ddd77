"""SLURM: site profiles, job specs, commands and states; pure of Prefect and of Dask."""
