#!/bin/sh
# The peers of the benchmarks, in an environment of their own: none of them is a dependency of the project.
#   tests/bench/peers.sh DIR        then: tests/bench/run.py --peers DIR
# Redis itself comes from the system: apt-get install redis-server.
set -eu
dir=${1:?usage: peers.sh DIR}
here=$(cd "$(dirname "$0")/../.." && pwd)
"$here/.venv/bin/python" -m venv "$dir"
"$dir/bin/pip" install --quiet "redis>=6" "mem0ai>=2" "eventsourcing>=9.4"
command -v redis-server > /dev/null || echo "redis-server is not installed: its comparisons will be left out" >&2
