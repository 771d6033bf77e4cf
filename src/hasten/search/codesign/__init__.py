"""Networks and chips searched together."""
