"""Every bound of the system, in one place, with its unit in its name.

The relations between bounds are asserted at import, so a change that breaks one cannot start.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

ABI: Final = 1
"""The ABI's major number, spoken in `sys_hello`."""

# The wire.
FRAME_BYTES_MAX: Final = 4 * MIB
"""Largest body of one wire frame; a longer length word is `EMSGSIZE` and closes the connection."""
WIRE_VALUES_MIN: Final = 16 * KIB
WIRE_BYTES_PER_VALUE: Final = 8
"""A body of n bytes unpacks to at most WIRE_VALUES_MIN + n / WIRE_BYTES_PER_VALUE values."""
HELLO_BYTES_MAX: Final = 8 * KIB
"""Largest frame before hello was said."""
WIRE_DEPTH_MAX: Final = 24
"""Deepest nesting of arrays and maps that a request may have."""
FDS_PER_FRAME_MAX: Final = 4
INFLIGHT_PER_CONNECTION_MAX: Final = 1024
"""Calls in progress on one connection before the kernel stops reading from it."""
INFLIGHT_BYTES_MAX: Final = 32 * MIB
"""Bytes of requests in progress on one connection before the kernel stops reading from it."""
MAPPED_BYTES_PER_PRINCIPAL_MAX: Final = 4 * GIB
MAPPINGS_MAX: Final = 4096
LONG_PER_CONNECTION_MAX: Final = 32
"""Of those, calls that run as tasks (searches, listings, large contents) and whose replies may be large."""
OUTBOX_BYTES_MAX: Final = 8 * MIB
"""Replies that a slow reader may leave unread before the kernel stops reading its requests."""
CONNECTIONS_MAX: Final = 4096
HELLO_SECONDS_MAX: Final = 30
"""A connection that has not said hello after this long is closed."""

# Contents.
CONTENT_INLINE_BYTES_MAX: Final = 1 * MIB
"""Largest content inside a wire frame; larger content travels as a descriptor."""
CONTENT_BYTES_MAX: Final = 256 * MIB
"""Largest plaintext content of one version."""
PAYLOAD_INLINE_BYTES_MAX: Final = 16 * KIB
"""Payload ciphertext up to this size stands in the record; above, in the payload store."""
PAYLOAD_CHUNK_BYTES: Final = 512 * KIB

# Log.
RECORD_BYTES_MAX: Final = 752 * KIB
FRAME_LOG_BYTES_MAX: Final = 768 * KIB
FRAME_LOG_OVERHEAD_BYTES_MAX: Final = 4 * KIB
CHECKPOINT_RECORDS: Final = 1024
CHECKPOINT_SECONDS: Final = 1
CLOCK_BEHIND_SECONDS_MAX: Final = 3600
CLOCK_AHEAD_SECONDS_MAX: Final = 366 * 86_400

# Names and fields.
NAMESPACE_BYTES_MAX: Final = 512
NAMESPACE_DEPTH_MAX: Final = 16
NAME_CHARS_MAX: Final = 512
TAG_CHARS_MAX: Final = 128
TAGS_MAX: Final = 64
LABELS_MAX: Final = 32
METADATA_BYTES_MAX: Final = 64 * KIB
NOTE_CHARS_MAX: Final = 2048
REQUEST_ID_CHARS_MAX: Final = 256
PARENTS_MAX: Final = 1024
EMBEDDING_DIMS_MAX: Final = 4096
CHECK_BYTES_MAX: Final = 64 * KIB
"""Longer texts are not looked at for conflicts: they are documents, not facts."""
TTL_SECONDS_MAX: Final = 100 * 366 * 86_400
PRIORITY_MAX: Final = 100

# Calls.
DEADLINE_MS_DEFAULT: Final = 30_000
DEADLINE_MS_MAX: Final = 24 * 3600 * 1000
ALLOC_MANY_ITEMS_MAX: Final = 1024
LIST_ITEMS_DEFAULT: Final = 100
LIST_ITEMS_MAX: Final = 1000
SEARCH_HITS_DEFAULT: Final = 10
SEARCH_HITS_MAX: Final = 1000
BUDGET_TOKENS_MAX: Final = 10_000_000
HIT_BYTES_MAX: Final = 64 * KIB
"""Bytes of a content that a hit carries."""
QUERY_CHARS_MAX: Final = 16 * KIB
FUSE_SOURCES_MAX: Final = 1024
COMPOSED_BYTES_MAX: Final = CONTENT_INLINE_BYTES_MAX
"""Largest content that a composition may read as."""
COMPOSED_LEAVES_MAX: Final = 1024
COMPOSED_DEPTH_MAX: Final = 16
FORK_CUBES_MAX: Final = 1_000_000
WATCHES_PER_CONNECTION_MAX: Final = 16
HISTORY_VERSIONS_MAX: Final = 10_000
WATCH_ITEMS_PER_TURN_MAX: Final = 256
TURN_MS_MAX: Final = 5
"""What a turn of the kernel's event loop should last at most: longer work is cut into slices or goes to a thread. One
commit of very many rows (a fork of thousands of cubes) still lasts longer."""

# Models.
TENSOR_BYTES_MAX: Final = 2 * GIB
"""Largest payload of tensors of one version."""
ATTACHED_CUBES_MAX: Final = 64
MESSAGES_MAX: Final = 256
PROMPT_CHARS_MAX: Final = 256 * KIB
CAPTURE_BYTES_MAX: Final = 2 * MIB
"""Bytes of text that one KV cache may be made from."""
NEW_TOKENS_DEFAULT: Final = 256
NEW_TOKENS_MAX: Final = 32_768
RECOMPUTE_PERCENT_DEFAULT: Final = 15
"""Of the tokens of composed KV caches."""
NEIGHBOURS_MAX: Final = 4
ADAPTER_WEIGHT_MAX: Final = 4
"""Weight of one adapter in a call, and what the weights of all of them add up to at most: what is more is scaled down."""
ADAPTERS_PER_CALL_MAX: Final = 8
ADAPTER_RANK_MAX: Final = 256
ADAPTER_BYTES_MAX: Final = 512 * MIB
"""Largest adapter of one version."""
DISTIL_FACTS_MAX: Final = 64
"""Facts of one adapter: more of them want several."""
DISTIL_BYTES_MAX: Final = 256 * KIB
"""Bytes of text that one adapter may be made from."""
DISTIL_STEPS_MAX: Final = 2000
JOB_DEADLINE_MS_DEFAULT: Final = 3_600_000
"""How long a call that runs a model waits when it names no deadline."""
JOBS_KEPT_MAX: Final = 256
"""Jobs of one principal that are over and can still be asked about."""
JOBS_PER_PRINCIPAL_MAX: Final = 64
MAPS_PER_CONNECTION_MAX: Final = 1024
"""Different payloads that one connection may have mapped."""

# Storage.
KEY_SLOTS_PER_BLOCK: Final = 1024
REBUILD_CUBES_MAX: Final = 256
REBUILD_BYTES_MAX: Final = 384 * KIB
"""Derived cubes, and bytes of text, that one shred makes again; what is beyond is erased and not made again."""
SEGMENT_CUBES_MAX: Final = 4096
"""Cubes that one encrypted index segment may list."""
DISK_RESERVE_BYTES_DEFAULT: Final = 256 * MIB
DECODED_CACHE_BYTES: Final = 16 * MIB
"""Decrypted versions kept in RAM for repeated reads."""

assert CONTENT_INLINE_BYTES_MAX < FRAME_BYTES_MAX, "content that may be inline must fit a frame"
assert INFLIGHT_BYTES_MAX >= FRAME_BYTES_MAX, "one full request must be let in"
assert CONTENT_BYTES_MAX * FDS_PER_FRAME_MAX <= MAPPED_BYTES_PER_PRINCIPAL_MAX, "one full frame of descriptors must be let in"
assert OUTBOX_BYTES_MAX >= FRAME_BYTES_MAX, "one full reply must fit the outbox"
assert PAYLOAD_INLINE_BYTES_MAX < RECORD_BYTES_MAX, "an inline payload must fit a record"
assert RECORD_BYTES_MAX + FRAME_LOG_OVERHEAD_BYTES_MAX <= FRAME_LOG_BYTES_MAX, "one full record must fit a frame"
assert METADATA_BYTES_MAX + PAYLOAD_INLINE_BYTES_MAX < RECORD_BYTES_MAX
assert PAYLOAD_INLINE_BYTES_MAX <= PAYLOAD_CHUNK_BYTES <= CONTENT_BYTES_MAX
assert LIST_ITEMS_DEFAULT <= LIST_ITEMS_MAX
assert SEARCH_HITS_DEFAULT <= SEARCH_HITS_MAX
assert DEADLINE_MS_DEFAULT <= DEADLINE_MS_MAX
assert WATCH_ITEMS_PER_TURN_MAX <= INFLIGHT_PER_CONNECTION_MAX
assert TENSOR_BYTES_MAX <= MAPPED_BYTES_PER_PRINCIPAL_MAX, "one largest payload must be let in"
assert DEADLINE_MS_DEFAULT <= JOB_DEADLINE_MS_DEFAULT <= DEADLINE_MS_MAX
assert SEGMENT_CUBES_MAX < 2**16, "a document's place in its segment fits 16 bits"
assert ADAPTER_BYTES_MAX <= TENSOR_BYTES_MAX
