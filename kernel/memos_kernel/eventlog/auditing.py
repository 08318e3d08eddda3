"""Which messages of a partition count, for a reader who has no key but the log's public one.

Without the MAC key a forged frame looks like a true one. But every second or so a signed checkpoint names the head before
it, so of several branches the true one is that which a checkpoint signs. What no checkpoint covers yet is *unproven*.

- A frame joins the branch whose head it continues, if its claim is the one in force there: the last that counts, by the rule
  of counting.py, of the claims that came between; and if its records are of its epoch.
- A checkpoint whose signature is right and whose head is the one before it on its branch proves every record up to that head.
  Who sees them may put them into frames of his own, but later than the kernel did: of several frames that go on from one head
  with proven records, the first in the topic is the kernel's. It is handed out when all of its records are proven: somebody
  may have added to its end.
- Once a branch is proven the others are forgotten, and `forged` counts them.
- A frame that joins no branch is *loose*. Anybody can put it there, so it says nothing, unless a signed checkpoint covers it:
  then records before it are missing, and where the loose part begins the log is *torn*.

Pure. Memory is that of the frames since the last checkpoint; more than `PENDING_MAX` of them, or more than
`PENDING_BYTES_MAX`, is an attack and refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Final, NamedTuple

from memos_syscalls import limits

from .. import crypto
from .. import events as ev
from ..events import Checkpoint, Claim, Damaged, Frame, Record, claim_signature_ok, decode_frame, decode_record
from .counting import KNOWN_HEADS_MAX, Kind, Ping, decode
from .writer import Address, Message

PENDING_MAX: Final = 16_384
"""A kernel signs a checkpoint every 1,024 records."""
PENDING_BYTES_MAX: Final = limits.GIB
LOOSE_MAX: Final = 65_536
_CHECKPOINT_FORM: Final = (int, bytes, bytes, bytes, bytes, int, bytes)


class Node(NamedTuple):
    """A frame on a branch, and the head after it."""

    at: int
    """The how-manieth message this is."""
    first_seq: int
    seq: int
    hash: bytes
    epoch: int
    claim_id: bytes | None
    parent: bytes
    address: Address | None
    data: bytes
    hashes: tuple[bytes, ...]
    """Of each of its records."""
    signed_to: int
    """Offset of the last signed checkpoint in it; -1 when it holds none."""


class Proven(NamedTuple):
    """A claim or frame that counts, and the head after it."""

    address: Address
    data: bytes
    message: Claim | Frame
    seq: int
    hash: bytes


class Finding(NamedTuple):
    """A message that does not count: where it is, which record it is about, of what kind it is (see counting.py), and why."""

    offset: int
    seq: int
    kind: Kind
    what: str


class _Pending(NamedTuple):
    at: int
    address: Address
    data: bytes
    claim: Claim


class PublicCounting:
    """Feed it with `take`; it hands out what is proven, and what is left with `rest`."""

    def __init__(self, log_id: bytes, public_key: bytes) -> None:
        self.log_id = log_id
        self.public_key = public_key
        self.forged = 0
        """Frames that continued the log in another way than the one that was signed."""
        self.unproven: int | None = None
        """After `rest`: the first record that no signed checkpoint covers."""
        self._proven = Node(-1, 0, -1, crypto.ZERO_HASH, 0, None, crypto.ZERO_HASH, None, b"", (), -1)
        self._heads: deque[bytes] = deque([crypto.ZERO_HASH], KNOWN_HEADS_MAX)
        """Ends of proven frames of the epoch, newest last, and the head at which it began."""
        self._nodes: dict[bytes, Node] = {}
        """What is not proven yet, by the head after it; of several frames with one end, the first."""
        self._bytes = 0
        self._claims: list[_Pending] = []
        """Claims behind the last proven frame."""
        self._count = 0
        self._loose: dict[bytes, Finding] = {}
        """Heads of frames that join no branch, with where that which they belong to begins."""
        self._torn: dict[bytes, Finding] = {}
        """Heads that were signed and that no branch has reached, with where what leads to them begins."""
        self._late: dict[bytes, int] = {}
        """Hashes of records that a replaced kernel wrote too late, with their offsets: some may be signed."""
        self._findings: list[Finding] = []
        self._astray_findings: list[tuple[Finding, Finding]] = []
        """Frames that join no branch, with where what each belongs to begins."""
        self._newest_epoch = 0
        """The highest that is in force on any branch."""
        self._tip = self._proven
        """The frame that reaches farthest, whatever its branch."""

    def take(self, message: Message) -> list[Proven]:
        """The next message; returns what it proves, in order. Raises `Damaged` when it is flooded."""
        self._count += 1
        try:
            found = decode(message.data)
        except Damaged as error:
            self._odd(message, "suspect", str(error))
            return []
        if found.log_id != self.log_id:
            self._odd(message, "suspect", f"belongs to the log {found.log_id.hex()[:16]}")
        elif isinstance(found, Claim):
            self._take_claim(message, found)
        elif isinstance(found, Frame) and found.records:
            return self._take_frame(message, found)
        elif not isinstance(found, Ping):
            self._odd(message, "suspect", "is a frame without records")
        return []

    @property
    def proven(self) -> int:
        """Offset of the newest record that is proven; -1 when none is."""
        return self._proven.seq

    def findings(self) -> list[Finding]:
        """What did not count in the messages since the last time."""
        found, self._findings = self._findings, []
        return found

    def _odd(self, message: Message, kind: Kind, what: str) -> None:
        self._findings.append(Finding(message.offset, self._proven.seq + 1, kind, what))

    # -- claims ------------------------------------------------------------------------------------------------------

    def _take_claim(self, message: Message, claim: Claim) -> None:
        if claim.public_key != self.public_key or not claim_signature_ok(self.public_key, message.data):
            self._odd(message, "suspect", "is a claim that the log's key did not sign")
        elif claim.epoch > self._proven.epoch and all(one.claim.claim_id != claim.claim_id for one in self._claims):
            self._claims.append(_Pending(self._count, Address.of(message), message.data, claim))
            self._newest_epoch = max(self._newest_epoch, *(self._in_force(tip)[0] for tip in self._tips()))

    def _after(self, node: Node, before: int | None = None) -> list[_Pending]:
        """The claims that count after a frame and before the `before`th message, or up to now."""
        claims = [one for one in self._claims if one.at > node.at and (before is None or one.at < before)]
        if not claims:
            return []
        epoch, heads = node.epoch, self._known_heads(node)
        found: list[_Pending] = []
        for one in claims:
            if one.claim.epoch > epoch and one.claim.known_head in heads:
                epoch, heads = one.claim.epoch, {node.hash}
                found.append(one)
        return found

    def _known_heads(self, node: Node) -> set[bytes]:
        """The heads that a claim after this frame may know: as in counting.py."""
        ends: list[bytes] = []
        here = node
        while here.hash != self._proven.hash and here.epoch == node.epoch:
            ends.append(here.hash)
            here = self._nodes.get(here.parent, self._proven)
        older = reversed(self._heads) if here.epoch == node.epoch else iter((here.hash,))
        return {head for head, _n in zip(chain(ends, older), range(KNOWN_HEADS_MAX), strict=False)}

    def _in_force(self, node: Node) -> tuple[int, bytes | None]:
        claims = self._after(node)
        return (claims[-1].claim.epoch, claims[-1].claim.claim_id) if claims else (node.epoch, node.claim_id)

    # -- frames ------------------------------------------------------------------------------------------------------

    def _take_frame(self, message: Message, frame: Frame) -> list[Proven]:
        try:
            records = [decode_record(raw) for raw in frame.records]
        except Damaged as error:
            self._odd(message, "suspect", str(error))
            return []
        if any((record.epoch, record.seq) != (frame.epoch, seq) for seq, record in enumerate(records, frame.first_seq)):
            # What a replaced kernel signed too late must not count under the claim of another.
            self._odd(message, "suspect", "is a frame with records of another epoch or place")
            return []
        hashes: list[bytes] = []
        signed: list[Checkpoint] = []
        hash_, signed_to = frame.prev_hash, -1
        for raw, record in zip(frame.records, records, strict=True):
            checkpoint = self._signed(record, hash_)
            if checkpoint is not None:
                signed.append(checkpoint)
                signed_to = record.seq
            hash_ = crypto.record_hash(hash_, raw)
            hashes.append(hash_)
        before = self._proven if frame.prev_hash == self._proven.hash else self._nodes.get(frame.prev_hash)
        if before is None or frame.first_seq != before.seq + 1:
            self._astray(message, frame, hashes, signed, "which do not follow what is before them")
            return []
        if (frame.epoch, frame.claim_id) != self._in_force(before):
            self._astray(message, frame, hashes, signed, "under a claim that is not in force")
            return []
        if hash_ in self._nodes:
            self._odd(message, "void", f"repeats records from {frame.first_seq} on")
            return []
        self._bytes += len(message.data)
        if len(self._nodes) >= PENDING_MAX or self._bytes > PENDING_BYTES_MAX:
            raise Damaged(
                f"from record {self._proven.seq + 1} on, the topic holds {len(self._nodes)} frames that no signed checkpoint "
                "covers: somebody floods it, and only who has the master key can tell what counts"
            )
        self._nodes[hash_] = Node(
            self._count, frame.first_seq, frame.first_seq + len(frame.records) - 1, hash_, frame.epoch, frame.claim_id,
            frame.prev_hash, Address.of(message), message.data, tuple(hashes), signed_to,
        )  # fmt: skip
        if self._nodes[hash_].seq > self._tip.seq:
            self._tip = self._nodes[hash_]
        return self._prove(before) if signed else []

    def _signed(self, record: Record, head: bytes) -> Checkpoint | None:
        """The checkpoint in a record, if the log's key signed it over this head."""
        event = record.events[0] if record.events else None
        if event is None or event.name != ev.CHECKPOINT or tuple(map(type, event.fields)) != _CHECKPOINT_FORM:
            return None
        found = Checkpoint(*event.fields)
        good = found.head_hash == head and crypto.verify_signature(
            self.public_key, found.signature, found.signed_bytes(self.log_id)
        )
        return found if good else None

    def _astray(self, message: Message, frame: Frame, hashes: list[bytes], signed: list[Checkpoint], why: str) -> None:
        """A frame that joins no branch."""
        if frame.epoch < self._newest_epoch:
            self._odd(message, "void", f"is a late frame of epoch {frame.epoch}")
            if len(self._late) < LOOSE_MAX:
                self._late.update(zip(hashes, range(frame.first_seq, frame.first_seq + len(hashes)), strict=True))
            return
        if frame.first_seq <= self._proven.seq:
            self._odd(message, "void", f"repeats records from {frame.first_seq} on")
            return
        what = f"holds records from {frame.first_seq} on, {why}"
        here = Finding(message.offset, frame.first_seq, "suspect", what)
        begins = self._loose.get(frame.prev_hash)
        if begins is None:
            torn = f"{what}, and a signed checkpoint says that they are true"
            begins = here._replace(seq=self._first_wrong(frame), kind="torn", what=torn)
        if len(self._astray_findings) < LOOSE_MAX:
            self._astray_findings.append((here, begins))
        else:
            self._findings.append(here)
        self._loose[hashes[-1]] = begins
        if len(self._loose) > LOOSE_MAX:
            del self._loose[next(iter(self._loose))]
        for checkpoint in signed:
            head = checkpoint.head_hash
            if checkpoint.head_seq > self._proven.seq and head not in self._late and len(self._torn) < LOOSE_MAX:
                self._torn.setdefault(head, begins)

    def _first_wrong(self, frame: Frame) -> int:
        """The first record that cannot be what it was when a loose frame was written, as far as can be seen."""
        last = self._tip if self._tip.seq < frame.first_seq else self._proven
        if last.hash == frame.prev_hash:
            return frame.first_seq
        return last.first_seq if last.seq == frame.first_seq - 1 and last.data else last.seq + 1

    # -- what is proven ----------------------------------------------------------------------------------------------

    def _path(self, node: Node) -> list[Node]:
        """The frames from the last one proven to this one, in order."""
        path: list[Node] = []
        while node.hash != self._proven.hash:
            path.append(node)
            node = self._nodes.get(node.parent, self._proven)
        return path[::-1]

    def _prove(self, node: Node) -> list[Proven]:
        """Hand out what is certain now that the head after this frame was signed."""
        hashes = [hash_ for one in self._path(node) for hash_ in one.hashes]
        if not hashes:
            return []
        children = self._children()
        path: list[Node] = []
        head, at = self._proven.hash, 0
        while at < len(hashes):
            # In order of the topic; one that only begins with what is proven is true, or is not the first.
            first = next((c for c in children.get(head, ()) if all(map(bytes.__eq__, c.hashes, hashes[at:]))), None)
            if first is None or at + len(first.hashes) > len(hashes):
                break
            path.append(first)
            head, at = first.hash, at + len(first.hashes)
        for hash_ in hashes:
            self._torn.pop(hash_, None)
        return self._hand_out(path)

    def _hand_out(self, path: list[Node]) -> list[Proven]:
        if not path:
            return []
        found = list(self._proven_by(path))
        for node in path:
            if node.claim_id != self._proven.claim_id:
                self._heads.clear()
                self._heads.append(self._proven.hash)
            self._heads.append(node.hash)
            self._proven = node._replace(data=b"", hashes=())
        counts = {node.hash for node in path}
        kept: dict[bytes, Node] = {}
        for hash_, node in self._nodes.items():
            # A frame came after the one that it continues.
            if node.parent == self._proven.hash or node.parent in kept:
                kept[hash_] = node
            elif hash_ not in counts:
                assert node.address is not None
                self.forged += 1
                what = f"holds records from {node.first_seq} on that are not those which were signed"
                self._findings.append(Finding(node.address.offset, node.first_seq, "suspect", what))
        self._nodes, self._bytes = kept, sum(len(node.data) for node in kept.values())
        self._tip = max(kept.values(), key=lambda node: node.seq, default=self._proven)
        self._late = {hash_: seq for hash_, seq in self._late.items() if seq > self._proven.seq}
        self._claims = [one for one in self._claims if one.at > self._proven.at and one.claim.epoch > self._proven.epoch]
        self._newest_epoch = max(self._in_force(tip)[0] for tip in self._tips())
        return found

    def _proven_by(self, path: list[Node]) -> Iterator[Proven]:
        before = self._proven
        for node in path:
            for _at, address, data, claim in self._after(before, node.at):
                yield Proven(address, data, claim, before.seq, before.hash)
            assert node.address is not None
            yield Proven(node.address, node.data, decode_frame(node.data), node.seq, node.hash)
            before = node

    # -- what is not -------------------------------------------------------------------------------------------------

    def _children(self) -> dict[bytes, list[Node]]:
        """What goes on from each head, in order of the topic."""
        found: dict[bytes, list[Node]] = {}
        for node in self._nodes.values():
            found.setdefault(node.parent, []).append(node)
        return found

    def _tips(self) -> list[Node]:
        """Where branches end."""
        parents = {node.parent for node in self._nodes.values()}
        return [node for node in self._nodes.values() if node.hash not in parents] or [self._proven]

    def rest(self) -> list[Proven]:
        """At the end: the frames up to the one that ends with the newest checkpoint, if nobody put another in its place; with
        `unproven` and the last findings. Nothing more may be taken."""
        path: list[Node] = []
        children = self._children()
        head = self._proven
        while True:
            next_ones = children.get(head.hash, [])
            if len(next_ones) != 1:
                break
            head = next_ones[0]
            path.append(head)
        certain = max((n for n, node in enumerate(path, 1) if node.signed_to == node.seq), default=0)
        last = path[certain - 1] if certain else self._proven
        if certain < len(path) or next_ones:
            self.unproven = last.seq + 1
        for node in next_ones:
            assert node.address is not None
            what = f"goes on from record {head.seq} in another way than others do, and none of them is signed"
            self._findings.append(Finding(node.address.offset, node.first_seq, "suspect", what))
        for node in self._nodes.values():
            for hash_ in node.hashes:
                self._torn.pop(hash_, None)
        torn = set(self._torn.values())
        for one, begins in self._astray_findings:
            # What follows a tear is the kernel's, but for what nobody signed yet.
            follows = one._replace(kind="torn") if begins in torn else one
            self._findings.append(begins if begins in torn and begins.offset == one.offset else follows)
        found = list(self._proven_by(path[:certain]))
        return found + [Proven(one.address, one.data, one.claim, last.seq, last.hash) for one in self._after(last)]
