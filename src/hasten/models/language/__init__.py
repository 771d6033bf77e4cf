"""Language models made of hasten's blocks."""
