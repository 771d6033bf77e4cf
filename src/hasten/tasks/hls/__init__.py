"""High-level synthesis: designs, bugs, rules."""
