"""Who may acknowledge: the writer's half of the protocol on a shared partition, as a state machine without I/O.

Fed with what its own consumer reads (`arrived`), with delivery reports (`delivered`) and with what a second look at an
address found (`looked`); says what to send, when a frame is acknowledged, and when this kernel must stop.

- A frame is acknowledged when the writer's own consumer has accepted it, by the rule of counting.py, *and* the broker
  confirmed it at that address, or confirmed a later message of ours while the frame still stands there.
- Whenever a message arrives under another leader epoch than the one before it, that one is looked at again at its address
  (`look`), whether it counted or not: other bytes there, another leader epoch, or nothing, mean that the topic lost its
  tail. The same offset under the same leader epoch has the same past.
- A delivery that fails leaves the frame's fate open. A new claim settles it: what was not counted before that claim never
  will be.
- `fresh_at` is when the sending of our newest accepted message began: nobody had replaced us then.

Phases: `reading` → `claiming` → `open` ⇄ `doubt` → `claiming`; ends in `fenced` (another kernel took over) or `broken` (the
topic is not what it was). Not thread-safe; times are seconds of a clock that goes on while the machine sleeps.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal, NamedTuple

from ..events import Claim
from .counting import Counting, Verdict, encode_ping

Phase = Literal["reading", "claiming", "open", "doubt", "fenced", "broken"]
ENDED: Final = ("fenced", "broken")


class Message(NamedTuple):
    """A message as a consumer gets it. `leader_epoch` is -1 when the broker does not tell."""

    offset: int
    leader_epoch: int
    data: bytes


class Address(NamedTuple):
    """Where an accepted message stands, and what stood there."""

    offset: int
    leader_epoch: int
    sha256: bytes

    @staticmethod
    def of(message: Message) -> Address:
        return Address(message.offset, message.leader_epoch, hashlib.sha256(message.data).digest())


class Sent(NamedTuple):
    """A message of ours: the n-th, when its sending began, and for a frame the hash of its last record."""

    n: int
    data: bytes
    begun: float
    last_hash: bytes = b""


class Writer:
    def __init__(self, counting: Counting, last: Address | None = None) -> None:
        self.counting = counting
        self.phase: Phase = "reading"
        self.why = ""
        """What ended the writer, or put it in doubt."""
        self.last = last
        """The newest message that was accepted."""
        self._seen = last
        """The newest message that arrived."""
        self.look: Address | None = last
        """What must be looked at again before anything more is acknowledged: at a start, what was accepted before it."""
        self.fresh_at = float("-inf")
        self.claim_id: bytes | None = None
        """The claim of ours that is in force."""
        self.frame: Sent | None = None
        """The frame under way."""
        self.frame_at: Address | None = None
        """Where the frame under way was accepted."""
        self._claims: dict[bytes, Sent] = {}
        self._claim: Sent | None = None
        self._claim_at: Address | None = None
        """Our claim in force, and where it was accepted."""
        self._offsets: dict[int, int] = {}
        """Where delivery reports say that the frame and the claim are."""
        self._sure: set[int] = set()
        """Which of the two were confirmed where they were accepted."""
        self._weighing: int | None = None
        """For which of the two the look was asked for."""
        self._ping: Sent | None = None
        self._pings = 0
        self._sent = 0
        self._confirmed = 0
        self._first = 1
        """Reports about messages before this one, of an earlier producer, say nothing any more."""
        self._fresh_after_look = float("-inf")
        self._starting = True

    # -- sending -----------------------------------------------------------------------------------------------------

    def _next(self, data: bytes, now: float, last_hash: bytes = b"") -> Sent:
        self._sent += 1
        return Sent(self._sent, data, now, last_hash)

    def claim(self, claim_id: bytes, data: bytes, now: float) -> Sent:
        """Begin to claim the partition; from here on only messages sent from now on confirm anything."""
        assert self.phase in ("reading", "claiming", "doubt"), f"no claim while {self.phase}"
        self.phase = "claiming"
        sent = self._next(data, now)
        self._first = sent.n
        self._claims[claim_id] = sent
        return sent

    def send(self, data: bytes, last_hash: bytes, now: float) -> Sent:
        """Begin to send a frame; one at a time."""
        assert self.phase == "open" and self.frame is None, f"no frame while {self.phase}"
        self.frame, self.frame_at = self._next(data, now, last_hash), None
        kept = self._claim.n if self._claim is not None else 0
        self._sure &= {kept}
        self._offsets = {n: offset for n, offset in self._offsets.items() if n == kept}
        return self.frame

    def ping(self, now: float) -> Sent | None:
        """Begin to ask whether we still are the writer; None when that is under way, or cannot be asked now."""
        if self.phase != "open" or self._ping is not None or self.claim_id is None:
            return None
        self._pings += 1
        counting = self.counting
        data = encode_ping(counting.frame_mac, counting.log_id, counting.at.epoch, self.claim_id, self._pings)
        self._ping = self._next(data, now)
        return self._ping

    # -- hearing -----------------------------------------------------------------------------------------------------

    def arrived(self, message: Message) -> Verdict:
        """The next message of the partition, in order. The caller keeps what counts."""
        here = Address.of(message)
        before, self._seen = self._seen, here
        changed = before is not None and before.leader_epoch != here.leader_epoch
        if changed and (self.look is None or self._weighing is not None):
            # A look at what is weighed can wait: `looked` asks for it anew.
            self.look, self._weighing = before, None
        verdict = self._judge(message, here, before)
        self._weigh()
        return verdict

    def _judge(self, message: Message, here: Address, before: Address | None) -> Verdict:
        frame = self.frame
        verdict = self.counting.take(message.data, (frame.data, frame.last_hash) if frame is not None else None)
        if verdict.kind == "foreign" and self.phase != "broken":
            self._end("broken", f"the topic holds another log: its first claim {verdict.why}")
        if verdict.kind == "torn":
            self._end("broken", f"the message at the topic's offset {message.offset} {verdict.why}: something before it was "
                      "changed, removed or lost. `memctl verify` says what is whole, and `memctl replay` saves it")  # fmt: skip
        if not verdict.counts:
            self._lost_claim(verdict)
            return verdict
        found = verdict.message
        self.last = here
        if isinstance(found, Claim):
            self._claimed(found, before)
            return verdict
        begun = self._own(message)
        if begun is not None:
            self._renew(begun)
        return verdict

    def _own(self, message: Message) -> float | None:
        """When the sending of this accepted message began, if it is ours."""
        if self.frame is not None and self.frame.data == message.data:
            self.frame_at = self.last
            return self.frame.begun
        if self._ping is not None and self._ping.data == message.data:
            begun, self._ping = self._ping.begun, None
            return begun
        return None

    def _renew(self, begun: float) -> None:
        if self.look is None:
            self.fresh_at = max(self.fresh_at, begun)
        else:
            self._fresh_after_look = max(self._fresh_after_look, begun)

    def _claimed(self, claim: Claim, before: Address | None) -> None:
        ours = self._claims.get(claim.claim_id)
        if ours is not None and self.phase not in ENDED:
            self.claim_id = claim.claim_id
            self._claim, self._claim_at = ours, self.last
            if self.phase == "claiming":
                # One that failed to be delivered, and came all the same, is not confirmed by anything: claim again.
                self.phase = "open"
            self._starting = False
            self._ping = None
            if self.phase == "open":
                self._claims.clear()
            if self.look is None:
                self.look = before
            self._renew(ours.begun)
            self._weigh()
        elif not self._starting:
            self._end("fenced", f"another kernel opened epoch {claim.epoch} at this log")

    def _lost_claim(self, verdict: Verdict) -> None:
        """A claim of ours was void: another came first. A starting kernel may claim again."""
        found = verdict.message
        ours = self._claims.pop(found.claim_id, None) if isinstance(found, Claim) else None
        if ours is not None:
            if ours.n == self._first and self.phase == "claiming":
                # Older claims of ours can count no more either: their epochs are not above this one's.
                self.phase = "reading" if self._starting else "doubt"
            self.why = verdict.why

    def delivered(self, n: int, error: str | None, offset: int = -1) -> None:
        """A delivery report about our n-th message; a message that was sent again may come without its offset."""
        if error is None:
            self._confirmed = max(self._confirmed, n)
            if any(sent is not None and sent.n == n for sent in (self.frame, self._claim, *self._claims.values())):
                self._offsets[n] = offset
            self._weigh()
        elif n >= self._first and self.phase in ("open", "claiming"):
            self.phase, self.why = "doubt", error
            self._ping = None

    def _weigh(self) -> None:
        """What was accepted in one past of the topic may be confirmed in another: where it was confirmed elsewhere, or nobody
        says where, it is looked at again. A look that was asked for before the confirmation proves nothing."""
        for sent, at, needed in ((self._claim, self._claim_at, self._first), (self.frame, self.frame_at, 0)):
            if sent is None or at is None or sent.n in self._sure or self.look is not None:
                continue
            if self._confirmed < max(sent.n, needed):
                continue
            if self._offsets.get(sent.n) == at.offset:
                self._sure.add(sent.n)
            else:
                self.look, self._weighing = at, sent.n

    def failed(self, error: str) -> None:
        """The producer as a whole can go on no more."""
        self.delivered(self._sent, error)

    def looked(self, found: Message | None) -> None:
        """What stands now where `look` says: the message, or None when there is none and none will come."""
        assert self.look is not None, "nobody asked to look"
        at, self.look = self.look, None
        weighed, self._weighing = self._weighing, None
        if found is not None and Address.of(found) == at:
            if weighed is not None:
                self._sure.add(weighed)
            self._weigh()
            self.fresh_at = max(self.fresh_at, self._fresh_after_look)
            return
        what = "is gone" if found is None else "is another one now"
        self._end("broken", f"the message at the topic's offset {at.offset}, which this kernel had accepted, {what}: "
                  "the topic lost its tail, or was replaced")  # fmt: skip

    def give_up_unseen(self, begun_before: float) -> None:
        """What was confirmed long ago and never arrived was lost on the way to us: only a new claim tells what became of it."""
        for sent, seen in ((self.frame, self.frame_at), (self._ping, None)):
            if sent is not None and seen is None and sent.begun < begun_before and self._confirmed >= sent.n:
                self.failed("what the broker confirmed does not arrive")

    def truncated(self, why: str) -> None:
        """The consumer noticed by itself that the topic is not what it was."""
        self._end("broken", why)

    def _end(self, phase: Phase, why: str) -> None:
        if self.phase not in ENDED:
            self.phase, self.why = phase, why

    # -- what became of the frame ------------------------------------------------------------------------------------

    @property
    def sure(self) -> bool:
        """Whether our claim is confirmed, not only visible, and stands on what was there before."""
        return self.phase == "open" and self.look is None and self._claim is not None and self._claim.n in self._sure

    @property
    def acknowledged(self) -> bool:
        """Whether the frame under way is accepted, confirmed, and stands on what was there before."""
        frame = self.frame
        return (
            frame is not None and self.frame_at is not None and frame.n in self._sure and self.look is None
            and self.phase not in ("broken", "claiming") and (self._first <= frame.n or self._settled)
        )  # fmt: skip

    @property
    def _settled(self) -> bool:
        """Whether a claim of ours that came after the frame counts: the claim's confirmation is then the frame's."""
        return self.frame is not None and self._first > self.frame.n and self.sure

    @property
    def lost(self) -> bool:
        """Whether the frame under way will never count: a later claim of ours does, and it was not accepted before."""
        return self.frame is not None and self.frame_at is None and self._settled

    def take(self) -> Sent:
        """The frame under way, whose fate is known now; another may be sent."""
        assert self.frame is not None
        frame, self.frame = self.frame, None
        return frame
