"""The suite of format 1 against published vectors, and what tampering meets."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from memos_kernel import crypto
from memos_kernel.crypto import Undecryptable

KEY, LOG, ID = bytes(range(32)), b"l" * 16, b"p" * 16


def sealed(*chunks: bytes, key: bytes = KEY, log: bytes = LOG, payload: bytes = ID) -> list[bytes]:
    return list(crypto.seal_chunks(key, log, payload, chunks))


CHUNKS = (b"one", b"two", b"three")


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_chunks_open_to_what_was_sealed(chunks: list[bytes]) -> None:
    pieces = sealed(*chunks)
    assert len(pieces) == len(chunks)
    assert crypto.open_chunks(KEY, LOG, ID, pieces) == b"".join(chunks)


REORDERED = {
    "reorder": [1, 0, 2], "truncate": [0, 1], "first only": [0], "behead": [1, 2], "extend": [0, 1, 2, 2], "repeat": [0, 0, 2],
    "swap last": [0, 2, 1], "reverse": [2, 1, 0],
}  # fmt: skip


@pytest.mark.parametrize("order", REORDERED.values(), ids=REORDERED.keys())
def test_chunks_cannot_be_reordered_cut_or_extended(order: list[int]) -> None:
    pieces = sealed(*CHUNKS)
    with pytest.raises(Undecryptable):
        crypto.open_chunks(KEY, LOG, ID, [pieces[at] for at in order])


def test_no_byte_of_a_chunk_can_be_changed_lost_or_added() -> None:
    pieces = sealed(*CHUNKS)
    for at, piece in enumerate(pieces):
        flips = [piece[:n] + bytes([piece[n] ^ 1]) + piece[n + 1 :] for n in range(len(piece))]
        for wrong in (*flips, piece[:-1], piece[1:], piece + b"x", b"", piece + pieces[0]):
            with pytest.raises(Undecryptable):
                crypto.open_chunks(KEY, LOG, ID, [*pieces[:at], wrong, *pieces[at + 1 :]])
    for joined in ([*pieces, b""], [pieces[0] + pieces[1], pieces[2]]):
        with pytest.raises(Undecryptable):
            crypto.open_chunks(KEY, LOG, ID, joined)


@pytest.mark.parametrize("where", ["key", "log", "payload"])
def test_chunks_open_in_their_own_place_only(where: str) -> None:
    pieces = sealed(*CHUNKS)
    other = {"key": (b"k" * 32, LOG, ID), "log": (KEY, b"o" * 16, ID), "payload": (KEY, LOG, b"o" * 16)}[where]
    with pytest.raises(Undecryptable):
        crypto.open_chunks(*other, pieces)


def test_what_is_wrapped_opens_under_the_same_aad_only() -> None:
    cipher = AESGCM(KEY)
    data = crypto.wrap(cipher, bytes(12), b"secret", b"here")
    assert crypto.unwrap(cipher, data, b"here") == b"secret"
    for wrong, aad in ((data, b"there"), (data[:-1], b"here"), (b"", b"here"), (data[:12], b"here")):
        with pytest.raises(Undecryptable):
            crypto.unwrap(cipher, wrong, aad)


def test_hkdf_is_rfc_5869_s() -> None:
    """Test case 1, at 32 bytes."""
    made = crypto.subkey(b"\x0b" * 22, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), bytes(range(13)))
    assert made.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_signatures_are_rfc_8032_s() -> None:
    """Test 2 of section 7.1."""
    signer = crypto.Signer(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert signer.public_key.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = signer.sign(b"\x72")
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540")
    assert crypto.verify_signature(signer.public_key, signature, b"\x72")
    for key, mark, data in (
        (signer.public_key, signature, b"\x73"), (signer.public_key, bytes(64), b"\x72"), (bytes(32), signature, b"\x72"),
        (b"short", signature, b"\x72"), (signer.public_key, b"short", b"\x72"),
    ):  # fmt: skip
        assert not crypto.verify_signature(key, mark, data)


def rfc_6962(leaves: list[bytes]) -> bytes:
    """The tree head as section 2.1 defines it: split at the largest power of two below the length."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + rfc_6962(leaves[:split]) + rfc_6962(leaves[split:])).digest()


@pytest.mark.parametrize("count", [*range(20), 31, 32, 33, 1023, 1024, 1025])
def test_the_merkle_root_is_rfc_6962_s(count: int) -> None:
    leaves = [crypto.sha256(n.to_bytes(4, "big")) for n in range(count)]
    assert crypto.merkle_root(leaves) == rfc_6962(leaves)


@given(st.data())
def test_a_path_leads_from_its_own_leaf_to_the_root_and_from_no_other(data: st.DataObject) -> None:
    leaves = [crypto.sha256(n.to_bytes(4, "big")) for n in range(data.draw(st.integers(1, 70)))]
    at = data.draw(st.integers(0, len(leaves) - 1))
    path, root = crypto.merkle_path(leaves, at), crypto.merkle_root(leaves)
    assert crypto.merkle_climb(leaves[at], path) == root and len(path) <= (len(leaves) - 1).bit_length()
    assert all(crypto.merkle_climb(leaf, path) != root for leaf in leaves if leaf != leaves[at])
    for cut in range(1, len(path) + 1):
        # An inner node of the tree, passed off as a leaf.
        inner = crypto.sha256(b"\0" + leaves[at])
        for left, neighbour in path[:cut]:
            inner = crypto.sha256(b"\1" + (neighbour + inner if left else inner + neighbour))
        assert crypto.merkle_climb(inner, path[cut:]) != root
    for flipped in range(len(path)):
        left, neighbour = path[flipped]
        assert crypto.merkle_climb(leaves[at], [*path[:flipped], (not left, neighbour), *path[flipped + 1 :]]) != root


def test_the_digest_of_a_row_is_shake_128() -> None:
    from memos_kernel.state import row_hash

    assert row_hash(b"row") == int.from_bytes(hashlib.shake_128(b"row").digest(512), "little")
