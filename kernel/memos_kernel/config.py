"""One frozen configuration: command line over environment (`MEMOS_*`) over a TOML file over defaults.

Kafka's own settings come from `--kafka-option` over the file of `--kafka-config` over the TOML file's `[kafka]` table. Any of
them may be a secret: no message here shows a value, and secrets are refused where others could read them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from memos_syscalls import limits

from .eventlog.link import FORM, SCHEME, BadLink, Link

LOG_LEVELS = ("debug", "info", "warning", "error")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    reranker: Path | None = None
    """A directory with a cross-encoder: `model.onnx` and `tokenizer.json`."""
    model: tuple[str, ...] = ("smollm2",)
    """Language models, the first one the default: `smollm2`, a directory, a .gguf file, a Hugging Face id; empty for none."""
    model_cache: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    host_threads: int = 0
    """Threads of the driver host on a CPU; 0 for as many as torch takes."""
    device_tier_mb: int = 1024
    host_tier_mb: int | None = None
    """Memory for decrypted payloads; None for a quarter of the machine's, at most 8 GiB."""
    group: str | None = None
    master_key_file: Path | None = None
    disk_reserve_mb: int = limits.DISK_RESERVE_BYTES_DEFAULT // limits.MIB
    read_only: bool = False
    accept_clock: bool = False
    rebuild_indexes: bool = False
    log_level: str = "info"
    kafka: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, hash=False)
    """librdkafka's settings: secrets among them."""
    kafka_config: Path | None = None
    standby: bool = False
    no_create_topics: bool = False
    reads_when_isolated: bool = False
    take_over: bool = False

    @property
    def link(self) -> Link | None:
        """Where the log's topics are; None for the embedded log."""
        return Link.parse(self.log, self.kafka) if self.log.startswith(SCHEME) else None

    @property
    def model_cache_path(self) -> Path:
        """Where converted models lie, with their fingerprints."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.model_cache or cache / "memos" / "models"

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
    p.add_argument("--log", help=f"event log: embedded (default), or {FORM}")
    p.add_argument("--kafka-config", type=Path, help="file of Kafka settings, NAME=VALUE lines; for secrets: mode 0600")
    p.add_argument("--kafka-option", action="append", metavar="NAME=VALUE", help="one Kafka setting; may be repeated")
    p.add_argument("--no-create-topics", action="store_true", default=None, help="refuse to start when a topic is missing")
    p.add_argument("--standby", action="store_true", default=None, help="follow the log, take over when its writer is gone")
    p.add_argument(
        "--reads-when-isolated", action="store_true", default=None, help="answer reads, old perhaps, while Kafka is away"
    )
    p.add_argument("--embedder", help="minilm (default), none, or the base URL of an OpenAI-compatible endpoint")
    p.add_argument("--embedder-model", help="model name for an embedding endpoint")
    p.add_argument("--embedder-key-env", help="environment variable that holds the endpoint's key")
    p.add_argument("--reranker", type=Path, help="directory of a cross-encoder (model.onnx, tokenizer.json), for searches")
    p.add_argument("--model", action="append", metavar="NAME_OR_PATH",
                   help="language model: smollm2 (default), a directory, a .gguf file, an id in the Hugging Face cache; may be "
                   "repeated; none for none")  # fmt: skip
    p.add_argument("--model-cache", type=Path, help="where converted models lie (default: ~/.cache/memos/models)")
    p.add_argument("--device", choices=DEVICES, help="where models run: auto (default), cpu or cuda")
    p.add_argument("--dtype", choices=DTYPES, help="what models compute in: auto (default) is float32 on a CPU, else bfloat16")
    p.add_argument("--host-threads", type=int, help="threads of the driver host (default: as many as torch takes)")
    p.add_argument("--device-tier-mb", type=int, help="KV caches kept on the device (default: 1024)")
    p.add_argument("--host-tier-mb", type=int, help="payloads kept in memory (default: a quarter of it, at most 8192)")
    p.add_argument("--group", help="open the socket to this group (mode 0660) instead of its owner alone")
    p.add_argument("--master-key-file", type=Path, help="where the master key lies (default: DATA_DIR/master.key)")
    p.add_argument("--disk-reserve-mb", type=int, help="free space below which writes are refused (default: 256)")
    p.add_argument("--read-only", action="store_true", default=None, help="serve what is there, append nothing")
    p.add_argument("--accept-clock", action="store_true", default=None, help="start although the clock disagrees with the log")
    p.add_argument(
        "--take-over", action="store_true", default=None, help="write to a copy of a log though its source may go on, too"
    )
    p.add_argument("--rebuild-indexes", action="store_true", default=None, help="drop the search indexes and make them anew")
    p.add_argument("--log-level", choices=LOG_LEVELS)
    p.add_argument("--check", action="store_true", help="check the configuration and exit")
    return p


_PATHS = ("data_dir", "socket", "master_key_file", "kafka_config", "model_cache", "reranker")
_NUMBERS = {"disk_reserve_mb": "MiB", "device_tier_mb": "MiB", "host_tier_mb": "MiB", "host_threads": "threads"}
_FLAGS = ("read_only", "accept_clock", "rebuild_indexes", "standby", "no_create_topics", "reads_when_isolated", "take_over")
_SECRET = re.compile(r"password|passphrase|secret|credential|key\.pem$|oauthbearer\.config$|jaas", re.IGNORECASE)
_EXTRA = "--log kafka:// needs the Kafka client: pip install 'memos-kernel[kafka]'"


def load(arguments: argparse.Namespace, environment: dict[str, str]) -> Config:
    """The configuration, or `BadConfig`."""
    values: dict[str, object] = {}
    names = list(Config.__dataclass_fields__)
    path = arguments.config or environment.get("MEMOS_CONFIG")
    kafka: dict[str, str] = {}
    if path:
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadConfig(f"cannot read the configuration file {path}: {error}") from error
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise BadConfig(f"{path}: unknown settings {', '.join(unknown)}; known are {', '.join(names)}")
        kafka |= _flat(found.pop("kafka", {}), path)
        if (secrets := _secrets(kafka)) and (mode := _open_to_others(Path(path))):
            raise BadConfig(f"{path} holds {secrets} and can be read by others (mode {mode:o}); run: chmod 600 {path}")
        values |= found
    for name in names:
        if name == "kafka":
            continue
        if (text := environment.get(f"MEMOS_{name.upper()}")) is not None:
            values[name] = text
        if (given := getattr(arguments, name, None)) is not None:
            values[name] = given
    config = _checked(values)
    if config.kafka_config:
        kafka |= kafka_settings(config.kafka_config)
    kafka |= _options(arguments.kafka_option or ())
    return _with_log(config, kafka)


def _flat(table: object, where: object) -> dict[str, str]:
    """The `[kafka]` table. TOML reads `sasl.username = …` as a table in a table: the dots are put back."""

    def walk(found: object, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(found, dict):
            for key, value in found.items():
                yield from walk(value, f"{name}.{key}" if name else str(key))
        elif not name or not isinstance(found, (bool, int, float, str)):
            raise BadConfig(f"{where}: {f'{name} of [kafka]' if name else 'kafka'} is of the wrong kind")
        else:
            yield name, str(found).lower() if isinstance(found, bool) else str(found)

    return dict(walk(table, ""))


def kafka_settings(path: Path) -> dict[str, str]:
    """The settings of `--kafka-config`."""
    try:
        if mode := _open_to_others(path):
            raise BadConfig(f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadConfig(f"cannot read the Kafka settings {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise BadConfig(f"cannot read the Kafka settings {path}: not UTF-8 text") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()) or line[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise BadConfig(f"{path}, line {number}: not of the form NAME=VALUE")
        if name.strip() in found:
            raise BadConfig(f"{path}, line {number}: {name.strip()} is set twice")
        found[name.strip()] = value.strip()
    return found


def _options(words: list[str] | tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise BadConfig("--kafka-option takes NAME=VALUE")
        found[name.strip()] = value.strip()
    if secrets := _secrets(found):
        raise BadConfig(f"a command line can be read by others: put {secrets} into a file, and pass that with --kafka-config")
    return found


def _secrets(settings: Mapping[str, str]) -> str:
    """The names of the settings that are secret by their names; paths to secrets are none."""
    return ", ".join(sorted(name for name in settings if _SECRET.search(name) and not name.endswith(".location")))


def _open_to_others(path: Path) -> int:
    """The mode of a regular file that others may read or write, else 0."""
    found = path.stat().st_mode
    return stat.S_IMODE(found) if stat.S_ISREG(found) and stat.S_IMODE(found) & 0o077 else 0


def _with_log(config: Config, kafka: dict[str, str]) -> Config:
    """The configuration with its log's settings, when they go together."""
    if config.log.startswith(SCHEME):
        if config.read_only:
            raise BadConfig("--read-only is for the embedded log; to follow a Kafka log and append nothing, pass --standby")
        try:
            Link.parse(config.log, kafka)
        except BadLink as error:
            raise BadConfig(str(error)) from None
        if importlib.util.find_spec("confluent_kafka") is None:
            raise BadConfig(_EXTRA)
        return replace(config, kafka=MappingProxyType(kafka))
    if config.log != "embedded":
        raise BadConfig(f"log {config.log!r} is not known; this kernel has: embedded, {FORM}")
    given = {
        "--standby": config.standby, "--reads-when-isolated": config.reads_when_isolated,
        "--no-create-topics": config.no_create_topics, "--kafka-config": config.kafka_config is not None,
        "Kafka settings": bool(kafka),
    }  # fmt: skip
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise BadConfig(f"{', '.join(wrong)}: only for a log on Kafka; pass --log {FORM}, or leave it out")
    return config


def _checked(values: dict[str, object]) -> Config:
    if "model" in values:
        values["model"] = _models(values["model"])
    for name, value in values.items():
        wanted: tuple[type, ...] = (bool, str) if name in _FLAGS else (int, str) if name in _NUMBERS else (str, Path, tuple)
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
    for name, unit in _NUMBERS.items():
        if name in values:
            try:
                values[name] = int(str(values[name]))
            except ValueError as error:
                raise BadConfig(f"{name} is a number of {unit}") from error
    for name, known in (("device", DEVICES), ("dtype", DTYPES)):
        if values.get(name, "auto") not in known:
            raise BadConfig(f"{name} is one of {', '.join(known)}, not {values[name]!r}")
    config = Config(**values)  # type: ignore[arg-type]
    if config.embedder not in ("minilm", "none") and not config.embedder.startswith(("http://", "https://")):
        raise BadConfig(f"embedder {config.embedder!r} is neither minilm, none nor a URL")
    if len(os.fsencode(config.socket)) > 107:
        raise BadConfig(
            f"the socket path {config.socket} is longer than the 107 bytes that Unix sockets allow; choose a shorter one"
        )
    for name, unit in _NUMBERS.items():
        if (getattr(config, name) or 0) < 0:
            raise BadConfig(f"{name} is a number of {unit}, zero or more")
    return config


def _models(given: object) -> tuple[str, ...]:
    """Names of models: a list, or one text with commas."""
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadConfig("model is the name or path of a language model, or a list of them")
    found = tuple(dict.fromkeys(str(name).strip() for name in names))
    if "none" in found:
        if len(found) > 1:
            raise BadConfig('model "none" stands alone')
        return ()
    return found
