"""Programs that speak the socket: the shell, the offline tools, the demonstration, the benchmarks."""
