"""Facts from an endpoint: what it says is checked, whatever it does the turns stay, and its key stands nowhere."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from memos_client.formats import Turn
from memos_client.ingest import Endpoint, IngestFacts, IngestRequest, ingest
from memos_client.reading.endpoint import ANSWER_BYTES_MAX, EndpointFailed
from memos_client.reading.extraction import NAMED_NONE, REFUSED
from memos_client.reading.facts import FACT_CHARS_MAX, Window, kept, windows
from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid, MemNotFound, MemUnreachable

KEY = "sk-sentinel-4471-kite"
Answer = Callable[[BaseHTTPRequestHandler, Any], None]


def says(handler: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    """A chat completion with this content."""
    raw(handler, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode(), status)


def raw(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def honest(handler: BaseHTTPRequestHandler, asked: Any) -> None:
    turns = json.loads(asked["messages"][1]["content"])["turns"]
    facts = [{"fact": f"It is said: {turn['text']}", "turns": [turn["turn"]]} for turn in turns if "soup" in turn["text"]]
    says(handler, json.dumps({"facts": facts}))


class Server:
    """An endpoint that answers as it is told."""

    def __init__(self) -> None:
        self.answer: Answer = honest
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, dict(self.headers), body))
                outer.answer(self, body)

            def log_message(self, format: str, *args: Any) -> None:
                logging.getLogger(__name__).debug(format, *args)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                logging.getLogger(__name__).debug("the other side went away")

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Stub:
    """Cubes with ids, request ids that are kept, and a list of the facts."""

    def __init__(self) -> None:
        self.cubes: list[m.NewCube] = []
        self.answers: dict[str, tuple[list[Any], m.MemAllocManyReply]] = {}
        self.refuses: Exception | None = None

    def sys_info(self) -> m.SysInfoReply:
        return m.SysInfoReply(
            abi=1, version="0", log_id="", epoch=1, head_offset=len(self.answers), head_hash="", state_digest="",
            state_schema=1, log={}, public_key="", drivers=[], models=[], principal="uid:0", admin=True,
        )  # fmt: skip

    def mem_alloc_many(
        self, items: Sequence[m.NewCube | Mapping[str, Any]], *, request_id: str | None = None
    ) -> m.MemAllocManyReply:
        assert request_id is not None
        given = [m.NewCube.model_validate(item) for item in items]
        if request_id in self.answers:
            before, reply = self.answers[request_id]
            if before != given:
                raise MemInvalid("this request id was used for another call")
            return reply
        if self.refuses is not None and given[0].parents:
            raise self.refuses
        self.cubes += given
        first = len(self.cubes) - len(given)
        made = [m.AllocatedItem(cube_id=cube_id(first + n), version=1) for n in range(len(given))]
        self.answers[request_id] = (given, m.MemAllocManyReply(items=made, offset=len(self.answers) + 1))
        return self.answers[request_id][1]

    def mem_list(
        self, namespace: str | None = None, *, tags: Sequence[str] | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> m.MemListReply:  # fmt: skip
        start = int(cursor or 0)
        found = [cube for cube in self.cubes if set(tags or ()) <= set(cube.tags or ())]
        # One a page: pages are followed.
        shown = [
            m.CubeHeader.model_construct(metadata=cube.metadata or {}, parents=[{"cube_id": one} for one in cube.parents or ()])
            for cube in found[start : start + 1]
        ]
        return m.MemListReply.model_construct(cubes=shown, next_cursor=str(start + 1) if start + 1 < len(found) else None)

    @property
    def facts(self) -> list[m.NewCube]:
        return [cube for cube in self.cubes if cube.parents]


def cube_id(number: int) -> str:
    return f"0192f0c1-0000-7000-8000-{number:012d}"


@pytest.fixture
def server() -> Generator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.json"
    turns = [{"speaker": "Al", "text": f"turn {n} of soup" if n % 2 else f"turn {n}"} for n in range(40)]
    path.write_text(json.dumps({"sessions": [{"date": "2023-05-08", "turns": turns[:20]}, {"turns": turns[20:]}]}))
    return path


def extracted(kernel: Stub, talk: Path, endpoint: Endpoint) -> IngestFacts:
    summary = ingest(kernel, talk, None, "a", extract=endpoint)
    assert isinstance(summary, IngestFacts)
    assert summary.turns == 40 == len(kernel.cubes) - len(kernel.facts)
    return summary


def test_a_fact_is_a_cube_that_stands_on_its_turns(server: Server, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    kernel = Stub()
    summary = extracted(kernel, talk, Endpoint(server.url, "m-1", "THE_KEY"))
    assert (summary.facts, summary.new_facts, summary.without_facts, summary.dropped_facts) == (20, 20, {NAMED_NONE: 20}, {})
    fact = kernel.facts[0]
    assert fact.content == "It is said: turn 1 of soup"
    assert (fact.origin, fact.semantic_type, fact.tags, fact.valid_from) == (
        "inference",
        "fact",
        ["extracted"],
        1683504000 * 10**9,
    )
    assert fact.parents == [cube_id(1)] and fact.metadata is not None and "position" not in fact.metadata
    assert fact.metadata["turns"] == ["D1:2"] and fact.metadata["extracted"]["prompt"] == "facts/1"
    assert {headers["Authorization"] for _path, headers, _body in server.asked} == {f"Bearer {KEY}"}
    assert [path for path, _headers, _body in server.asked] == ["/v1/chat/completions"] * 4
    assert KEY not in summary.model_dump_json() + "".join(cube.model_dump_json() for cube in kernel.cubes)


def test_a_second_run_adds_nothing_and_asks_nothing(server: Server, talk: Path) -> None:
    kernel, endpoint = Stub(), Endpoint(server.url, "m-1")
    first = extracted(kernel, talk, endpoint)
    asked, cubes = len(server.asked), len(kernel.cubes)
    again = extracted(kernel, talk, endpoint)
    assert (again.facts, again.new_facts, again.new) == (first.facts, 0, 0) and again.without_facts == first.without_facts
    assert (len(server.asked), len(kernel.cubes)) == (asked, cubes)
    assert extracted(kernel, talk, Endpoint(server.url, "m-2")).new_facts == first.facts


def drips(handler: BaseHTTPRequestHandler, _asked: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def hangs_up(handler: BaseHTTPRequestHandler, _asked: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def redirects(handler: BaseHTTPRequestHandler, _asked: Any) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:1/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def echoes_the_key(handler: BaseHTTPRequestHandler, _asked: Any) -> None:
    raw(handler, handler.headers["Authorization"].encode(), 401)


LIES: list[tuple[str, Answer, str]] = [
    ("silent", lambda _handler, _asked: time.sleep(1.5), "no answer in time"),
    ("dripping", drips, "no answer in time"),
    ("gone", hangs_up, "no connection"),
    ("redirect", redirects, "HTTP status 307"),
    ("echo", echoes_the_key, "HTTP status 401"),
    ("html", lambda handler, _asked: raw(handler, b"<html>"), "the answer is not JSON"),
    ("deep", lambda handler, _asked: raw(handler, b"[" * 100_000), "the answer is not JSON"),
    ("bytes", lambda handler, _asked: raw(handler, b"\xff\xfe\x00"), "the answer is not JSON"),
    ("empty", lambda handler, _asked: raw(handler, b""), "the answer is not JSON"),
    ("huge", lambda handler, _asked: raw(handler, b"x" * (ANSWER_BYTES_MAX + 1)), "the answer is too long"),
    ("other", lambda handler, _asked: raw(handler, b'{"choices": []}'), "the answer is no chat completion"),
    ("nothing", lambda handler, _asked: says(handler, None), "the answer is no chat completion"),
    ("prose", lambda handler, _asked: says(handler, "Sure! Here are the facts:"), "the model did not answer with JSON"),
    ("number", lambda handler, _asked: says(handler, "5"), "the model's JSON has no list of facts"),
    ("error", lambda handler, _asked: raw(handler, b"{}", 500), "HTTP status 500"),
]


@pytest.mark.parametrize(("answer", "reason"), [row[1:] for row in LIES], ids=[row[0] for row in LIES])
def test_an_endpoint_that_lies_or_dies_costs_no_turn(
    server: Server, talk: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    kernel, server.answer = Stub(), answer
    summary = extracted(kernel, talk, Endpoint(server.url, "m", "THE_KEY", timeout_s=0.4))
    assert (summary.new, summary.facts) == (40, 0) and sum(summary.without_facts.values()) == 40
    assert summary.without_facts[reason] == 16 + 4 + 16 and len(server.asked) == 3
    assert [why for why in summary.without_facts if "not asked after 3 failures" in why and reason in why]
    assert KEY not in summary.model_dump_json()
    server.answer = honest
    assert extracted(kernel, talk, Endpoint(server.url, "m", "THE_KEY")).new_facts == 20


def test_a_dead_port_costs_no_turn(talk: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    summary = extracted(Stub(), talk, Endpoint(url, "m", timeout_s=2))
    assert summary.without_facts["no connection"] == 36


WINDOW = Window(0, (Turn("I have a dog named Biscuit", 1, 1, speaker="Maya"), Turn("Nice!", 1, 2, speaker="Tomas")))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"fact": "Maya has a dog.", "turns": [1]}, ""),
        ({"fact": "Maya has a dog.", "turns": [1, 2, 1]}, ""),
        ({"fact": "Maya has a dog.", "turns": [3]}, "names turns that do not exist"),
        ({"fact": "Maya has a dog.", "turns": [0]}, "names turns that do not exist"),
        ({"fact": "Maya has a dog.", "turns": [1, 99]}, "names turns that do not exist"),
        ({"fact": "Maya has a dog.", "turns": []}, "no turns named"),
        ({"fact": "Maya has a dog.", "turns": ["1"]}, "no turns named"),
        ({"fact": "Maya has a dog.", "turns": [True]}, "no turns named"),
        ({"fact": "Maya has a dog."}, "no turns named"),
        ({"fact": "Paris lies in France.", "turns": [1]}, "shares no word with its turns"),
        ({"fact": "Maya " * FACT_CHARS_MAX, "turns": [1]}, "too long"),
        ({"fact": "  ", "turns": [1]}, "no text"),
        ({"fact": 5, "turns": [1]}, "no text"),
        ("Maya has a dog.", "no text"),
        (None, "no text"),
    ],
)
def test_what_of_an_answer_is_kept(entry: object, reason: str) -> None:
    facts, dropped = kept(json.dumps({"facts": [entry]}), WINDOW)
    assert dict(dropped) == ({reason: 1} if reason else {}) and len(facts) == (not reason)


def test_fences_lists_and_doubles_are_understood_and_facts_are_bounded() -> None:
    one = {"fact": "Maya has a \ud83d dog.", "turns": [1]}
    facts, dropped = kept("```json\n" + json.dumps([one, one]) + "\n```", WINDOW)
    assert [fact.text for fact in facts] == ["Maya has a ? dog."] and not dropped
    many = [{"fact": f"Maya has {n} dogs.", "turns": [1]} for n in range(100)]
    facts, dropped = kept(json.dumps({"facts": many}), WINDOW)
    assert len(facts) == 64 and dropped == {"too many facts": 36}
    with pytest.raises(EndpointFailed):
        kept("[" * 100_000, WINDOW)


def test_windows_end_with_sessions_and_are_bounded() -> None:
    turns = [Turn("x", 1, n) for n in range(20)] + [Turn("y" * 7000, 2, n) for n in range(3)]
    assert [(w.start, len(w.turns)) for w in windows(turns)] == [(0, 16), (16, 4), (20, 1), (21, 1), (22, 1)]
    assert list(windows([])) == []


def test_facts_that_the_kernel_refuses_cost_no_turn(server: Server, talk: Path) -> None:
    kernel = Stub()
    kernel.refuses = MemNotFound("no such cube")
    assert extracted(kernel, talk, Endpoint(server.url, "m")).without_facts == {REFUSED: 40}
    kernel.refuses = MemUnreachable("the kernel went away")
    with pytest.raises(MemUnreachable):
        extracted(kernel, talk, Endpoint(server.url, "m"))


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "ключ", "x" * 5000])
def test_a_key_that_is_none_is_refused_before_anything_is_made(
    talk: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    kernel = Stub()
    with pytest.raises(MemInvalid) as caught:
        ingest(kernel, talk, None, "a", extract=Endpoint("http://127.0.0.1:1/v1", "m", "THE_KEY"))
    assert kernel.cubes == [] and not (value and value in str(caught.value))


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/v1", "http://", "x.example/v1", "http://u:p@x.example/v1", "http://x:0/v1", "http://x:y/", "http://x/\n"],
)
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(MemInvalid) as caught:
        Endpoint(url, "m")
    assert "u:p" not in str(caught.value)


def test_the_shell_names_an_endpoint_by_options() -> None:
    def asked(**options: str) -> Endpoint | None:
        return IngestRequest.model_validate({"file": "f", "namespace": "a", **options}).endpoint()

    named = asked(extract_url="http://x.example/v1", extract_model="m", extract_key_env="K")
    assert named == Endpoint("http://x.example/v1", "m", "K")
    assert asked() is None
    with pytest.raises(MemInvalid):
        asked(extract_model="m")
