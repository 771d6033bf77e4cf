"""Ways to decode: drafts, trees, early exit, chains of layers."""
