"""KV caches with the log on Kafka: payloads travel by the payload topic, and an erasure reaches a standby's tiers."""

from __future__ import annotations

import time
from pathlib import Path

from tests.lm import tiny_model
from tests.outside import Machines, Wire

TEXT = "Anna moved to Lisbon in the spring and keeps bees on the roof. " * 90
"""Its cache is over one chunk."""
QUESTION = "Where does Anna live?"
SECONDS = 120


def caught_up(wire: Wire, offset: int) -> None:
    until = time.monotonic() + SECONDS
    while wire.call("sys_info")["head_offset"] < offset:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_standby_continues_from_the_writer_s_cache_until_it_is_erased(tmp_path: Path, kafka: str, topic: str) -> None:
    model = ("--model", str(tiny_model(tmp_path / "tiny")), "--model-cache", str(tmp_path / "models"), "--host-threads", "1")
    with Machines(tmp_path / "machines", kafka, topic) as several:
        primary, standby = several.serve("a", *model), several.serve("b", "--standby", *model)
        with Wire(primary.socket, seconds=SECONDS) as wire, Wire(standby.socket, seconds=SECONDS) as other:
            source = wire.call("mem_alloc", namespace="n", content=TEXT)["cube_id"]
            made = wire.call("mem_migrate", cube_id=source, to="activation")
            asked = {"prompt": QUESTION, "max_new_tokens": 8, "cubes": [made["cube_id"]]}
            here = wire.call("mem_infer", **asked)
            assert here["attached"][0]["how"] == "attached"
            caught_up(other, made["offset"])
            assert other.call("mem_infer", **asked)["text"] == here["text"]
            assert other.call("sys_stats")["tiers"]["host"]["entries"] == 1
            assert other.refusal("mem_migrate", cube_id=source, to="activation") == "EROFS"
            gone = wire.call("mem_shred", cube_id=source)
            assert made["cube_id"] in gone["report"]["shredded"]
            caught_up(other, gone["offset"])
            assert other.refusal("mem_infer", **asked) == "ESHREDDED"
            until = time.monotonic() + SECONDS
            while any(tier["entries"] for tier in other.call("sys_stats")["tiers"].values()):
                assert time.monotonic() < until, "no tier of the standby holds it"
                time.sleep(0.02)
            assert wire.call("sys_verify", full=True)["ok"]
