"""The OpenAI API: what its requests may hold, and what its answers look like."""
