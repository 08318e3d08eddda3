"""Text embedding in a child process, so that the kernel never imports a model runtime."""
