"""`hasten tune`."""
