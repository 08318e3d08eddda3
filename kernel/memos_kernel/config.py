"""One frozen configuration: command line over environment (`MEMOS_*`) over a TOML file over defaults."""

from __future__ import annotations

import argparse
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from memos_syscalls import limits

LOG_LEVELS = ("debug", "info", "warning", "error")


class BadConfig(Exception):
    """A setting is wrong; the message names it and says what it may be."""


@dataclass(frozen=True, slots=True)
class Config:
    data_dir: Path
    socket: Path
    log: str = "embedded"
    embedder: str = "minilm"
    """`minilm`, `none`, or the base URL of an OpenAI-compatible embedding endpoint."""
    embedder_model: str = ""
    embedder_key_env: str = "MEMOS_EMBEDDER_KEY"
    group: str | None = None
    master_key_file: Path | None = None
    disk_reserve_mb: int = limits.DISK_RESERVE_BYTES_DEFAULT // limits.MIB
    read_only: bool = False
    accept_clock: bool = False
    rebuild_indexes: bool = False
    log_level: str = "info"

    @property
    def key_path(self) -> Path:
        return self.master_key_file or self.data_dir / "master.key"


def default_socket() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path(runtime) / "memos.sock"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="memosd", description="The MemOS kernel: serves memory syscalls on a Unix socket.")
    p.add_argument("--config", type=Path, help="TOML file with the same names as these options, underscores for dashes")
    p.add_argument("--data-dir", type=Path, help="directory of log, view and keys; made when missing")
    p.add_argument("--socket", type=Path, help="Unix socket to listen at (default: memos.sock in the runtime directory)")
    p.add_argument("--log", help="event log: embedded")
    p.add_argument("--embedder", help="minilm (default), none, or the base URL of an OpenAI-compatible endpoint")
    p.add_argument("--embedder-model", help="model name for an embedding endpoint")
    p.add_argument("--embedder-key-env", help="environment variable that holds the endpoint's key")
    p.add_argument("--group", help="open the socket to this group (mode 0660) instead of its owner alone")
    p.add_argument("--master-key-file", type=Path, help="where the master key lies (default: DATA_DIR/master.key)")
    p.add_argument("--disk-reserve-mb", type=int, help="free space below which writes are refused (default: 256)")
    p.add_argument("--read-only", action="store_true", default=None, help="serve what is there, append nothing")
    p.add_argument("--accept-clock", action="store_true", default=None, help="start although the clock disagrees with the log")
    p.add_argument("--rebuild-indexes", action="store_true", default=None, help="drop the search indexes and make them anew")
    p.add_argument("--log-level", choices=LOG_LEVELS)
    p.add_argument("--check", action="store_true", help="check the configuration and exit")
    return p


_PATHS = ("data_dir", "socket", "master_key_file")
_FLAGS = ("read_only", "accept_clock", "rebuild_indexes")


def load(arguments: argparse.Namespace, environment: dict[str, str]) -> Config:
    """The configuration, or `BadConfig`."""
    values: dict[str, object] = {}
    names = list(Config.__dataclass_fields__)
    path = arguments.config or environment.get("MEMOS_CONFIG")
    if path:
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise BadConfig(f"cannot read the configuration file {path}: {error}") from error
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise BadConfig(f"{path}: unknown settings {', '.join(unknown)}; known are {', '.join(names)}")
        values |= found
    for name in names:
        if (text := environment.get(f"MEMOS_{name.upper()}")) is not None:
            values[name] = text
        if (given := getattr(arguments, name, None)) is not None:
            values[name] = given
    return _checked(values)


def _checked(values: dict[str, object]) -> Config:
    for name, value in values.items():
        wanted = (bool, str) if name in _FLAGS else (int, str) if name == "disk_reserve_mb" else (str, Path)
        if not isinstance(value, wanted) or (isinstance(value, bool) and name not in _FLAGS):
            raise BadConfig(f"{name} cannot be {value!r}")
    if values.get("log_level", "info") not in LOG_LEVELS:
        raise BadConfig(f"log_level is one of {', '.join(LOG_LEVELS)}, not {values['log_level']!r}")
    for name in _PATHS:
        if name in values:
            values[name] = Path(str(values[name])).absolute()
    for name in _FLAGS:
        if isinstance(values.get(name), str):
            if values[name] not in ("0", "1", "true", "false"):
                raise BadConfig(f"{name} is true or false, not {values[name]!r}")
            values[name] = values[name] in ("1", "true")
    if "data_dir" not in values:
        raise BadConfig("no data directory: pass --data-dir DIR, or set MEMOS_DATA_DIR")
    values.setdefault("socket", default_socket())
    if "disk_reserve_mb" in values:
        try:
            values["disk_reserve_mb"] = int(str(values["disk_reserve_mb"]))
        except ValueError as error:
            raise BadConfig("disk_reserve_mb is a number of MiB") from error
    config = Config(**values)  # type: ignore[arg-type]
    if config.log != "embedded":
        raise BadConfig(f"log {config.log!r} is not known; this kernel has: embedded")
    if config.embedder not in ("minilm", "none") and not config.embedder.startswith(("http://", "https://")):
        raise BadConfig(f"embedder {config.embedder!r} is neither minilm, none nor a URL")
    if len(os.fsencode(config.socket)) > 107:
        raise BadConfig(
            f"the socket path {config.socket} is longer than the 107 bytes that Unix sockets allow; choose a shorter one"
        )
    if config.disk_reserve_mb < 0:
        raise BadConfig("disk_reserve_mb is a number of MiB, zero or more")
    return config
