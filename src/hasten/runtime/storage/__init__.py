"""What lies outside the fastest memory: tiers of keys and values, experts, sealed pages and oblivious maps."""
