"""Drivers: what the kernel knows about the payloads of each memory form.

A driver knows texts, vectors and files, never events, sockets or the log. `table.TABLE` maps a form to its driver.
"""
