#!/bin/sh
# The peers of tests/bench/retrieval.py, an environment each: their dependencies do not agree. One that fails is left out.
#   tests/bench/recall_peers.sh [PREFIX]        then: python -m tests.bench.retrieval --peers PREFIX
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${1:-$here/.cache/bench-peers}

peer() {
    name=$1
    shift
    test -x "$prefix-$name/bin/python" && return
    "$here/.venv/bin/python" -m venv "$prefix-$name" && timeout 900 "$prefix-$name/bin/pip" install --quiet "$@" && return
    rm -rf "$prefix-$name"
    echo "$name was not installed and will be left out" >&2
}

peer bm25s "bm25s>=0.3" PyStemmer
peer lancedb "lancedb>=0.40" numpy
peer mem0 "mem0ai>=2"
# MemoryOS names no version of torch; this one has processor-only wheels.
peer memoryos torch==2.13.0 "MemoryOS==2.0.33" qdrant-client
