"""`memctl models`: which language models this machine has for KV caches and inference.

Lists the models that are named as arguments, the bundled one when it is installed, and those in the Hugging Face cache, without
loading any. A model that is not ready is a GGUF file that is converted when it is first loaded, or one with a problem, which is
shown. Exit status 1 when a model that was asked for cannot be used, or when there is none at all.
"""

from __future__ import annotations

import argparse

from memos_drivers.lm.models import GET_MODEL, ModelInfo, catalogue

from .output import BAD, GOOD, Output
from .render import Block, Line, Rows

HEADERS = ("name", "source", "state", "parameters", "fingerprint", "path")
FINGERPRINT_CHARS = len("sha256:") + 12


def command(arguments: argparse.Namespace, out: Output) -> int:
    found = catalogue(arguments.models, arguments.cache_dir)
    data = [{**info._asdict(), "path": str(info.path)} for info in found]
    blocks: list[Block] = [Rows(HEADERS, [_row(info) for info in found])]
    blocks += [Line(f"{info.name}: {info.problem}.") for info in found if info.problem]
    if not found:
        blocks = [Line(f"No model is here. {GET_MODEL}")]
    out.show({"models": data}, *blocks)
    return GOOD if found and not any(info.problem for info in found) else BAD


def _row(info: ModelInfo) -> tuple[str, ...]:
    state = "problem" if info.problem else "ready" if info.ready else "converted at first use"
    fingerprint = (info.fingerprint or "-")[:FINGERPRINT_CHARS]
    return info.name, info.source, state, _millions(info.parameters), fingerprint, str(info.path)


def _millions(parameters: int | None) -> str:
    if parameters is None:
        return "-"
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
