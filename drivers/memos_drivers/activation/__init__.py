"""The activation form: KV caches captured from texts, kept as safetensors, attached and composed."""
