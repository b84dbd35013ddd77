"""Retryable Prefect tasks: thin wraps over cellmap_core, no logic of their own."""
