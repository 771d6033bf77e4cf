"""Templates of chips: arrays, memories, boards."""
