"""Wrong protocols, one sentence of the right one left out of each. The simulation must tell every one of them from the right.

`MUTANTS` names for each the faults in which it shows; the rules that it breaks are found, not given.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.sim.kernel import Done, Kernel, requests
from tests.sim.partition import Entry

from memos_kernel import crypto
from memos_kernel.eventlog.counting import Counting, Verdict
from memos_kernel.eventlog.writer import Address, Message, Phase, Writer
from memos_kernel.events import Claim, Frame, claim_signature_ok, decode_frame


class LookingAtBytes(Writer):
    """Takes equal bytes for the same message, whatever leader wrote them."""

    def looked(self, found: Message | None) -> None:
        if found is not None and self.look is not None:
            found = found._replace(leader_epoch=self.look.leader_epoch)
        super().looked(found)


class LookingWhileOpen(Writer):
    """Looks only once it writes: a standby reads on over a loss."""

    def arrived(self, message: Message) -> Verdict:
        reading = self.phase == "reading"
        verdict = super().arrived(message)
        if reading:
            self.look = None
        return verdict


class AcknowledgingAcceptance(Writer):
    """Acknowledges what it has read, confirmed or not."""

    @property
    def acknowledged(self) -> bool:
        accepted = self.frame is not None and self.frame_at is not None
        return accepted and self.look is None and self.phase not in ("broken", "claiming")


class GivingUpEarly(Writer):
    """Calls a frame lost as soon as its delivery fails."""

    @property
    def lost(self) -> bool:
        return self.frame is not None and self.frame_at is None and self.phase == "open" and self._first > self.frame.n


class Unfenced(Writer):
    """Goes on when another kernel has claimed the log."""

    def _end(self, phase: Phase, why: str) -> None:
        if phase != "fenced":
            super()._end(phase, why)


class AlwaysFresh(Writer):
    """Answers reads without asking whether it still is the writer."""

    def _renew(self, begun: float) -> None:
        self.fresh_at = float("inf")


class AnyClaim(Counting):
    """Lets every signed claim count, whatever its epoch and whatever head it knows."""

    def _claim(self, data: bytes, claim: Claim) -> Verdict:
        at = self.at
        if claim.claim_id in at.claim_ids or not claim_signature_ok(self.public_key, data):
            return super()._claim(data, claim)
        at.epoch, at.claim_id = claim.epoch, claim.claim_id
        at.claim_ids.add(claim.claim_id)
        return Verdict("claim", claim)


class AnyFrame(Counting):
    """Lets every authentic frame that continues the head count, under whatever claim of this log."""

    def _frame(self, data: bytes, frame: Frame, own: tuple[bytes, bytes] | None) -> Verdict:
        at = self.at
        if frame.claim_id not in at.claim_ids:
            return super()._frame(data, frame, own)
        current, epoch = at.claim_id, at.epoch
        at.claim_id, at.epoch = frame.claim_id, frame.epoch
        verdict = super()._frame(data, frame, own)
        at.claim_id, at.epoch = current, epoch
        return verdict


class AnyMac(Counting):
    """Checks no MAC."""

    def take(self, data: bytes, own: tuple[bytes, bytes] | None = None) -> Verdict:
        return super().take(data, (data, self._last_hash(data)))

    def _last_hash(self, data: bytes) -> bytes:
        try:
            frame = decode_frame(data)
        except Exception:
            return b""
        hash_ = self.at.hash
        for raw in frame.records:
            hash_ = crypto.record_hash(hash_, raw)
        return hash_


class LookingAtBytesKernel(Kernel):
    writer_type = LookingAtBytes


class LookingWhileOpenKernel(Kernel):
    writer_type = LookingWhileOpen


class AcknowledgingAcceptanceKernel(Kernel):
    writer_type = AcknowledgingAcceptance


class GivingUpEarlyKernel(Kernel):
    writer_type = GivingUpEarly


class UnfencedKernel(Kernel):
    writer_type = Unfenced


class AlwaysFreshKernel(Kernel):
    writer_type = AlwaysFresh


class AnyClaimKernel(Kernel):
    counting_type = AnyClaim


class AnyFrameKernel(Kernel):
    counting_type = AnyFrame


class AnyMacKernel(Kernel):
    counting_type = AnyMac


class Remembering(Kernel):
    """Looks into its own memory instead of at the topic."""

    _memory: tuple[Message, ...] = ()

    def _feed(self, message: Message, entry: Entry) -> None:
        self._memory += (message,)
        super()._feed(message, entry)

    def _look(self, at: Address) -> None:
        known = [*(row[0] for row in self.mirror.rows), *self._memory]
        found = next(message for message in reversed(known) if Address.of(message) == at)
        self.world.later(0.01, self.world.deliver, self, self.on_looked, found)


class MirroringBeforeLooking(Kernel):
    """Keeps what counts at once, and so keeps what a look would have refused."""

    waits_for_looks = False


class OpeningEarly(Kernel):
    """Opens when its claim is visible, not when it is committed."""

    waits_for_confirmation = False


class AcknowledgingDelivery(Kernel):
    """Answers as soon as the broker confirms, without having read what stands before the frame."""

    def _settle(self) -> None:
        sent = self.writer.frame
        if sent is not None and self._confirmed >= sent.n and self._frame_entry is None:
            frame = decode_frame(sent.data)
            entry = next((e for e in reversed(self.world.partition.visible) if e.data == sent.data), None)
            hash_ = frame.prev_hash
            for n, (raw, request) in enumerate(zip(frame.records, requests(frame), strict=True)):
                hash_ = crypto.record_hash(hash_, raw)
                if entry is not None:
                    for call in self._waiting.pop(request, []):
                        self.world.answered(self, call, "yes", Done(frame.first_seq + n, hash_, entry))
        super()._settle()


class Forgetful(Kernel):
    """Writes a request again that the log has."""

    def on_write(self, call: int, request: str) -> None:
        self.state.done.pop(request, None)
        super().on_write(call, request)


class Mutant(NamedTuple):
    """A wrong protocol, the faults under which it shows, and the first seed to try."""

    kernel: type[Kernel]
    faults: frozenset[str]
    first: int


def _mutant(kernel: type[Kernel], first: int, *faults: str) -> Mutant:
    return Mutant(kernel, frozenset(faults), first)


MUTANTS: Final = (
    _mutant(Remembering, 0, "power", "refills", "pauses"),
    _mutant(LookingAtBytesKernel, 0, "power", "refills", "pauses"),
    _mutant(LookingWhileOpenKernel, 0, "power", "refills", "standbys", "takeovers", "wipes", "pauses"),
    _mutant(AcknowledgingAcceptanceKernel, 0, "early views", "followers", "unclean", "elections", "forgets"),
    _mutant(AcknowledgingDelivery, 0, "takeovers", "standbys", "pauses", "late wire"),
    _mutant(GivingUpEarlyKernel, 0, "early views", "false failures", "late wire", "elections", "unclean", "followers"),
    _mutant(UnfencedKernel, 0, "takeovers", "standbys", "late wire"),
    _mutant(AlwaysFreshKernel, 0, "takeovers", "standbys", "pauses"),
    _mutant(AnyClaimKernel, 0, "copies", "takeovers", "standbys", "late wire", "false failures"),
    _mutant(AnyFrameKernel, 0, "takeovers", "standbys", "late wire", "crashes"),
    _mutant(AnyMacKernel, 0, "forgeries"),
    _mutant(MirroringBeforeLooking, 0, "power", "refills", "standbys", "takeovers", "wipes", "pauses"),
    _mutant(OpeningEarly, 0, "early views", "followers", "unclean", "elections", "takeovers", "crashes", "standbys"),
    _mutant(Forgetful, 0, "crashes", "lost replies", "false failures"),
)
