"""Using a model: a terminal chat and an OpenAI-compatible server, over one engine that runs many requests at once."""
