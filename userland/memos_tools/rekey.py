"""rekey: every wrapped key of a stopped directory, rewrapped in place under a new master key.

In place, because a copy would leave the old wrapped keys in free space, where a later erasure does not reach them. Safe
against a crash: each slot of 128 bytes carries the id of the key that wraps it and is written whole, and the headers come
last. So a run that was interrupted leaves slots of either kind, and a second run with the same two keys finishes it. Until
then the kernel refuses nothing it should serve but cannot open the rewrapped slots: finish before starting it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memos_kernel import crypto, masterkey
from memos_kernel.events import Damaged
from memos_kernel.keystore import (
    HEADER_BYTES,
    LIVE,
    SLOT,
    SLOT_BYTES,
    SLOTS_AT,
    Header,
    pack_header,
    unpack_header,
    wrapping_cipher,
    wrapping_key_id,
)

from . import offline
from .offline import Keys
from .output import GOOD, Output, Trouble
from .render import Line

READ_SLOTS = 1024


class Master(NamedTuple):
    """A master key with what it wraps by."""

    key_id: bytes
    cipher: AESGCM

    @staticmethod
    def of(key: bytes) -> Master:
        return Master(wrapping_key_id(key), wrapping_cipher(key))


def command(arguments: argparse.Namespace, out: Output) -> int:
    path: Path = arguments.dir
    offline.check_directory(path)
    new_file: Path = arguments.new_key_file
    old_file: Path = arguments.key_file or path / "master.key"
    with offline.locked(path):
        old = offline.master_key(path, Keys(arguments.key_file))
        if new_file.exists() and old_file.exists() and new_file.samefile(old_file):
            raise Trouble("the new key file is the old one; name another file, which is made when it does not exist")
        new = _new_key(new_file)
        changed = 0
        for name in ("segments", "slots"):
            changed += rewrap(path / "keys" / name, Master.of(old), Master.of(new))
    verdict = f"{changed} keys rewrapped" if changed else "everything was wrapped by the new key already"
    out.show(
        {"rewrapped": changed, "new_key_file": str(new_file)},
        Line(f"{verdict}; check it: memctl verify {path} --key-file {new_file}", "green"),
        Line(f"start memosd with --master-key-file {new_file}, or put that file in the place of {old_file}"),
        Line("keep a copy of the new key elsewhere, then destroy the old key and every copy of it", "yellow"),
    )
    return GOOD


def _new_key(path: Path) -> bytes:
    """The key in the file; a new one when the file does not exist."""
    if not path.exists():
        try:
            return masterkey.create(path)
        except OSError as error:
            raise Trouble(f"cannot make the new key file: {error}") from error
    kept = os.environ.pop(masterkey.VARIABLE, None)
    try:
        key = masterkey.read(path)
    except (masterkey.NoKey, OSError) as error:
        raise Trouble(str(error)) from error
    finally:
        if kept is not None:
            os.environ[masterkey.VARIABLE] = kept
    assert key is not None, "the file exists"
    return key


def rewrap(path: Path, old: Master, new: Master) -> int:
    """Rewrap one key file; how many keys still were under the old one."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Trouble(f"cannot open {path}: {error}; restore the key store from its backup") from error
    try:
        header = _header(fd, path)
        if header.wrapping_key_id not in (old.key_id, new.key_id):
            raise Trouble(f"neither the old nor the new key opens {path}; name the key that memosd uses with --key-file")
        try:
            # First prove that every key opens, so that a wrong key or a damaged slot changes nothing.
            _slots(fd, header, old, new, write=False)
            changed = _slots(fd, header, old, new, write=True)
            if header.wrapping_key_id == old.key_id:
                _headers(fd, header, old, new)
        except crypto.Undecryptable as error:
            raise Trouble(f"{path} does not open with the old key; restore the key store from its backup") from error
    finally:
        os.close(fd)
    return changed


def _header(fd: int, path: Path) -> Header:
    try:
        found = [h for copy in (0, 1) if (h := unpack_header(os.pread(fd, HEADER_BYTES, copy * HEADER_BYTES)))]
    except Damaged as error:
        raise Trouble(f"the header of {path} is damaged: {error}; restore the key store from its backup") from error
    if not found:
        raise Trouble(f"both headers of {path} are damaged; restore the key store from its backup")
    return max(found, key=lambda header: header.generation)


def _slots(fd: int, header: Header, old: Master, new: Master, *, write: bool) -> int:
    """Rewrap, or only try to, each live slot that the old key wraps."""
    aad = crypto.aad_of(header.log_id, b"")
    size, changed = os.fstat(fd).st_size, 0
    for start in range(SLOTS_AT, size, READ_SLOTS * SLOT_BYTES):
        data = os.pread(fd, READ_SLOTS * SLOT_BYTES, start)
        for at in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
            state, fmt, epoch, n, key_id, wrapped = SLOT.unpack_from(data, at)
            if state != LIVE or key_id == new.key_id:
                continue
            place = aad + epoch.to_bytes(8, "big") + n.to_bytes(8, "big")
            key = crypto.unwrap(old.cipher, wrapped, place)
            changed += 1
            if write:
                again = crypto.wrap(new.cipher, os.urandom(crypto.NONCE_BYTES), key, place)
                os.pwrite(fd, SLOT.pack(LIVE, fmt, epoch, n, new.key_id, again), start + at)
    if write:
        os.fsync(fd)
    return changed


def _headers(fd: int, header: Header, old: Master, new: Master) -> None:
    """Both copies, one after the other: the newest stays whole whenever this stops."""
    aad = crypto.aad_of(header.log_id, b"")

    def again(wrapped: bytes, what: bytes) -> bytes:
        return crypto.wrap(
            new.cipher, os.urandom(crypto.NONCE_BYTES), crypto.unwrap(old.cipher, wrapped, aad + what), aad + what
        )

    header = header._replace(
        wrapping_key_id=new.key_id,
        wrapped_seed=again(header.wrapped_seed, b"signing seed"),
        wrapped_secret=again(header.wrapped_secret, b"log secret"),
    )
    for step in (1, 2):
        newer = header._replace(generation=header.generation + step)
        os.pwrite(fd, pack_header(newer), newer.generation % 2 * HEADER_BYTES)
        os.fsync(fd)
