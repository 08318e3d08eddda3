"""Byte stores: ordered key → value families with atomic batches. `memory` is the reference, `rocks` the real one."""
