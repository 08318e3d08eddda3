"""What activation memory is compared with, without a kernel: a bare model, a bare store, and Redis.

`Model` is a process of its own (`python kv_bare.py MODEL THREADS`) that answers JSON lines: texts of so many tokens, and the
seconds of one forward pass over P ⧺ M. It runs at the priority that the driver host runs at. `Store` is the same bytes in
RocksDB, in pieces sealed as the kernel seals them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PIECE: Final = 512 << 10
NAMES: Final = ("Alice", "Bruno", "Chidi", "Dana", "Emre", "Fay", "Goran", "Hana", "Ines", "Jonas", "Kaya", "Lior")
THINGS: Final = ("a lantern", "the old boat", "two letters", "a green coat", "the spare key", "some bread", "a map", "a violin")
PLACES: Final = ("at the mill", "by the river", "in the attic", "behind the station", "near the market", "on the bridge")
DEEDS: Final = ("found", "lost", "sold", "painted", "borrowed", "hid", "repaired", "forgot", "asked about", "gave away")


class Model:
    """The process's other end."""

    def __init__(self, name: str, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def text(self, tokens: int, seed: int) -> str:
        """A text of so many tokens, give or take a sentence; another seed, another text."""
        return str(self._ask({"text": tokens, "seed": seed}))

    def prefill_seconds(self, text: str) -> float:
        """Of one forward pass over the prefix and this memory."""
        return float(self._ask({"prefill": text}))

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def sentences(seed: int) -> Generator[str]:
    draw = random.Random(seed)
    while True:
        who, other = draw.sample(NAMES, 2)
        did = f"{draw.choice(DEEDS)} {draw.choice(THINGS)} {draw.choice(PLACES)}"
        yield f"On day {draw.randrange(1, 400)} {who} {did}, and told {other}. "


def serve(name: str, threads: int) -> None:
    """Answer until the other end closes."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from memos_drivers.host.child import yield_to_others
    from memos_drivers.lm import models
    from memos_drivers.lm.tokens import TokenLayout

    yield_to_others()
    torch.set_num_threads(threads)
    loaded = models.load(name, dtype="float32")
    layout = TokenLayout(loaded.tokenizer)

    def text_of(tokens: int, seed: int) -> str:
        found = ""
        for sentence in sentences(seed):
            if len(layout.memory(found + sentence)) > tokens:
                return found
            found += sentence
        raise AssertionError("sentences do not end")

    def seconds_of(text: str) -> float:
        ids = torch.tensor([[*layout.prefix(None), *layout.memory(text)]])
        began = time.perf_counter()
        with torch.inference_mode():
            loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    for line in sys.stdin:
        asked = json.loads(line)
        answer = text_of(asked["text"], asked["seed"]) if "text" in asked else seconds_of(asked["prefill"])
        print(json.dumps(answer), flush=True)


class Store:
    """Bytes in RocksDB as the kernel keeps them: pieces of 512 KiB, each sealed by AES-GCM."""

    def __init__(self, path: Path, content: memoryview) -> None:
        library = importlib.import_module("rocksdict")
        options = library.Options(raw_mode=True)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(16 << 10)
        options.set_compression_type(library.DBCompressionType.none())
        self._cipher, self._size = AESGCM(os.urandom(32)), len(content)
        self._keys = [number.to_bytes(12, "big") for number in range(-(-len(content) // PIECE))]
        self._database = library.Rdict(str(path), options)
        for number, key in enumerate(self._keys):
            piece = bytes(content[number * PIECE : (number + 1) * PIECE])
            self._database.put(key, self._cipher.encrypt(key, piece, b""))
        self._database.flush()

    def read(self) -> list[bytes]:
        """Everything, read and decrypted."""
        return [self._cipher.decrypt(key, self._database.get(key), b"") for key in self._keys]

    def close(self) -> None:
        self._database.close()


@contextlib.contextmanager
def redis_gets(path: Path, content: memoryview) -> Generator[dict[str, Callable[[], object]]]:
    """GETs of these bytes from a Redis of our own: by a raw socket, and by redis-py if that is there. Empty without Redis."""
    if shutil.which("redis-server") is None:
        yield {}
        return
    address = str(path / "redis.sock")
    words = ["--port", "0", "--unixsocket", address, "--dir", str(path), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        while not os.path.exists(address):
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(address)
            plain.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % len(content))
            plain.sendall(content)
            plain.sendall(b"\r\n")
            assert plain.recv(64) == b"+OK\r\n"
            buffer = memoryview(bytearray(len(content) + 64))

            def raw() -> None:
                plain.sendall(b"GET k\r\n")
                got = 0
                while got < len(content) or bytes(buffer[got - 2 : got]) != b"\r\n":
                    got += plain.recv_into(buffer[got:])

            gets: dict[str, Callable[[], object]] = {"a raw socket": raw}
            with contextlib.suppress(ImportError):
                client = importlib.import_module("redis").Redis(unix_socket_path=address)
                gets["redis-py"] = lambda: client.get("k")
            yield gets
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
