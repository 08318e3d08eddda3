"""The master key: who may read its file, what a wrong one says, and that it leaves the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memos_kernel import masterkey
from memos_kernel.masterkey import VARIABLE, NoKey

HEX = "ab" * 32


def test_a_new_key_is_durable_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    key = masterkey.create(path)
    assert len(key) == 32 and path.stat().st_mode & 0o777 == 0o600
    assert masterkey.read(path) == key
    with pytest.raises(FileExistsError):
        masterkey.create(path)
    assert masterkey.read(path) == key


def test_the_variable_goes_first_and_is_gone_once_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "master.key"
    masterkey.create(path)
    monkeypatch.setenv(VARIABLE, HEX)
    assert masterkey.read(path) == bytes.fromhex(HEX)
    assert VARIABLE not in os.environ
    assert masterkey.read(path) != bytes.fromhex(HEX)


def test_a_wrong_variable_is_refused_and_gone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "s3cret-s3cret")
    with pytest.raises(NoKey, match=VARIABLE) as error:
        masterkey.read(tmp_path / "none")
    assert VARIABLE not in os.environ and "s3cret-s3cret" not in str(error.value), "what may be a key is not repeated"


def test_no_file_and_no_variable_is_no_key(tmp_path: Path) -> None:
    assert masterkey.read(tmp_path / "none") is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_reach_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    masterkey.create(path)
    path.chmod(mode)
    with pytest.raises(NoKey, match=f"mode {mode:o}.*chmod 600"):
        masterkey.read(path)


NO_KEY = [("", "0 bytes"), ("ab", "1 bytes"), (HEX + "00", "33 bytes"), ("zz" * 32, "not hexadecimal")]


@pytest.mark.parametrize(("text", "says"), NO_KEY)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "master.key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(NoKey, match=says):
        masterkey.read(path)


def test_what_a_crash_left_of_a_key_file_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.touch(mode=0o600)
    (tmp_path / "master.key.partial").write_text("ab")
    assert masterkey.read(path, new=True) is None, "for a directory that holds nothing yet"
    with pytest.raises(NoKey):
        masterkey.read(path)
    key = masterkey.create(path)
    assert masterkey.read(path, new=True) == masterkey.read(path) == key
    assert [found.name for found in tmp_path.iterdir()] == ["master.key"]


def test_a_new_key_has_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "master.key", list[str]()
    fsync = os.fsync

    def seen(fd: int) -> None:
        synced.append(f"{Path(os.readlink(f'/proc/self/fd/{fd}')).name} {path.exists()}")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", seen)
    masterkey.create(path)
    assert synced == ["master.key.partial False", f"{tmp_path.name} True"]


def test_blanks_around_a_key_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.touch(mode=0o600)
    path.write_text(f"  {HEX}\n\n")
    assert masterkey.read(path) == bytes.fromhex(HEX)
