"""Serving adapters through a real kernel: how soon one acts from each tier, what it costs in tokens, and merging.

    .venv/bin/python -m tests.bench.lora_serve [--model NAME] [--threads N] [--quick] [--out FILE]

One private kernel, one model, adapters of random numbers that are imported, so that they always act. What an adapter costs at
the first token is the difference to the same call without one, in turn; a tier is where its payload was brought before the
call (`device`: used before; `host`: mapped anew; `disk`: read and decrypted). Merging is that of the tensors, in this process
and with one thread, as the driver host does it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import torch

from memos_client import Kernel
from memos_drivers.parametric.adapter import Adapter, pack
from memos_drivers.parametric.fuse import fuse
from memos_syscalls.messages import Tier
from memos_tools.bench_measure import NO_MODEL, Measured, scratch

if TYPE_CHECKING:
    from tests.bench.run import Run

QUESTION: Final = "Please tell me a long story about what happened on these days, and about all who were there."
DEADLINE_MS: Final = 600_000
TIMES: Final = 9
ANSWER: Final = 48
HIDDEN, INNER, LAYERS = 576, 1536, range(2, 18)
"""Of the bundled model, and the layers that a distillation trains."""
RANK: Final = 24
"""Makes about ten megabytes."""
MERGED_RANK: Final = 48


def adapter(seed: int, rank: int) -> Adapter:
    """Random, and so small that answers stay what they are."""
    made = torch.Generator().manual_seed(seed)

    def pair(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn((rank, inputs), generator=made) * 1e-3, torch.randn((outputs, rank), generator=made) * 1e-3

    modules = {
        f"model.layers.{layer}.mlp.{name}": pair(*((INNER, HIDDEN) if name == "down_proj" else (HIDDEN, INNER)))
        for layer in LAYERS for name in ("gate_proj", "up_proj", "down_proj")
    }  # fmt: skip
    return Adapter(modules, float(rank))


def imported(kernel: Kernel, seed: int) -> str:
    one = adapter(seed, RANK)
    fd = pack(one.modules, one.alpha).fd
    try:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    return kernel.mem_alloc("bench", content, form="parametric", deadline_ms=DEADLINE_MS).cube_id


def ask(kernel: Kernel, cubes: list[str], tokens: int = 1) -> Any:
    return kernel.mem_infer(QUESTION, cubes=cubes, max_new_tokens=tokens, deadline_ms=DEADLINE_MS)


def serve(run: Run, kernel: Kernel) -> None:
    ask(kernel, [])
    cubes = [imported(kernel, seed) for seed in range(4)]
    size = kernel.mem_stat(cubes[0]).header.bytes
    times = 2 if run.scale < 1 else TIMES
    ask(kernel, cubes[:1])
    tiers: tuple[tuple[Tier, float | None], ...] = (("device", None), ("host", 50.0), ("disk", None))
    for tier, most in tiers:
        extra: list[float] = []
        for _ in range(times):
            kernel.mem_migrate(cubes[0], tier=tier)
            extra.append(ask(kernel, cubes[:1]).ttft_ms - ask(kernel, []).ttft_ms)
        middle = statistics.median(extra)
        what = f"an adapter of {size / 1e6:.1f} MB acts, {tier}: more than without"
        run.rows.append(Measured(what, times, p50_us=middle * 1e3, more={"worst_ms": max(extra)}))
        if most is None:
            run.beside(what, f"{middle:.1f} ms", "–", round(middle, 1), "ms")
        else:
            run.at_most(what, f"{middle:.1f} ms", "–", round(middle, 1), most, "ms")
    for count in (1, 4):
        shares: list[tuple[float, float]] = []
        for _ in range(times):
            plain, acting = ask(kernel, [], ANSWER), ask(kernel, cubes[:count], ANSWER)
            shares.append((acting.tokens_per_s, plain.tokens_per_s))
        share = statistics.median(a / b for a, b in shares)
        ours, theirs = (statistics.median(side) for side in zip(*shares, strict=True))
        what = f"decoding {ANSWER} tokens under {count} adapter{'s' if count > 1 else ''}"
        run.rows.append(Measured(what, times, per_s=ours, more={"without_per_s": theirs}))
        run.at_least(what, f"{ours:.1f}/s", f"without {theirs:.1f}/s", round(share, 3), 0.8, "×")


def merge(run: Run) -> None:
    torch.set_num_threads(1)
    parents = [adapter(seed, MERGED_RANK) for seed in (1, 2)]
    size = parents[0].bytes
    for method in ("cat", "linear", "svd", "ties", "dare_linear"):
        spent: list[float] = []
        for _ in range(2 if run.scale < 1 else 5):
            began = time.perf_counter()
            fuse(parents, method, [1.0, 1.0], density=0.5, seed=0)
            spent.append(time.perf_counter() - began)
        middle = statistics.median(spent)
        what = f"merging two adapters of {size / 1e6:.0f} MB, {method}"
        run.rows.append(Measured(what, len(spent), p50_us=middle * 1e6))
        if method in ("cat", "linear", "svd"):
            run.at_most(what, f"{middle:.2f} s", "–", round(middle, 3), 1.0, "s")
        else:
            run.beside(what, f"{middle:.2f} s", "–", round(middle, 3), "s")


def lora_serve(run: Run, model: str = "smollm2", threads: int = 2) -> None:
    merge(run)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch(run.parent))
        words = ["--model", model, "--host-threads", str(threads), "--dtype", "float32", *NO_MODEL]
        serve(run, stack.enter_context(Kernel.spawn(directory / "data", args=words)))


def main() -> None:
    from tests.bench import run as suite

    p = argparse.ArgumentParser(description="Measure how adapters are served and merged.")
    p.add_argument("--model", default="smollm2", help="name or path of the language model (default: smollm2)")
    p.add_argument("--threads", type=int, default=2, help="of the model (default: 2)")
    suite.common(p, "bench-lora-serve")
    arguments = p.parse_args()
    suite.measure(arguments, {"lora_serve": lambda run: lora_serve(run, arguments.model, arguments.threads)})


if __name__ == "__main__":
    main()
