"""eventsourcing on SQLite, each save durable: saves a second of a new aggregate of 300 B, and replay of what was saved.

Runs under the peers' interpreter: `python peer_eventsourcing.py DIR COUNT` prints one JSON line. SQLite's defaults
under this library are WAL and synchronous=FULL, so a save returns after an fsync.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def main(directory: str, count: int) -> None:
    os.environ.update(PERSISTENCE_MODULE="eventsourcing.sqlite", SQLITE_DBNAME=f"{directory}/events.sqlite")
    application: Any = importlib.import_module("eventsourcing.application")
    domain: Any = importlib.import_module("eventsourcing.domain")

    def created(self: Any, text: str) -> None:
        self.text = text

    cube: Any = type("Cube", (domain.Aggregate,), {"__init__": created, "__module__": __name__})
    globals()["Cube"] = cube  # It looks its events up by name.
    app = application.Application()
    text = ("Alice's dog is a beagle named Biscuit; she walks him along the river before breakfast. " * 4)[:300]
    for _ in range(20):
        app.save(cube(text))
    began = time.perf_counter()
    for _ in range(count):
        app.save(cube(text))
    saves = time.perf_counter() - began
    began = time.perf_counter()
    read, start = 0, 1
    while found := app.recorder.select_notifications(start=start, limit=1000):
        read, start = read + len(found), found[-1].id + 1
    print(json.dumps({"per_s": count / saves, "replay_per_s": read / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
