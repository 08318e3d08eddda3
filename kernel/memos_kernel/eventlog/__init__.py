"""Event logs: one protocol, its guarantees, and the implementations that pass one conformance suite."""
