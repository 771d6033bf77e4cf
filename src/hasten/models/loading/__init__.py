"""Networks out of files: GGUF, safetensors, folders."""
