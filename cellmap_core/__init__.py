"""The library behind the Auto3DSeg service: everything that can be tested without Prefect."""
