"""Pictures and pages of what a run made; pure text and PNG bytes."""
