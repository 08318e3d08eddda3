"""The ABI of the MemOS kernel: table, messages, errors, wire format and limits. No I/O, imports nothing of ours."""
