"""The kernel: decides, records, applies, answers. Runs no model and imports no torch."""

__version__ = "0.1.0"
