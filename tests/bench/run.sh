#!/bin/sh
# `make bench`: make the peers' environment when it is not there, run everything, write the table into docs/benchmarks.md.
set -eu
cd "$(dirname "$0")/../.."
peers=.cache/bench-peers
test -x "$peers/bin/python" || sh tests/bench/peers.sh "$peers" || { rm -rf "$peers"; echo "going on without peers" >&2; }
exec .venv/bin/python tests/bench/run.py --peers "$peers" --out .cache/bench --docs docs/benchmarks.md "$@"
