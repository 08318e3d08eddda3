"""Settings: the command line over the environment over the file over the defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from memos_kernel.config import BadConfig, Config, default_socket, load, parser
from memos_syscalls import limits


def loaded(*words: str, env: dict[str, str] | None = None) -> Config:
    return load(parser().parse_args(list(words)), env or {})


def toml(path: Path, text: str) -> str:
    file = path / "memosd.toml"
    file.write_text(text)
    return str(file)


def test_defaults_need_a_data_directory_alone() -> None:
    config = loaded("--data-dir", "data")
    assert config.data_dir == Path("data").absolute() and config.socket == default_socket()
    assert (config.log, config.embedder, config.read_only, config.log_level) == ("embedded", "minilm", False, "info")
    assert config.disk_reserve_mb * limits.MIB == limits.DISK_RESERVE_BYTES_DEFAULT
    assert config.key_path == config.data_dir / "master.key"


def test_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = toml(tmp_path, 'data_dir = "from-file"\nembedder = "none"\nlog_level = "debug"\ndisk_reserve_mb = 1\n')
    env = {"MEMOS_DATA_DIR": "from-env", "MEMOS_DISK_RESERVE_MB": "2"}
    config = loaded("--config", file, "--disk-reserve-mb", "3", env=env)
    assert (config.data_dir.name, config.disk_reserve_mb, config.embedder, config.log_level) == ("from-env", 3, "none", "debug")
    assert loaded("--config", file, "--data-dir", "line", env=env).data_dir.name == "line"
    assert loaded("--config", file).data_dir.name == "from-file"
    assert loaded(env={**env, "MEMOS_CONFIG": file}).embedder == "none"


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_flags_of_the_environment_are_true_or_false(text: str, expected: bool) -> None:
    assert loaded("--data-dir", "d", env={"MEMOS_READ_ONLY": text}).read_only is expected


def test_a_flag_of_the_line_wins() -> None:
    assert loaded("--data-dir", "d", "--read-only", env={"MEMOS_READ_ONLY": "0"}).read_only


def test_paths_are_made_absolute_at_once() -> None:
    config = loaded("--data-dir", "d", "--socket", "s", "--master-key-file", "k")
    assert all(path.is_absolute() for path in (config.data_dir, config.socket, config.key_path))


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        ([], {}, "no data directory: pass --data-dir"),
        (["--data-dir", "d", "--log", "kafka"], {}, "log 'kafka' is not known; this kernel has: embedded"),
        (["--data-dir", "d", "--embedder", "ftp://x"], {}, "neither minilm, none nor a URL"),
        (["--data-dir", "d", "--socket", "/" + "s" * 107], {}, "107 bytes"),
        (["--data-dir", "d", "--disk-reserve-mb", "-1"], {}, "zero or more"),
        (["--data-dir", "d"], {"MEMOS_DISK_RESERVE_MB": "much"}, "number of MiB"),
        (["--data-dir", "d"], {"MEMOS_READ_ONLY": "maybe"}, "read_only is true or false, not 'maybe'"),
        (["--data-dir", "d", "--config", "/nowhere/memosd.toml"], {}, "cannot read the configuration file"),
    ],
)
def test_a_wrong_setting_is_refused_and_says_what_it_may_be(words: list[str], env: dict[str, str], says: str) -> None:
    with pytest.raises(BadConfig) as error:
        loaded(*words, env=env)
    assert says in str(error.value)


def test_a_socket_path_of_107_bytes_is_the_longest() -> None:
    assert len(str(loaded("--data-dir", "d", "--socket", "/" + "s" * 106).socket)) == 107


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data_dir = 'd'\ncolour = 1", "unknown settings colour; known are data_dir"), ("data_dir = ", "cannot read"),
        ("data_dir = 'd'\nread_only = 'perhaps'", "true or false"), ("data_dir = 'd'\ndisk_reserve_mb = 'x'", "number of MiB"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        loaded("--config", toml(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["read_only = 7", "log_level = 'loud'", "embedder = 3", "group = 5", "disk_reserve_mb = true", "accept_clock = 'yes'"],
)
def test_a_file_s_values_are_of_the_right_kind(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadConfig):
        loaded("--config", toml(tmp_path, f"data_dir = 'd'\n{text}"))


def test_a_level_of_the_environment_is_one_that_there_is() -> None:
    with pytest.raises(BadConfig):
        loaded("--data-dir", "d", env={"MEMOS_LOG_LEVEL": "loud"})
