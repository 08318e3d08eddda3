"""Random calls of random callers against a real kernel and a model of it; restarts, crashes and replays in between.

What is compared after every call: the answer or the errno, and that a refusal left the state digest as it was. At
random moments: reads of the present and of remembered offsets, listings, searches, and that the log alone gives the
digest and every row of the view.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.inside import ADMIN, ALICE, BOB, Inside, replay
from tests.property.model import Model, Ver

from memos_kernel.clock import ManualClock
from memos_kernel.governance import Caller
from memos_syscalls.errors import MemError

SECOND = 1_000_000_000
NAMESPACES = ("a", "a/x", "a/x/deep", "b", "b/y", "ab")
callers = st.sampled_from([ADMIN, ADMIN, ALICE, ALICE, BOB])
picks = st.integers(0, 10_000)
expects = st.sampled_from([None, None, None, "right", "wrong"])
tags = st.lists(st.sampled_from(["red", "blue", "green"]), unique=True, max_size=2)


def word_of(n: int) -> str:
    """A word that nothing else contains."""
    letters = ""
    for _ in range(4):
        n, digit = divmod(n, 20)
        letters += "bcdfghjklmnpqrstvwxz"[digit]
    return f"q{letters}q"


class Calls(RuleBasedStateMachine):
    rocks = False

    def __init__(self) -> None:
        super().__init__()
        self.k = Inside(rocks=self.rocks)
        self.model = Model()
        self.words = 0
        self.forks = 0
        self.answers: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, Any]]] = {}

    def teardown(self) -> None:
        try:
            if self.k.kernel.stopped is None:
                self.check_everything()
            assert self.k.fatal == []
        finally:
            self.k.__exit__(None, None, None)

    # -- tools -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        clock = self.k.clock
        assert isinstance(clock, ManualClock)
        return max(clock.time, self.k.kernel.chain.time)

    def word(self) -> str:
        self.words += 1
        return word_of(self.words)

    def cube(self, pick: int) -> str:
        """One of the cubes, the younger ones more often; rarely one that does not exist."""
        ids = list(self.model.cubes)
        if not ids or pick % 29 == 28:
            return "018bcfe5-0000-7000-8000-000000000000"
        return ids[-1 - (pick % len(ids)) * (pick % 2) - pick % min(4, len(ids)) * (1 - pick % 2)]

    def offset(self, pick: int) -> int | None:
        known = list(self.model.past)
        return known[pick % len(known)] if known else None

    def do(self, name: str, caller: Caller, refusal: str | None, /, **args: Any) -> dict[str, Any] | None:
        """A mutation, which must be refused exactly like this, or accepted."""
        before = self.k.digest
        request_id = args.get("request_id")
        known = self.answers.get((caller.principal, request_id)) if request_id else None
        try:
            answer = self.k(name, caller, **args)
        except MemError as error:
            assert self.k.digest == before, "a refusal changes nothing"
            if known is not None:
                assert (known[0], known[1]) != (name, args) and error.errno == "EINVAL", f"a repeat was refused: {error}"
            else:
                assert error.errno in (refusal or "").split(), f"{name}: {error}, not {refusal}"
            return None
        if known is not None:
            assert answer == known[2], "a repeat gets the first answer"
            assert known[0] == name
            assert (known[1] == args) or self.model.dead, "an id was accepted for another call"
            assert self.k.digest == before, "a repeat changes nothing"
            return None
        assert refusal is None, f"{name} was accepted, not refused with {refusal}: {answer}"
        assert self.k.digest != before, "what is accepted changes the state"
        if request_id:
            self.answers[caller.principal, request_id] = (name, args, answer)
        return answer

    def remember(self, answer: dict[str, Any]) -> None:
        self.model.remember(answer["offset"], self.k.kernel.chain.time)

    def expected(self, kind: str | None, cube_id: str) -> int | None:
        cube = self.model.cubes.get(cube_id)
        number = cube.live.number if cube else 1
        return {None: None, "right": number, "wrong": number + 1}[kind]

    # -- making ------------------------------------------------------------------------------------------------------

    @initialize()
    def something_to_begin_with(self) -> None:
        for caller, namespace in ((ALICE, "a"), (BOB, "b"), (ALICE, "a/x"), (ADMIN, "a")):
            self.alloc(caller, namespace, None, None, 0, False, None, [])

    @rule(
        caller=callers, namespace=st.sampled_from(NAMESPACES), name=st.sampled_from([None, "n1", "n2"]),
        ttl=st.sampled_from([None, None, 3, 60]), priority=st.integers(-2, 2), raw=st.booleans(),
        request=st.sampled_from([None, None, None, "r1", "r2"]), tags=tags,
    )  # fmt: skip
    def alloc(
        self, caller: Caller, namespace: str, name: str | None, ttl: int | None, priority: int, raw: bool,
        request: str | None, tags: list[str],
    ) -> None:  # fmt: skip
        text = f"The word is {self.word()}."
        content: str | bytes = text.encode() if raw and priority == 2 else text
        args: dict[str, Any] = {"namespace": namespace, "content": content, "tags": tags, "priority": priority}
        args |= {key: value for key, value in (("name", name), ("ttl_s", ttl), ("request_id", request)) if value is not None}
        answer = self.do("mem_alloc", caller, self.model.target_refusal(caller, namespace), **args)
        if answer is None:
            return
        cube_id, offset = answer["cube_id"], answer["offset"]
        expires = None if ttl is None else self.k.kernel.chain.time + ttl * SECOND
        ver = Ver(1, content, cube_id, cube_id, offset, expires, name, tuple(tags), priority)
        self.model.add(caller, cube_id, namespace, ver)
        self.remember(answer)

    @rule(caller=callers, namespaces=st.lists(st.sampled_from(NAMESPACES), min_size=1, max_size=4))
    def alloc_many(self, caller: Caller, namespaces: list[str]) -> None:
        contents = [f"Many of {self.word()}." for _ in namespaces]
        items = [{"namespace": n, "content": c} for n, c in zip(namespaces, contents, strict=True)]
        refusals = [self.model.target_refusal(caller, n) for n in namespaces]
        answer = self.do("mem_alloc_many", caller, next(filter(None, refusals), None), items=items)
        if answer is None:
            return
        for namespace, content, item in zip(namespaces, contents, answer["items"], strict=True):
            cube_id = item["cube_id"]
            self.model.add(caller, cube_id, namespace, Ver(1, content, cube_id, cube_id, answer["offset"]))
        self.remember(answer)

    @rule(caller=callers, pick=picks, expect=expects, what=st.sampled_from(["content", "tags", "ttl", "both"]), tags=tags,
          request=st.sampled_from([None, None, None, "w1", "w2"]))  # fmt: skip
    def write(self, caller: Caller, pick: int, expect: str | None, what: str, tags: list[str], request: str | None) -> None:
        cube_id = self.cube(pick)
        refusal = self.model.change_refusal(caller, cube_id, "write", self.now, self.expected(expect, cube_id))
        args: dict[str, Any] = {"cube_id": cube_id, "expect_version": self.expected(expect, cube_id), "request_id": request}
        if what in ("content", "both"):
            args["content"] = f"Now it is {self.word()}."
        if what in ("tags", "both"):
            args["tags"] = tags
        if what == "ttl":
            args["ttl_s"] = 5
        args = {key: value for key, value in args.items() if value is not None}
        if refusal is None and self.model.cubes[cube_id].live.header_key in self.model.dead:
            refusal = "ESHREDDED"
        answer = self.do("mem_write", caller, refusal, **args)
        if answer is None:
            return
        cube = self.model.cubes[cube_id]
        old = cube.live
        ver = Ver(
            old.number + 1, args.get("content", old.content), cube_id if "content" in args else old.key, cube_id,
            answer["offset"],
            self.k.kernel.chain.time + 5 * SECOND if what == "ttl" else cube.expires_at, old.name,
            tuple(args.get("tags", old.tags)), old.priority, () if "content" in args else old.lineage,
            None if "content" in args else old.recipe, "content" not in args and old.raw,
        )  # fmt: skip
        assert answer["version"] == ver.number
        self.model.written(cube_id, ver)
        self.remember(answer)

    @rule(caller=callers, pick=picks, expect=expects, to=st.integers(1, 4))
    def rollback(self, caller: Caller, pick: int, expect: str | None, to: int) -> None:
        cube_id = self.cube(pick)
        number = self.expected(expect, cube_id)
        refusal = self.model.change_refusal(caller, cube_id, "rollback", self.now, number)
        if refusal is None:
            versions = self.model.cubes[cube_id].versions
            if to > len(versions):
                refusal = "ENOENT"
            elif versions[to - 1].header_key in self.model.dead:
                refusal = "ESHREDDED"
        answer = self.do("mem_rollback", caller, refusal, cube_id=cube_id, to_version=to, expect_version=number)
        if answer is None:
            return
        cube = self.model.cubes[cube_id]
        old = cube.versions[to - 1]
        ver = Ver(
            cube.live.number + 1, old.content, old.key, cube_id, answer["offset"], cube.expires_at, old.name, old.tags,
            old.priority, old.lineage, old.recipe, old.raw,
        )  # fmt: skip
        assert answer["version"] == ver.number
        self.model.written(cube_id, ver)
        self.remember(answer)

    @rule(caller=callers, pick=picks, expect=expects, action=st.sampled_from(["free", "freeze", "thaw", "archive", "restore"]),
          request=st.sampled_from([None, None, "s1"]), note=st.sampled_from([None, "why"]))  # fmt: skip
    def move(self, caller: Caller, pick: int, expect: str | None, action: str, request: str | None, note: str | None) -> None:
        cube_id = self.cube(pick)
        number = self.expected(expect, cube_id)
        refusal = self.model.change_refusal(caller, cube_id, action, self.now, number)
        args = {"cube_id": cube_id, "expect_version": number, "request_id": request, "actor_note": note}
        args = {key: value for key, value in args.items() if value is not None}
        answer = self.do(f"mem_{action}", caller, refusal, **args)
        if answer is None:
            return
        cube = self.model.cubes[cube_id]
        cube.state = {"free": "expired", "freeze": "frozen", "archive": "archived"}.get(action, "activated")
        assert answer["state"] == cube.state and answer["version"] == cube.live.number
        if action == "free":
            cube.expires_at = None
        self.remember(answer)

    # -- relating ----------------------------------------------------------------------------------------------------

    def sources(self, chosen: list[int]) -> list[str]:
        return [self.cube(pick) for pick in chosen]

    @rule(caller=callers, chosen=st.lists(picks, min_size=1, max_size=3), namespace=st.sampled_from(NAMESPACES))
    def compose(self, caller: Caller, chosen: list[int], namespace: str) -> None:
        ids = self.sources(chosen)
        refusal = self.model.sources_refusal(caller, ids, self.now) or self.model.target_refusal(caller, namespace)
        members = [] if refusal else [self.model.cubes[i].live for i in ids]
        refusal = "ESHREDDED" if any(ver.header_key in self.model.dead for ver in members) else refusal
        answer = self.do("mem_compose", caller, refusal, cube_ids=ids, namespace=namespace)
        if answer is None:
            return
        cube_id = answer["cube_id"]
        lineage = tuple((i, self.model.cubes[i].live.number) for i in ids)
        raw = any(ver.raw or isinstance(ver.content, bytes) for ver in members)
        ver = Ver(1, "", cube_id, cube_id, answer["offset"], lineage=lineage, recipe="compose", raw=raw)
        self.model.add(caller, cube_id, namespace, ver)
        self.remember(answer)

    @rule(caller=callers, chosen=st.lists(picks, min_size=2, max_size=3), strategy=st.sampled_from(["dedupe", "merge"]),
          request=st.sampled_from([None, None, "f1"]))  # fmt: skip
    def fuse(self, caller: Caller, chosen: list[int], strategy: str, request: str | None) -> None:
        ids = self.sources(chosen)
        model = self.model
        refusal = model.sources_refusal(caller, ids, self.now)
        if refusal is None:
            cubes = [model.cubes[i] for i in ids]
            stuck = [cube.state for cube in cubes if cube.state not in ("generated", "activated")]
            refusal = {"frozen": "EFROZEN"}.get(stuck[0], "EINVAL") if stuck else None
            refusal = refusal or model.target_refusal(caller, cubes[0].namespace)
            for cube in cubes if refusal is None else []:
                text = model.text(cube.live)
                if refusal is None and not model.may_read(caller, cube.live):
                    refusal = "EACCES ENOENT ESHREDDED EINVAL"
                refusal = refusal or ("ESHREDDED" if text is None else "EINVAL" if isinstance(text, bytes) else None)
        args: dict[str, Any] = {"cube_ids": ids, "strategy": strategy}
        args |= {"request_id": request} if request else {}
        answer = self.do("mem_fuse", caller, refusal, **args)
        if answer is None:
            return
        lineage = [(i, model.cubes[i].live.number) for i in ids]
        assert [(s["cube_id"], s["version"]) for s in answer["sources"]] == lineage
        merged_tags = tuple(dict.fromkeys(tag for i in ids for tag in model.cubes[i].live.tags))
        cube_id = answer["cube_id"]
        ver = Ver(1, model.fused_text(strategy, lineage), cube_id, cube_id, answer["offset"], tags=merged_tags,
                  lineage=tuple(lineage), recipe=strategy)  # fmt: skip
        model.add(caller, cube_id, model.cubes[ids[0]].namespace, ver)
        for i in ids:
            model.cubes[i].state, model.cubes[i].merged_into = "merged", cube_id
        self.remember(answer)

    @rule(caller=callers, pick=picks, expect=expects)
    def unfuse(self, caller: Caller, pick: int, expect: str | None) -> None:
        fused = [c.cube_id for c in self.model.cubes.values() if self.model.sources_of(c)]
        cube_id = fused[pick % len(fused)] if fused and pick % 5 else self.cube(pick)
        number = self.expected(expect, cube_id)
        refusal = self.model.unfuse_refusal(caller, cube_id, number)
        sources = [] if refusal else self.model.sources_of(self.model.cubes[cube_id])
        refusal = refusal or (None if sources else "EINVAL")
        answer = self.do("mem_unfuse", caller, refusal, cube_id=cube_id, expect_version=number)
        if answer is None:
            return
        assert sorted(answer["restored"]) == sorted(sources)
        for i in sources:
            self.model.cubes[i].state, self.model.cubes[i].merged_into = "activated", None
        self.model.cubes[cube_id].state, self.model.cubes[cube_id].expires_at = "expired", None
        self.remember(answer)

    @precondition(lambda self: self.forks < 4 and len(self.model.cubes) < 60)
    @rule(caller=callers, source=st.sampled_from([*NAMESPACES, "f1", "f2"]), at=st.one_of(st.none(), picks), old=st.booleans(),
          below=st.booleans())  # fmt: skip
    def fork(self, caller: Caller, source: str, at: int | None, old: bool, below: bool) -> None:
        model = self.model
        target = f"f{self.forks + 1}" if not old else "a/x"
        target = f"{source}/sub" if below else target
        at_offset = None if at is None else self.offset(at)
        refusal = model.namespace_refusal(caller, source) or model.target_refusal(caller, target)
        refusal = refusal or ("EEXIST" if target in model.owners else "EINVAL" if target.startswith(source + "/") else None)
        args: dict[str, Any] = {"namespace": source, "to": target}
        args |= {} if at_offset is None else {"at_offset": at_offset}
        answer = self.do("mem_fork", caller, refusal, **args)
        if answer is None:
            return
        self.forks += 1
        copies = model.fork(caller, source, target, at_offset, answer["offset"], self.k.kernel.chain.time)
        assert answer["cubes"] == len(copies)
        found: list[dict[str, Any]] = []
        for state in (None, "expired"):
            found += self.k("mem_list", namespace=target, limit=1000, state=state)["cubes"]
        ids = {head["forked_from"]["cube_id"]: head["cube_id"] for head in found}
        assert ids.keys() == copies.keys()
        for source_id, copy in copies.items():
            copy.cube_id = ids[source_id]
            copy.merged_into = ids[copy.merged_into] if copy.merged_into else None
        for copy in sorted(copies.values(), key=lambda c: c.cube_id):
            model.cubes[copy.cube_id] = copy
        self.remember(answer)

    # -- erasing -----------------------------------------------------------------------------------------------------

    @rule(caller=callers, pick=picks, cascade=st.sampled_from(["rebuild", "rebuild", "shred", "refuse"]),
          request=st.sampled_from([None, "x1"]))  # fmt: skip
    def shred(self, caller: Caller, pick: int, cascade: str, request: str | None) -> None:
        cube_id, model = self.cube(pick), self.model
        refusal = model.cube_refusal(caller, cube_id)
        if refusal is None and model.cubes[cube_id].state == "shredded":
            refusal = "ESHREDDED"
        args = {"cube_id": cube_id, "cascade": cascade, "request_id": request}
        self.erase(caller, [cube_id], cascade, None, refusal, args)

    @rule(caller=callers, namespace=st.sampled_from([*NAMESPACES, "f1", "f2"]), cascade=st.sampled_from(["rebuild", "shred"]))
    def shred_namespace(self, caller: Caller, namespace: str, cascade: str) -> None:
        model = self.model
        roots = [c.cube_id for c in model.cubes.values() if model.within(c.namespace, namespace) and c.state != "shredded"]
        refusal = model.namespace_refusal(caller, namespace) or (None if roots else "EINVAL")
        self.erase(caller, roots, cascade, namespace, refusal, {"namespace": namespace, "cascade": cascade})

    def erase(
        self, caller: Caller, roots: list[str], cascade: str, namespace: str | None, refusal: str | None, args: dict[str, Any]
    ) -> None:
        model = self.model
        derived = [] if refusal else model.closure(roots)
        refusal = refusal or model.shred_refusal(roots, derived, cascade)
        answer = self.do("mem_shred", caller, refusal, **{key: value for key, value in args.items() if value is not None})
        if answer is None:
            return
        report, gone = answer["report"], {*roots, *(d.cube_id for d in derived)}
        assert report["shredded"] == sorted(gone)
        rebuilt = {entry["replaces"]: entry["cube_id"] for entry in report["rebuilt"]}
        outside = [d for d in derived if namespace is None or not model.within(d.namespace, namespace)]
        wanted = {d.cube_id for d in outside if model.rebuildable(d, gone, set(roots))} if cascade == "rebuild" else set[str]()
        assert rebuilt.keys() == wanted
        affected = {c.cube_id for c in model.cubes.values() if c.cube_id not in gone and any(v.key in gone for v in c.versions)}
        direct = {i for i in affected if (origin := model.cubes[i].forked_from) is not None and origin[0] in gone}
        assert direct <= set(report["forks"]) <= {c.cube_id for c in model.cubes.values() if c.forked_from} - gone
        model.shred(roots, derived, rebuilt, answer["offset"], self.k.kernel.chain.time)
        self.remember(answer)

    # -- time and accidents ------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.5, 2.5, 70.0]), tick=st.booleans())
    def time_passes(self, seconds: float, tick: bool) -> None:
        clock = self.k.clock
        assert isinstance(clock, ManualClock)
        clock.advance(seconds)
        if not tick:
            return
        self.k.tick()
        ended = [c for c in self.model.cubes.values() if c.state != "expired" and self.model.state(c, self.now) == "expired"]
        for cube in ended:
            cube.state, cube.expires_at = "expired", None

    @rule(how=st.sampled_from(["reopen", "crash", "crash"]))
    def restart(self, how: str) -> None:
        before = self.k.digest
        self.k.reopen() if how == "reopen" else self.k.crash()
        assert self.k.digest == before

    @rule()
    def the_log_alone_gives_the_state(self) -> None:
        assert replay(self.k.log) == (self.k.digest, self.k.rows())

    # -- looking -----------------------------------------------------------------------------------------------------

    @rule(caller=callers, pick=picks, version=st.one_of(st.none(), st.integers(1, 4)), at=st.one_of(st.none(), picks))
    def read(self, caller: Caller, pick: int, version: int | None, at: int | None) -> None:
        at_offset = None if at is None or version is not None else self.offset(at)
        self.check_read(caller, self.cube(pick), version, at_offset)

    def check_read(self, caller: Caller, cube_id: str, version: int | None = None, at: int | None = None) -> None:
        errno = self.model.cube_refusal(caller, cube_id)
        expected = (errno,) if errno else self.model.read(caller, cube_id, self.now, version, at)
        got: object
        try:
            reply = self.k("mem_read", caller, cube_id=cube_id, version=version, at_offset=at)
            got = reply["content"]
        except MemError as error:
            got, reply = (error.errno,), {}
        if expected == ("EACCES ESHREDDED",):
            # A member is erased or hidden, and which of them is met first is the kernel's affair.
            assert got in (("EACCES",), ("ENOENT",), ("ESHREDDED",))
        else:
            assert got == expected
        if reply and version is None and at is None:
            cube, head = self.model.cubes[cube_id], reply["header"]
            live = cube.live
            assert (head["version"], head["namespace"], head["offset"]) == (live.number, cube.namespace, live.offset)
            assert (head.get("name"), tuple(head.get("tags", ())), head.get("priority", 0)) == (
                live.name,
                live.tags,
                live.priority,
            )
            assert head.get("merged_into") == cube.merged_into
            assert head["state"] == self.model.state(cube, self.now)
            lineage = [(p["cube_id"], p["version"]) for p in head.get("parents", ())]
            assert lineage == list(live.lineage)
            stale = any(self.model.cubes[s].live.number > v for s, v in live.lineage)
            assert head.get("stale", False) == stale

    @rule(caller=callers, namespace=st.sampled_from([None, *NAMESPACES, "f1"]), at=st.one_of(st.none(), picks),
          state=st.sampled_from([None, None, "expired", "shredded", "merged"]))  # fmt: skip
    def listing(self, caller: Caller, namespace: str | None, at: int | None, state: str | None) -> None:
        at_offset = None if at is None else self.offset(at)
        refusal = self.model.namespace_refusal(caller, namespace) if namespace else None
        args = {"namespace": namespace, "at_offset": at_offset, "state": state, "limit": 7}
        if refusal:
            assert self.k.refusal("mem_list", caller, **args) == refusal
            return
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = self.k("mem_list", caller, cursor=cursor, **args)
            found += [head["cube_id"] for head in page["cubes"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert sorted(found) == self.model.listed(caller, namespace, self.now, at_offset, state)

    @rule(caller=callers, pick=picks, namespace=st.sampled_from([None, None, "a", "b", "f1"]), at=st.one_of(st.none(), picks))
    def search(self, caller: Caller, pick: int, namespace: str | None, at: int | None) -> None:
        at_offset = None if at is None else self.offset(at)
        if namespace and (refusal := self.model.namespace_refusal(caller, namespace)):
            assert self.k.refusal("mem_search", caller, query="x", namespace=namespace) == refusal
            return
        word = word_of(pick % (self.words + 1))
        args = {"query": word, "mode": "lexical", "k": 100, "namespace": namespace, "at_offset": at_offset}
        # A search waits for what its own connection wrote; what others wrote may come a moment later.
        self.k.settle()
        hits = self.k("mem_search", caller, **args)["hits"]
        expected = self.model.findable(caller, word, namespace, self.now, at_offset)
        assert sorted((hit["cube_id"], hit["version"]) for hit in hits) == expected
        for hit in hits:
            assert word in hit["content"]

    @rule(caller=callers, pick=picks)
    def history(self, caller: Caller, pick: int) -> None:
        cube_id = self.cube(pick)
        if refusal := self.model.cube_refusal(caller, cube_id):
            for name in ("mem_history", "mem_stat"):
                assert self.k.refusal(name, caller, cube_id=cube_id) == refusal
            assert self.k.refusal("mem_diff", caller, cube_id=cube_id, a=1, b=1) == refusal
            return
        versions = self.k("mem_history", caller, cube_id=cube_id)["versions"]
        cube = self.model.cubes[cube_id]
        assert [(v["version"], v["offset"]) for v in versions] == [(v.number, v.offset) for v in cube.versions]
        head = self.k("mem_stat", caller, cube_id=cube_id)["header"]
        assert head["state"] == self.model.state(cube, self.now)

    def check_everything(self) -> None:
        for cube_id, cube in self.model.cubes.items():
            self.check_read(ADMIN, cube_id)
            for ver in cube.versions:
                self.check_read(ADMIN, cube_id, ver.number)
        digest = self.k.digest
        assert replay(self.k.log) == (digest, self.k.rows())
        self.k.crash()
        assert self.k.digest == digest
        for offset in list(self.model.past)[-12:]:
            for cube_id in list(self.model.cubes)[::3]:
                self.check_read(ADMIN, cube_id, None, offset)
        self.k.reopen()
        assert replay(self.k.log) == (self.k.digest, self.k.rows())


class CallsOnDisk(Calls):
    """The same on a real database, which is opened anew at each restart."""

    rocks = True


EXAMPLES = int(os.environ.get("MEMOS_PROPERTY_EXAMPLES", "60"))
TestCalls = pytest.mark.slow(Calls.TestCase)
TestCalls.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
TestCallsOnDisk = pytest.mark.slow(CallsOnDisk.TestCase)
TestCallsOnDisk.settings = settings(max_examples=max(EXAMPLES // 10, 1), stateful_step_count=50, deadline=None)
