"""What serving a language model costs: tiers of memory, and scaling of answers."""
