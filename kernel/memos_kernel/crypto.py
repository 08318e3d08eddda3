"""The suite of format 1: SHA-256, HMAC-SHA-256, Ed25519, AES-256-GCM. No I/O, no random source.

Nonces and ids are handed in by the caller, who takes them from the operating system.

- payload up to one chunk: `nonce(12) ‖ AES-GCM(data key)`; larger: chunks of 512 KiB under
  HKDF(data key, payload_id), nonce = `counter(u64 BE) ‖ 0 0 0 ‖ last flag(u8)`
- AAD of a payload: `format(u8) ‖ log_id ‖ payload_id`; of a private part: `format ‖ log_id ‖ private_id`
- a payload's digest is SHA-256 over its ciphertext, chunks in order
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from memos_syscalls import limits

FORMAT: Final = 1
HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
ID_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
ZERO_HASH: Final = bytes(HASH_BYTES)
_FORMAT_BYTE: Final = bytes([FORMAT])


class Undecryptable(Exception):
    """The ciphertext, its key or its place is not what it claims to be."""


def sha256(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def record_hash(prev: bytes, record: bytes) -> bytes:
    """A record's place in the chain: H(prev_hash ‖ H(record bytes))."""
    return hashlib.sha256(prev + hashlib.sha256(record).digest()).digest()


def subkey(secret: bytes, purpose: bytes, salt: bytes = b"") -> bytes:
    """An HKDF-SHA-256 subkey for one purpose."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt or None, purpose).derive(secret)


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def mac_equal(a: bytes, b: bytes) -> bool:
    return hmac.compare_digest(a, b)


def wrap(cipher: AESGCM, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    return nonce + cipher.encrypt(nonce, data, aad)


def unwrap(cipher: AESGCM, data: bytes, aad: bytes) -> bytes:
    """The plaintext; raises `Undecryptable`."""
    try:
        return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], aad)
    except (InvalidTag, ValueError) as error:
        raise Undecryptable("wrong key, or damaged ciphertext") from error


def aad_of(log_id: bytes, part_id: bytes) -> bytes:
    return _FORMAT_BYTE + log_id + part_id


def _chunk_nonce(counter: int, last: bool) -> bytes:
    return counter.to_bytes(8, "big") + bytes((0, 0, 0, int(last)))


def seal_chunks(key: bytes, log_id: bytes, payload_id: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Ciphertext of a payload over one chunk, one piece per 512 KiB chunk of plaintext."""
    cipher = AESGCM(subkey(key, b"memos payload", payload_id))
    aad = aad_of(log_id, payload_id)
    counter, held = 0, b""
    for index, chunk in enumerate(chunks):
        if index:
            yield cipher.encrypt(_chunk_nonce(counter, False), held, aad)
            counter += 1
        held = chunk
    yield cipher.encrypt(_chunk_nonce(counter, True), held, aad)


def open_chunks(key: bytes, log_id: bytes, payload_id: bytes, chunks: list[bytes]) -> bytes:
    """The plaintext of a chunked payload; raises `Undecryptable`."""
    cipher = AESGCM(subkey(key, b"memos payload", payload_id))
    aad = aad_of(log_id, payload_id)
    try:
        return b"".join(cipher.decrypt(_chunk_nonce(i, i == len(chunks) - 1), chunk, aad) for i, chunk in enumerate(chunks))
    except (InvalidTag, ValueError) as error:
        raise Undecryptable("wrong key, or damaged ciphertext") from error


def open_pieces(key: bytes, log_id: bytes, payload_id: bytes, size: int, pieces: Iterable[bytes]) -> Iterator[memoryview]:
    """The plaintext of a payload of `size` bytes, piece by piece, each in the buffer that the next one overwrites; raises
    `Undecryptable`. Ids, places and the end of the payload are what was sealed, or a tag does not fit."""
    aad = aad_of(log_id, payload_id)
    chunked = is_chunked(size)
    cipher = AESGCM(subkey(key, b"memos payload", payload_id) if chunked else key)
    step = limits.PAYLOAD_CHUNK_BYTES
    buffer = memoryview(bytearray(min(size, step)))
    last = max(0, -(-size // step) - 1)
    for index, piece in enumerate(pieces):
        nonce = _chunk_nonce(index, index == last) if chunked else piece[:NONCE_BYTES]
        plain = buffer[: size - index * step if index == last else step]
        try:
            cipher.decrypt_into(nonce, piece if chunked else memoryview(piece)[NONCE_BYTES:], aad, plain)
        except (InvalidTag, ValueError) as error:
            raise Undecryptable("wrong key, or damaged ciphertext") from error
        yield plain


def is_chunked(plain_bytes: int) -> bool:
    return plain_bytes > limits.PAYLOAD_CHUNK_BYTES


class Signer:
    """The log's Ed25519 key."""

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


def verify_signature(public_key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _next_row(row: list[bytes]) -> list[bytes]:
    paired = [_node(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
    # An odd node is promoted unchanged; for these trees that equals RFC 6962's split at a power of two.
    return paired + row[len(row) & ~1 :]


def merkle_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 tree head over record hashes: leaf = H(0 ‖ hash), node = H(1 ‖ left ‖ right)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    row = [_leaf(leaf) for leaf in leaves]
    while len(row) > 1:
        row = _next_row(row)
    return row[0]


def merkle_path(leaves: list[bytes], at: int) -> list[tuple[bool, bytes]]:
    """The neighbours from leaf `at` up to the root: `(it stands to the left, its hash)`, lowest first."""
    row, path = [_leaf(leaf) for leaf in leaves], list[tuple[bool, bytes]]()
    while len(row) > 1:
        neighbour = at ^ 1
        if neighbour < len(row):
            path.append((neighbour < at, row[neighbour]))
        row, at = _next_row(row), at >> 1
    return path


def merkle_climb(leaf: bytes, path: list[tuple[bool, bytes]]) -> bytes:
    """The root that a leaf and its path give."""
    found = _leaf(leaf)
    for left, neighbour in path:
        found = _node(neighbour, found) if left else _node(found, neighbour)
    return found
