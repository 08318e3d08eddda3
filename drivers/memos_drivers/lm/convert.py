"""Reading models with transformers: a directory of safetensors, and a GGUF file, which is made into such a directory once.

`convert` writes beside its target and renames at the end, so that the target is whole or absent; a lock file lets the second of
two processes wait for the first and find the work done. The tensors are those that transformers reads from the GGUF file, in
float32, bit for bit: both ways of loading give one fingerprint.

What foreign files make foreign code raise is told apart by what the caller can do: `MemModel` for files that are no model or
a damaged one, `MemIO` for a device that failed or is full, `MemNoModel` where a package is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from memos_syscalls.errors import MemError, MemIO, MemModel, MemNoModel

AutoModel: Any = AutoModelForCausalLM
logging: Any = transformers_logging
Tokenizer: Any = AutoTokenizer
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
CHECKED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""What does not fit is told, by `_whole`, and not raised in other words."""


def read(path: Path, *, device: str, dtype: str) -> tuple[Any, Any]:
    """The model and tokenizer of a directory."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise MemModel(f"{dtype!r} is no float type", "Use float32, float16 or bfloat16.")
    with _explained(path), _quiet():
        model, found = AutoModel.from_pretrained(path, dtype=kind, use_safetensors=True, **CHECKED, **LOCAL)
        _whole(path, found)
        tokenizer = Tokenizer.from_pretrained(path, **LOCAL)
        return model.to(device).eval(), tokenizer


def convert(gguf: Path, target: Path) -> None:
    """Makes the directory `target` of the file `gguf`, unless it is there."""
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            what = f"the package {name}, which reading GGUF files takes, is not installed"
            raise MemNoModel(what, f"Run `pip install {name}`.")
    with _explained(gguf):
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_dir():
                return
            # What a converter that died left behind; the lock says that nobody writes there now.
            half = target.parent / f"{target.name}.new"
            shutil.rmtree(half, ignore_errors=True)
            with _quiet():
                _write(gguf, half)
            for file in half.iterdir():
                _flush(file)
            half.rename(target)
            _flush(target.parent)


def _write(gguf: Path, folder: Path) -> None:
    place: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, **LOCAL}
    model, found = AutoModel.from_pretrained(**place, dtype=torch.float32, **CHECKED)
    _whole(gguf, found)
    tokenizer = Tokenizer.from_pretrained(**place)
    config = model.config
    # What was read from GGUF counts as quantised and refuses to be saved: its tensors go into a model that never was.
    del config.quantization_config
    with torch.device("meta"):
        fresh = AutoModel.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _whole(path: Path, found: dict[str, Any]) -> None:
    """Refuses what transformers fills up with random numbers."""
    wrong = sorted({str(key) for part in ("missing_keys", "mismatched_keys") for key in found.get(part, ())})
    if wrong:
        raise MemModel(
            f"{path} lacks {len(wrong)} of the model's tensors, or has them in another shape, such as {wrong[0]}",
            "Fetch the model again.",
        )


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except MemError:
        raise
    except torch.OutOfMemoryError as error:
        raise MemIO(f"the model {path} does not fit into the device's memory") from error
    except SafetensorError as error:
        raise MemModel(f"the weights in {path} are damaged: {error}", "Fetch the model again.") from error
    except OSError as error:
        # Transformers raises OSError for files that it does not understand, too; those have no error number.
        if error.errno is None:
            raise MemModel(f"{path} is not a model that can be loaded: {_first(error)}", "Fetch the model again.") from error
        raise MemIO(f"the model {path} cannot be read or converted: {error}", "Look at the disk and its free space.") from error
    except ImportError as error:
        raise MemNoModel(
            f"a package for {path} is missing: {_first(error)}", "Install the package that the detail names."
        ) from error
    except Exception as error:
        # Parsers of foreign bytes raise what they like: KeyError, IndexError, struct.error, UnicodeDecodeError, …
        raise MemModel(
            f"{path} is damaged or no model for text: {type(error).__name__}: {_first(error)}", "Fetch the model again."
        ) from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without transformers' warnings and progress bars, which are for people at a terminal."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
