"""The driver host: a child process that owns torch, models and device memory, and the kernel's side of it."""
