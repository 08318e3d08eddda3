"""Whether an answer behind a cache is the answer after a full prefill: `python -m tests.bench.kv_same [--prompts 50]`.

For each prompt a memory is captured as mem_migrate does it, and attached as mem_infer does it; beside it the text is read in
full. Printed are the largest difference of the logits behind the last prompt token, and on how many prompts the greedy text of
64 tokens is the same. No kernel and no socket: the engine of the driver host, in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from tests.steps import done

from memos_drivers.activation.engine import Begun, Engine, Part
from memos_drivers.activation.kv import unpack
from memos_drivers.lm import models
from memos_drivers.lm.sampling import Options

QUESTIONS = Path(__file__).with_name("kv_questions.json")
TOKENS = 64


def answered(engine: Engine, begun: Begun) -> str:
    return str(done(engine.answer(begun, Options(), TOKENS, [], lambda _piece: None))["text"])


def prompts(count: int) -> list[tuple[str, str]]:
    """`(memory, question)`: each of the questions once, in an order of their own."""
    worlds: list[dict[str, Any]] = json.loads(QUESTIONS.read_text(encoding="utf-8"))["worlds"]
    found = [
        (world["memories"][question["memory"]], question["text"])
        for world in worlds for question in world["questions"]
    ]  # fmt: skip
    random.Random(5).shuffle(found)
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stored", default=None)
    options = parser.parse_args()
    engine = Engine(models.load(options.model, dtype=options.dtype))
    worst, same, top, tokens = 0.0, 0, 0, 0
    asked = prompts(options.prompts)
    for text, question in asked:
        messages = [{"role": "user", "content": question}]
        _sizes, packed = done(engine.capture(None, [text], [], options.stored, lambda _share, _said: None))
        try:
            payload = unpack(packed.fd, engine.device, engine.dtype)
        finally:
            os.close(packed.fd)
        ids = engine.memory_ids([text])
        attached = done(engine.attach("me", messages, [Part(0, ids, "attached", payload)], 0.0))
        full = done(engine.attach("me", messages, [Part(0, ids, "prefilled", None)], 0.0))
        worst = max(worst, float((attached.logits - full.logits).abs().max()))
        top += int(attached.logits.argmax() == full.logits.argmax())
        same += answered(engine, attached) == answered(engine, full)
        tokens += full.tokens
    stored = options.stored or engine.dtype_name
    print(f"{engine.name}, {engine.dtype_name}, stored {stored}, torch {torch.__version__}, {engine.device}")
    print(f"{len(asked)} prompts of {tokens / len(asked):.0f} tokens: logits differ by at most {worst:.2e}")
    print(f"first token the same: {top} of {len(asked)}; greedy text of {TOKENS} tokens the same: {same} of {len(asked)}")


if __name__ == "__main__":
    main()
