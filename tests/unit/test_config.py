"""Settings: the command line over the environment over the file over the defaults, and what is refused."""

from __future__ import annotations

import subprocess
import sys
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
        (
            ["--data-dir", "d", "--log", "kafka"],
            {},
            "log 'kafka' is not known; this kernel has: embedded, kafka://HOST:PORT[,HOST:PORT…]/TOPIC",
        ),
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


KAFKA = ("--data-dir", "d", "--log", "kafka://one:9092,two:9092/memos")
SECRET = "hunter2hunter2"


def private(path: Path, text: str, mode: int = 0o600) -> str:
    file = path / "kafka.properties"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before the client is looked for; the rest needs it, or a stand-in for its presence."""

    def find(_name: str) -> object:
        return object()

    monkeypatch.setattr("importlib.util.find_spec", find)


def refusal(*words: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(BadConfig) as error:
        loaded(*words, env=env)
    assert SECRET not in str(error.value) and SECRET not in repr(error.value)
    return str(error.value)


@pytest.mark.usefixtures("client")
def test_a_log_on_kafka_is_a_link() -> None:
    config = loaded(*KAFKA, "--standby", "--no-create-topics", "--reads-when-isolated")
    assert config.link is not None
    assert (config.link.brokers, config.link.topic) == ("one:9092,two:9092", "memos")
    assert config.standby and config.no_create_topics and config.reads_when_isolated
    assert loaded("--data-dir", "d").link is None


@pytest.mark.usefixtures("client")
def test_kafka_s_settings_are_merged_and_never_shown(tmp_path: Path) -> None:
    table = "[kafka]\nsasl.mechanism = 'PLAIN'\nclient.id = 'file'\nsocket.timeout.ms = 1000\nenable.random.seed = true\n"
    file = toml(tmp_path, f"log = 'kafka://h:1/t'\nkafka_config = '{tmp_path}/kafka.properties'\n{table}")
    lines = f"# the broker's\n\n! and ours\n sasl.password = {SECRET}=1 \nclient.id=properties\nclient.dns.lookup=x"
    path = private(tmp_path, lines)
    words = ("--data-dir", "d", "--config", file, "--kafka-option", "client.id=line", "--kafka-option", "debug = broker,all")
    config = loaded(*words)
    assert config.kafka_config == Path(path)
    assert dict(config.kafka) == {
        "sasl.mechanism": "PLAIN", "client.id": "line", "socket.timeout.ms": "1000", "enable.random.seed": "true",
        "sasl.password": f"{SECRET}=1", "client.dns.lookup": "x", "debug": "broker,all",
    }  # fmt: skip
    assert config.link is not None and config.link.options == config.kafka
    assert SECRET not in f"{config!r} {config} {config.link!r} {config.link}"
    assert loaded(*KAFKA, env={"MEMOS_KAFKA_CONFIG": path}).kafka["client.id"] == "properties"


def test_a_file_of_secrets_is_its_owner_s_alone(tmp_path: Path) -> None:
    for mode in (0o640, 0o604, 0o620):
        path = private(tmp_path, f"sasl.password={SECRET}", mode)
        assert f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}" in refusal(*KAFKA, "--kafka-config", path)
        assert "can be read by others" in refusal(*KAFKA, env={"MEMOS_KAFKA_CONFIG": path})
    file = toml(tmp_path, f"[kafka]\nsasl.password = '{SECRET}'\nssl.key.location = '/k'")
    Path(file).chmod(0o644)
    assert f"{file} holds sasl.password and can be read by others (mode 644)" in refusal(*KAFKA, "--config", file)


@pytest.mark.usefixtures("client")
def test_a_private_toml_file_may_hold_a_secret(tmp_path: Path) -> None:
    file = toml(tmp_path, f"[kafka]\nsasl.password = '{SECRET}'")
    Path(file).chmod(0o600)
    assert loaded(*KAFKA, "--config", file).kafka == {"sasl.password": SECRET}


@pytest.mark.parametrize("name", ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
def test_a_secret_does_not_stand_on_a_command_line(name: str) -> None:
    says = f"put {name} into a file, and pass that with --kafka-config"
    assert says in refusal(*KAFKA, "--kafka-option", f"{name}={SECRET}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"a=b\n{SECRET}\n", "line 2: not of the form NAME=VALUE"), (f"={SECRET}", "line 1: not of the form NAME=VALUE"),
        (f"a=b\n#\na={SECRET}", "line 3: a is set twice"), (f"acks={SECRET}", "the Kafka setting acks is the log's own"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_kafka_s_file_is_named_by_its_number(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(*KAFKA, "--kafka-config", private(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (f"kafka = '{SECRET}'", "kafka is of the wrong kind"), (f"[kafka]\na.b = ['{SECRET}']", "a.b of [kafka] is of the"),
        (f"[kafka]\nacks = '{SECRET}'", "the Kafka setting acks is the log's own"), (f"[kafka]\na = {SECRET}", "cannot read"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_kafka_is_refused(tmp_path: Path, table: str, says: str) -> None:
    assert says in refusal(*KAFKA, "--config", toml(tmp_path, table))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*KAFKA, "--kafka-option", SECRET), "--kafka-option takes NAME=VALUE"),
        ((*KAFKA, "--kafka-option", f"isolation.level={SECRET}"), "the Kafka setting isolation.level is the log's own"),
        ((*KAFKA, "--kafka-config", "/nowhere/kafka.properties"), "cannot read the Kafka settings /nowhere/kafka.properties"),
        ((*KAFKA, "--read-only"), "--read-only is for the embedded log; to follow a Kafka log and append nothing, pass"),
        (("--data-dir", "d", "--standby"), "--standby: only for a log on Kafka; pass --log kafka://HOST:PORT"),
        (("--data-dir", "d", "--reads-when-isolated"), "--reads-when-isolated: only for a log on Kafka"),
        (("--data-dir", "d", "--no-create-topics"), "--no-create-topics: only for a log on Kafka"),
        (("--data-dir", "d", "--kafka-option", f"client.id={SECRET}"), "Kafka settings: only for a log on Kafka"),
        (("--data-dir", "d", "--log", "kafka://h:1"), "'kafka://h:1' is not of the form kafka://HOST:PORT"),
        (("--data-dir", "d", "--log", f"kafka://me:{SECRET}@h:1/t"), "names and passwords go into the file of --kafka-config"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], says: str) -> None:
    assert says in refusal(*words)


def test_without_the_kafka_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert "pip install 'memos-kernel[kafka]'" in refusal(*KAFKA)


def test_an_embedded_log_starts_without_the_kafka_client() -> None:
    source = (
        "import sys; from memos_kernel.config import load, parser;"
        "load(parser().parse_args(['--data-dir', 'd']), {}); sys.exit('confluent_kafka' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
