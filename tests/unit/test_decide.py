"""Decisions: the same call on the same tables gives the same drafts, and neither a decision nor a refusal changes anything."""

from __future__ import annotations

from typing import Any

import pytest
from tests.inside import ADMIN, ALICE, Inside

from memos_kernel.decide import Call, Decision
from memos_kernel.decide_migrate import Product
from memos_kernel.events import Slot
from memos_kernel.governance import Caller, raw_id
from memos_kernel.state import CONTENT
from memos_syscalls.errors import MemError
from memos_syscalls.table import BY_NAME, TABLE, Flag

WRITES = [call.name for call in TABLE if call.flags & Flag.WRITE]


class Numbered:
    """Fresh ids in a row, so that two decisions can be compared."""

    def __init__(self) -> None:
        self.next = 0

    def cube_id(self) -> bytes:
        self.next += 1
        return self.next.to_bytes(16, "big")

    def slot(self) -> Slot:
        self.next += 1
        return Slot(99, self.next)


def decide(k: Inside, name: str, caller: Caller = ADMIN, *, seconds: int = 0, **args: Any) -> Decision:
    """What the kernel would decide now; nothing is appended."""
    request: Any = BY_NAME[name].request.model_validate(args)
    items = getattr(request, "items", None) or [request]
    contents = [item.content.encode() for item in items if isinstance(getattr(item, "content", None), str)]
    chain = k.kernel.chain
    now = chain.time + 1 + seconds * 10**9
    product = None
    if name == "mem_migrate":
        source = raw_id(args["cube_id"])
        version = k.kernel.tables.cube(source).version if k.kernel.tables.cube(source) else 1  # type: ignore[union-attr]
        product = Product("activation", "alice", None, [(source, version, CONTENT)], {"method": "prefill"}, None, 0, [])
        contents = [b"tensors"]
    call = Call(request, caller, chain.seq + 1, now, Numbered(), k.kernel.opener, b"h" * 32, contents, product)
    return k.kernel.decisions[type(request)](k.kernel.tables, call)


class Made:
    """A cube in each state, and what relates them."""

    def __init__(self, k: Inside) -> None:
        def alloc(**more: Any) -> str:
            return str(k("mem_alloc", ALICE, namespace="alice", content="some text here", **more)["cube_id"])

        self.live, self.second, self.frozen, self.archived, self.expired, self.shredded = (alloc() for _ in range(6))
        self.short = alloc(ttl_s=5)
        self.sources = [alloc(), alloc()]
        k("mem_freeze", ALICE, cube_id=self.frozen)
        k("mem_archive", ALICE, cube_id=self.archived)
        k("mem_free", ALICE, cube_id=self.expired)
        k("mem_shred", ALICE, cube_id=self.shredded)
        self.fused = str(k("mem_fuse", ALICE, cube_ids=self.sources, strategy="merge")["cube_id"])
        k("mem_write", ALICE, cube_id=self.live, content="second")


def allowed(made: Made) -> dict[str, dict[str, Any]]:
    """One call of each kind that is taken."""
    return {
        "mem_alloc": {"namespace": "new/one", "content": "x", "parents": [made.live], "ttl_s": 3},
        "mem_alloc_many": {"items": [{"namespace": "new", "content": f"{n}"} for n in range(3)]},
        "mem_write": {"cube_id": made.live, "content": "x", "tags": ["t"], "expect_version": 2},
        "mem_free": {"cube_id": made.live}, "mem_rollback": {"cube_id": made.live, "to_version": 1},
        "mem_compose": {"cube_ids": [made.live, made.second], "namespace": "new"},
        "mem_fuse": {"cube_ids": [made.live, made.second], "strategy": "timeline"}, "mem_unfuse": {"cube_id": made.fused},
        "mem_fork": {"namespace": "alice", "to": "copy"}, "mem_freeze": {"cube_id": made.live},
        "mem_thaw": {"cube_id": made.frozen}, "mem_archive": {"cube_id": made.live}, "mem_restore": {"cube_id": made.archived},
        "mem_migrate": {"cube_id": made.live, "to": "activation"},
        "mem_shred": {"cube_id": made.sources[0]}, "mem_pin": {"cube_id": made.frozen}, "mem_unpin": {"cube_id": made.live},
    }  # fmt: skip


def test_a_decision_is_a_function_of_its_arguments_and_changes_nothing(k: Inside) -> None:
    made = Made(k)
    calls = allowed(made)
    assert sorted(calls) == sorted(WRITES), "every call that writes is here"
    digest, rows = k.digest, k.rows()
    for name, args in calls.items():
        one, two = decide(k, name, **args), decide(k, name, **args)
        assert one == two and one.drafts, name
        assert k.kernel.tables.changes == {} and k.kernel.tables.overlay == {}, name
    assert (k.digest, k.rows()) == (digest, rows)


def refused(made: Made) -> list[tuple[str, str, dict[str, Any]]]:
    other = "01890000-0000-7000-8000-000000000000"
    states = [("frozen", "EFROZEN"), ("expired", "ENOENT"), ("shredded", "ESHREDDED")]
    return [
        *((errno, name, {"cube_id": getattr(made, state), **more}) for state, errno in states
          for name, more in (("mem_write", {"content": "x"}), ("mem_archive", {}), ("mem_rollback", {"to_version": 1}))),
        ("ENOENT", "mem_pin", {"cube_id": made.expired}), ("ESHREDDED", "mem_unpin", {"cube_id": made.shredded}),
        ("ECONFLICT", "mem_pin", {"cube_id": made.live, "expect_version": 1}),
        *(("EINVAL", "mem_write", {"cube_id": cube, "content": "x"}) for cube in (made.archived, made.sources[0])),
        ("ECONFLICT", "mem_write", {"cube_id": made.live, "content": "x", "expect_version": 1}),
        ("ECONFLICT", "mem_free", {"cube_id": made.live, "expect_version": 3}),
        ("EFROZEN", "mem_free", {"cube_id": made.frozen}), ("EFROZEN", "mem_shred", {"cube_id": made.frozen}),
        ("EFROZEN", "mem_shred", {"namespace": "alice"}),
        ("ENOENT", "mem_rollback", {"cube_id": made.live, "to_version": 9}),
        ("ENOENT", "mem_write", {"cube_id": other, "content": "x"}), ("ENOENT", "mem_fork", {"namespace": "nobody", "to": "x"}),
        ("EEXIST", "mem_fork", {"namespace": "alice", "to": "alice"}),
        ("EINVAL", "mem_fork", {"namespace": "alice", "to": "alice/below"}),
        ("EINVAL", "mem_fork", {"namespace": "alice", "to": "x", "at_offset": 10**6}),
        ("EINVAL", "mem_fuse", {"cube_ids": [made.live, made.live], "strategy": "merge"}),
        ("EINVAL", "mem_compose", {"cube_ids": [made.live] * 2, "namespace": "n"}),
        ("EINVAL", "mem_fuse", {"cube_ids": [made.live, made.sources[0]], "strategy": "merge"}),
        ("EINVAL", "mem_unfuse", {"cube_id": made.live}),
        ("EINVAL", "mem_fuse", {"cube_ids": [made.live, made.second], "strategy": "merge", "params": {"speed": 1}}),
        ("ESHREDDED", "mem_alloc", {"namespace": "n", "content": "x", "parents": [made.shredded]}),
        ("EINVAL", "mem_shred", {"cube_id": made.sources[0], "cascade": "refuse"}),
        ("EMSGSIZE", "mem_alloc", {"namespace": "n", "content": "x", "metadata": {"k": "v" * 70_000}}),
        ("EINVAL", "mem_write", {"cube_id": made.live, "valid_from": 5, "valid_to": 4}),
        ("EINVAL", "mem_thaw", {"cube_id": made.live}), ("EINVAL", "mem_restore", {"cube_id": made.live}),
    ]  # fmt: skip


def test_a_refusal_is_deterministic_and_changes_nothing(k: Inside) -> None:
    made = Made(k)
    digest, rows = k.digest, k.rows()
    for errno, name, args in refused(made):
        try:
            found = decide(k, name, **args)
        except MemError as error:
            assert (error.errno, error.deterministic) == (errno, True), (name, args, error)
            assert error.detail and error.advice
        except ValueError:
            # The request model refuses it before anything is decided; to callers that is EINVAL.
            assert errno == "EINVAL", (name, args)
        else:
            raise AssertionError(f"{name} {args} was not refused with {errno}: {found}")
        assert k.kernel.tables.changes == {} and k.kernel.tables.overlay == {}
    assert (k.digest, k.rows()) == (digest, rows)


def test_a_life_that_ran_out_is_over_before_the_tick_says_so(k: Inside) -> None:
    made = Made(k)
    assert decide(k, "mem_write", cube_id=made.short, content="x").drafts
    with pytest.raises(MemError) as error:
        decide(k, "mem_write", seconds=10, cube_id=made.short, content="x")
    assert error.value.errno == "ENOENT"
    assert decide(k, "mem_shred", seconds=10, cube_id=made.short).drafts, "what has expired can still be erased"


def test_two_writers_of_one_version_see_each_other_before_either_is_durable(k: Inside) -> None:
    cube = k("mem_alloc", namespace="n", content="1")["cube_id"]
    calls = [k.submit("mem_write", cube_id=cube, content=f"{n}", expect_version=1) for n in range(5)]
    answers: list[str] = []
    for call in calls:
        try:
            answers.append(str(k.wait(call)["version"]))
        except MemError as error:
            answers.append(error.errno)
    assert answers == ["2", "ECONFLICT", "ECONFLICT", "ECONFLICT", "ECONFLICT"]
