"""What a user starts: one thin Prefect flow a file."""
