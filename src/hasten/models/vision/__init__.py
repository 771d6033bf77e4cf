"""Vision models made of hasten's blocks."""
