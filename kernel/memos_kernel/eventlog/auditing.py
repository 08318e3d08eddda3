"""Which messages of a partition count, for a reader who has no key but the log's public one.

Without the MAC key a forged frame looks like a true one. But every second or so a signed checkpoint names the head before
it, so of several branches the true one is that which a checkpoint signs. What no checkpoint covers yet is *unproven*.

- A frame joins the branch whose head it continues, if its claim is the one in force there: the last that counts, by the rule
  of counting.py, of the claims that came between.
- A checkpoint whose signature is right and whose head is the one before it on its branch proves every frame before the one
  that holds it. That frame itself waits for the next: somebody may have added to its end.
- Once a branch is proven the others are forgotten, and `forged` counts them.

Pure. Memory is that of the frames since the last checkpoint; more than `PENDING_MAX` is an attack and refused.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .. import crypto
from .. import events as ev
from ..events import Checkpoint, Claim, Damaged, Frame, claim_signature_ok, decode_frame, decode_record
from .counting import KNOWN_HEADS_MAX, decode
from .writer import Address, Message

PENDING_MAX: Final = 65_536


class Node(NamedTuple):
    """A frame on a branch, and the head after it."""

    at: int
    """The how-manieth message this is."""
    seq: int
    hash: bytes
    epoch: int
    claim_id: bytes | None
    parent: bytes | None
    address: Address | None
    data: bytes


class Proven(NamedTuple):
    """A claim or frame that counts, and the head after it."""

    address: Address
    data: bytes
    message: Claim | Frame
    seq: int
    hash: bytes


class PublicCounting:
    """Feed it with `take`; it hands out what is proven. `log_id` and `public_key` may be left to the first claim."""

    def __init__(self, log_id: bytes | None = None, public_key: bytes | None = None) -> None:
        self.log_id = log_id
        self.public_key = public_key
        self.forged = 0
        self.problems: list[tuple[int, str]] = []
        """Topic offset and what is wrong there."""
        root = Node(-1, -1, crypto.ZERO_HASH, 0, None, None, None, b"")
        self._proven = root
        self._nodes: dict[bytes, Node] = {root.hash: root}
        self._claims: list[tuple[int, Address, bytes, Claim]] = []
        self._told: set[bytes] = set()
        """Claims that were handed out."""
        self._count = 0

    def take(self, message: Message) -> list[Proven]:
        """The next message; returns what it proves, in order."""
        self._count += 1
        try:
            found = decode(message.data)
        except Damaged as error:
            self.problems.append((message.offset, str(error)))
            return []
        if isinstance(found, Claim):
            self._take_claim(message, found)
        elif isinstance(found, Frame) and found.log_id == self.log_id and found.records:
            return self._take_frame(message, found)
        return []

    def _take_claim(self, message: Message, claim: Claim) -> None:
        if self.public_key is None and claim.genesis_hash is not None:
            self.log_id, self.public_key = self.log_id or claim.log_id, claim.public_key
        genuine = (
            claim.log_id == self.log_id and claim.public_key == self.public_key
            and claim_signature_ok(claim.public_key, message.data)
        )  # fmt: skip
        if not genuine:
            self.problems.append((message.offset, "is a claim that the log's key did not sign"))
        elif all(known.claim_id != claim.claim_id for _at, _where, _data, known in self._claims):
            self._claims.append((self._count, Address.of(message), message.data, claim))

    def _between(self, node: Node) -> list[tuple[Address, bytes, Claim]]:
        """The claims that count after a node, up to now."""
        epoch, heads = node.epoch, self._heads(node)
        found: list[tuple[Address, bytes, Claim]] = []
        for at, address, data, claim in self._claims:
            if at > node.at and claim.epoch > epoch and claim.known_head in heads:
                epoch, heads = claim.epoch, {node.hash}
                found.append((address, data, claim))
        return found

    def _heads(self, node: Node) -> set[bytes]:
        """Frame ends of a node's epoch, and the head at which it began."""
        heads = {node.hash}
        here: Node | None = node
        while here is not None and len(heads) <= KNOWN_HEADS_MAX:
            heads.add(here.hash)
            if here.epoch != node.epoch:
                break
            here = self._nodes.get(here.parent) if here.parent is not None else None
        return heads

    def _take_frame(self, message: Message, frame: Frame) -> list[Proven]:
        before = self._nodes.get(frame.prev_hash)
        if before is None or frame.first_seq != before.seq + 1:
            return self._astray(message, frame)
        claims = self._between(before)
        in_force = (claims[-1][2].epoch, claims[-1][2].claim_id) if claims else (before.epoch, before.claim_id)
        if (frame.epoch, frame.claim_id) != in_force:
            return self._astray(message, frame)
        hash_ = frame.prev_hash
        signed = False
        for raw in frame.records:
            signed = signed or (b"\xaa" + ev.CHECKPOINT.encode() in raw and self._signs(raw, hash_))
            hash_ = crypto.record_hash(hash_, raw)
        if len(self._nodes) > PENDING_MAX:
            raise Damaged(f"the topic holds {PENDING_MAX} frames that no signed checkpoint covers: somebody floods it")
        node = Node(
            self._count, frame.first_seq + len(frame.records) - 1, hash_, frame.epoch, frame.claim_id, frame.prev_hash,
            Address.of(message), message.data,
        )  # fmt: skip
        proven = self._prove(before) if signed else []
        self._nodes.setdefault(hash_, node)
        return proven

    def _astray(self, message: Message, frame: Frame) -> list[Proven]:
        self.problems.append((message.offset, f"is a frame with records from {frame.first_seq} on that does not follow"))
        return []

    def _signs(self, raw: bytes, head: bytes) -> bool:
        """Whether a record is a checkpoint that the log's key signed over this head."""
        try:
            record = decode_record(raw)
        except Damaged:
            return False
        event = record.events[0] if record.events else None
        if event is None or event.name != ev.CHECKPOINT or self.public_key is None or self.log_id is None:
            return False
        found = Checkpoint(*event.fields)
        return found.head_hash == head and crypto.verify_signature(
            self.public_key, found.signature, found.signed_bytes(self.log_id)
        )

    def _branch(self, node: Node) -> list[Node]:
        """The frames from the last one proven to this one."""
        path: list[Node] = []
        while node.hash != self._proven.hash:
            path.append(node)
            node = self._nodes[node.parent or crypto.ZERO_HASH]
        return path[::-1]

    def _prove(self, node: Node) -> list[Proven]:
        path = self._branch(node)
        found = self._handed_out(path)
        if path:
            self.forged += len(self._nodes) - 1 - len(path)
            kept = self._epoch_of(node)
            self._nodes = {n.hash: n for n in kept}
            self._proven = node
        return found

    def _epoch_of(self, node: Node) -> list[Node]:
        """A node with those before it that a claim may still know as head."""
        kept = [node]
        while len(kept) <= KNOWN_HEADS_MAX and kept[-1].parent in self._nodes and kept[-1].epoch == node.epoch:
            kept.append(self._nodes[kept[-1].parent or b""]._replace(data=b""))
        return kept

    def _handed_out(self, path: list[Node]) -> list[Proven]:
        found: list[Proven] = []
        for node in path:
            before = self._nodes[node.parent or crypto.ZERO_HASH]
            frame = decode_frame(node.data)
            for address, data, claim in self._between(before):
                if claim.claim_id not in self._told and claim.epoch <= frame.epoch:
                    self._told.add(claim.claim_id)
                    found.append(Proven(address, data, claim, before.seq, before.hash))
            assert node.address is not None
            found.append(Proven(node.address, node.data, frame, node.seq, node.hash))
        return found

    def rest(self) -> list[Proven]:
        """What no checkpoint covers yet, if there is one branch of it only; the rest of the log is proven."""
        parents = {node.parent for node in self._nodes.values()}
        tips = [node for node in self._nodes.values() if node.hash not in parents and node.seq > self._proven.seq]
        if len(tips) != 1:
            return []
        return self._handed_out(self._branch(tips[0]))
