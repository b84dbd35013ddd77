"""How the service runs somewhere: local bring-up, site profiles."""
