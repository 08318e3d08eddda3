"""What the driver host can do: the operations behind mem_migrate, mem_infer and the fusion of caches.

    tokens    what a capture of texts would depend on        capture   texts → a payload
    fuse      payloads → a payload                           infer     messages and parts → text
    load      payloads → the device tier                     open      a model → what it is

What makes, merges and asks adapters is in adapter_ops.py, adapter_shape.py and adapter_diff.py.

Payloads come and go as sealed memfds. Those that were used stay in the device tier under its byte budget, by key; `drop`
takes them out at once, from another thread, which is how erasing reaches them. On a CPU the tier holds mappings of the same
memory that the kernel's host tier has, so it costs no second copy where the payload's dtype is the model's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from memos_drivers.activation.engine import Engine, Part
from memos_drivers.activation.kv import Packed, Payload, unpack
from memos_drivers.host import adapter_diff, adapter_ops, adapter_shape
from memos_drivers.host.contract import Context, Control, Op, Steps
from memos_drivers.lm import models
from memos_drivers.lm.sampling import Options
from memos_drivers.parametric.adapter import Adapter
from memos_drivers.parametric.adapter import refusal as adapter_refusal
from memos_drivers.parametric.adapter import unpack as unpack_adapter
from memos_drivers.tiers import Tier
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemInvalid, MemNoModel

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MemNoModel("there is no CUDA device here", "Start memosd with --device cpu.")
    return device


class Workshop:
    """Models, and the payloads that are on the device."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._names: list[str] = list(spec["models"])
        self._cache = Path(spec["cache"])
        self._device = device_of(str(spec.get("device", "auto")))
        self._dtype = str(spec.get("dtype", "auto"))
        if self._device.type == "cpu":
            # A CPU attends over grouped heads as they lie, behind a mask as well; else all keys and values are repeated first.
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        if threads := int(spec.get("threads") or 0):
            torch.set_num_threads(threads)
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        libc = ctypes.CDLL(None)
        self._libc = libc if hasattr(libc, "malloc_trim") else None  # glibc's own
        self._tier: Tier[bytes, Payload | Adapter] = Tier(int(spec.get("device_tier_mb", 1024)) * limits.MIB)
        self._gone: set[bytes] = set()
        """Keys that were dropped: an operation that still has a payload must not bring it back."""
        self.ops: Mapping[str, Op] = {
            "open": self._op_open, "tokens": self._op_tokens, "capture": self._op_capture, "fuse": self._op_fuse,
            "infer": self._op_infer, "load": self._op_load, **adapter_ops.operations(self),
            **adapter_shape.operations(self), **adapter_diff.operations(self),
        }  # fmt: skip
        self.controls: Mapping[str, Control] = {"drop": self._drop, "stats": self._stats, "trim": self._trim}

    def describe(self) -> dict[str, Any]:
        return {"device": str(self._device), "torch": torch.__version__, "threads": torch.get_num_threads()}

    # -- models ------------------------------------------------------------------------------------------------------

    def engine(self, name: str | None, context: Context) -> Generator[None, None, Engine]:
        """A model by name, loaded when it is needed first."""
        if not self._names:
            raise MemNoModel("this kernel runs no models", "Start memosd with --model NAME_OR_PATH.")
        wanted = self._names[0] if name is None else name
        if wanted not in self._names:
            raise MemNoModel(f"model {wanted} is not among this kernel's: {', '.join(self._names)}", "Start it with --model.")
        if wanted not in self._engines:
            context.progress(0.0, f"loading model {wanted}")
            yield
            loaded = models.load(wanted, cache_dir=self._cache, device=str(self._device), dtype=self._dtype)
            self._engines[wanted] = Engine(loaded)
        return self._engines[wanted]

    def _op_open(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)
        return engine.describe(), []

    # -- making ------------------------------------------------------------------------------------------------------

    def _op_tokens(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)

        def sizes() -> Generator[None, None, dict[str, Any]]:
            yield from ()
            return engine.sizes(args["system"], args["texts"], args["stored"])

        return (yield from engine.under(self.adapters(engine, args["parts"], fds), sizes())), []

    def _op_capture(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)
        making = engine.capture(args["system"], args["texts"], args["neighbours"], args["stored"], context.progress)
        made: tuple[dict[str, Any], Packed] = yield from engine.under(self.adapters(engine, args["parts"], fds), making)
        sizes, packed = made
        return sizes, [packed.fd]

    def _op_fuse(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)
        prefix = engine.layout.prefix(args["system"])
        payloads: list[Payload] = []
        for part in args["parts"]:
            payload = self._kv(engine, part, fds)
            if payload is None:
                raise MemInvalid("a cache that is to be fused is not at hand", "Ask for it again.")
            if (refusal := engine.refusal(payload, prefix, engine.memory_ids(part["texts"]))) is not None:
                raise refusal
            payloads.append(payload)
        sizes, packed = yield from engine.fuse(args["tenant"], args["system"], payloads, args["recompute"], args["stored"])
        return sizes, [packed.fd]

    # -- using -------------------------------------------------------------------------------------------------------

    def _kv(self, engine: Engine, part: dict[str, Any], fds: list[int]) -> Payload | None:
        """A part's KV cache, from the tier or from its descriptor; None when there is neither."""
        found = self._at_hand(part, fds, lambda fd: unpack(fd, engine.device, engine.dtype))
        assert found is None or isinstance(found, Payload), "a key is of one payload"
        return found

    def adapter(self, engine: Engine, part: dict[str, Any], fds: list[int]) -> Adapter | None:
        """A part's adapter, checked against the model; None when it is not at hand."""

        def read(fd: int) -> Adapter:
            adapter = unpack_adapter(fd, engine.device)
            fits(adapter)
            return adapter

        def fits(adapter: Adapter) -> None:
            if (refused := adapter_refusal(adapter, engine.model, engine.fingerprint)) is not None:
                raise type(refused)(f"cube {part['cube']}: {refused.detail}", refused.advice)

        found: Adapter | None = self._at_hand(part, fds, read)
        assert found is None or isinstance(found, Adapter), "a key is of one payload"
        if found is not None and found.base != engine.fingerprint:
            # In the tier for another model: all its numbers need not be looked at each time that it is found there.
            fits(found)
        return found

    def adapters(self, engine: Engine, parts: list[dict[str, Any]], fds: list[int]) -> list[tuple[Adapter, float]]:
        """Adapters of which the caller sent every descriptor, with their weights."""
        found: list[tuple[Adapter, float]] = []
        for part in parts:
            adapter = self.adapter(engine, part, fds)
            if adapter is None:
                raise MemInvalid("an adapter that is needed is not at hand", "Ask for it again.")
            found.append((adapter, part["weight"]))
        return found

    def _at_hand(self, part: dict[str, Any], fds: list[int], read: Callable[[int], Any]) -> Any:
        """What a part's key names, from the tier or from its descriptor; None when there is neither."""
        key: bytes = part["key"]
        now = time.monotonic()
        with self._lock:
            found = self._tier.get(key, now)
        if found is not None:
            return found
        if part.get("fd") is None:
            return None
        payload = read(fds[part["fd"]])
        with self._lock:
            if key not in self._gone:
                self._tier.put(key, payload, payload.bytes, now=now)
        return payload

    def _op_load(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)
        for part in args["parts"]:
            (self.adapter if part["kind"] == "adapter" else self._kv)(engine, part, fds)
            yield
        return {"resident": self._resident()}, []

    def _op_infer(self, context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from self.engine(args.get("model"), context)
        adapters: list[tuple[Adapter, float]] = []
        missing: list[bytes] = []
        for part in args["parts"]:
            if part["kind"] == "adapter":
                found = self.adapter(engine, part, fds)
                if found is None:
                    missing.append(part["key"])
                else:
                    adapters.append((found, part["weight"]))
        return (yield from engine.under(adapters, self._infer(engine, context, args, fds, missing)))

    def _infer(
        self, engine: Engine, context: Context, args: dict[str, Any], fds: list[int], missing: list[bytes]
    ) -> Steps:
        messages: list[dict[str, str]] = args["messages"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        prefix = engine.layout.prefix(system)
        parts: list[Part] = []
        for part in args["parts"]:
            if part["kind"] == "adapter":
                continue
            ids = engine.memory_ids(part["texts"])
            if part["kind"] == "text":
                parts.append(Part(part["at"], ids, part["how"], None))
                continue
            payload = self._kv(engine, part, fds)
            if payload is None:
                missing.append(part["key"])
                continue
            refusal = engine.refusal(payload, prefix, ids)
            if refusal is not None and args["on_miss"] == "refuse":
                raise type(refusal)(f"cube {part['cube']}: {refusal.detail}", refusal.advice)
            parts.append(Part(part["at"], ids, "recomputed", None if refusal is not None else payload))
            yield
        if missing:
            return {"missing": missing}, []
        try:
            begun = yield from engine.attach(args["tenant"], messages, parts, args["recompute"])
        except MemError:
            if args["on_miss"] == "refuse":
                raise
            # A model whose caches cannot be composed, say: its sources' texts always can be read.
            parts = [part._replace(payload=None) for part in parts]
            begun = yield from engine.attach(args["tenant"], messages, parts, args["recompute"])
        options = Options(args["temperature"], args["top_p"], args["top_k"], args["seed"])
        answer = yield from engine.answer(
            begun, options, args["max_new_tokens"], args["stop"], lambda text: context.item({"text": text})
        )
        return {
            **answer, "model": engine.name, "fingerprint": engine.fingerprint,
            "tokens_in": begun.tokens, "tokens_reused": begun.reused,
            "parts": [{"at": part.at, "how": part.how, "tokens": len(part.ids)} for part in begun.parts],
            "resident": self._resident(),
        }, []  # fmt: skip

    def _resident(self) -> list[bytes]:
        with self._lock:
            return list(self._tier)

    # -- controls ----------------------------------------------------------------------------------------------------

    def _drop(self, args: dict[str, Any]) -> dict[str, Any]:
        """Forget payloads. Runs beside a step that may be using one: its memory goes when that operation ends."""
        keys: list[bytes] = args["keys"]
        with self._lock:
            if args.get("erased"):
                self._gone.update(keys)
            self._tier.drop(keys)
        return {}

    def _trim(self, args: dict[str, Any]) -> dict[str, Any]:
        """Give freed memory back to the system, which clears it: copies of what was erased do not stay in the heap."""
        for engine in list(self._engines.values()):
            engine.forget_words()
        with self._lock:
            for payload in (self._tier.peek(key) for key in self._tier):
                if isinstance(payload, Adapter):
                    payload.forget()
        gc.collect()
        if self._libc is not None:
            self._libc.malloc_trim(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _stats(self, args: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            tier = self._tier.stats()
        return {
            "device": tier, "models": [engine.describe() for engine in list(self._engines.values())],
            "prefix_bytes": sum(engine.prefix_bytes for engine in list(self._engines.values())),
        }  # fmt: skip


def open_host(spec: Mapping[str, Any]) -> Workshop:
    return Workshop(spec)
