"""A model behind an OpenAI-compatible `/v1/chat/completions`, which the caller names; asked, and not believed.

- The key is read from an environment variable when it is needed. It stands in no message, no cube and no `repr`.
- One answer takes at most `timeout_s` in all, however slowly it drips, and at most `ANSWER_BYTES_MAX`.
- Redirects are not followed and proxies not used: the key goes to the host that was named, and nowhere else.
- Whatever goes wrong is `EndpointFailed` with one of a few reasons, in words that hold nothing the endpoint said.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from memos_syscalls.errors import MemInvalid

ANSWER_BYTES_MAX: Final = 1024 * 1024
KEY_CHARS_MAX: Final = 4096
TIMEOUT_SECONDS_DEFAULT: Final = 60.0
_PATH: Final = "/chat/completions"


class EndpointFailed(Exception):
    """No usable answer; `args[0]` says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers: the URL up to `/v1` or to the end, the model's name, and the variable that holds the key."""

    url: str
    model: str
    key_env: str | None = None
    timeout_s: float = TIMEOUT_SECONDS_DEFAULT

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port_is_right = parts.port is None or parts.port > 0
        except ValueError as error:
            raise MemInvalid("the endpoint's URL is malformed", "Give http://HOST:PORT/v1 or https://HOST/v1.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right or not self.url.isprintable():
            raise MemInvalid("the endpoint's URL is malformed", "Give http://HOST:PORT/v1 or https://HOST/v1.")
        if parts.username or parts.password:
            raise MemInvalid("the endpoint's URL holds a password", "Put the key into an environment variable and name that.")
        if not self.model or self.timeout_s <= 0:
            raise MemInvalid("an endpoint needs a model's name and a time to wait")

    def key(self) -> str | None:
        """The key, if one was named; a variable that is not there is an error before anything is done."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise MemInvalid(f"the environment variable {self.key_env} is not set", "Set it to the endpoint's key.")
        if len(key) > KEY_CHARS_MAX or not key.isascii() or not key.isprintable() or " " in key:
            raise MemInvalid(f"the environment variable {self.key_env} does not hold a key", "Set it to the endpoint's key.")
        return key


def complete(endpoint: Endpoint, key: str | None, messages: Sequence[dict[str, str]]) -> str:
    """What the model says to these messages."""
    body = json.dumps({"model": endpoint.model, "messages": list(messages), "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    status, data = _post(urlsplit(endpoint.url), body, headers, endpoint.timeout_s)
    if status != http.HTTPStatus.OK:
        raise EndpointFailed(f"HTTP status {status}")
    try:
        answer: Any = json.loads(data)
        content = answer["choices"][0]["message"]["content"]
    except (ValueError, RecursionError) as error:
        raise EndpointFailed("the answer is not JSON") from error
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointFailed("the answer is no chat completion") from error
    if not isinstance(content, str):
        raise EndpointFailed("the answer is no chat completion")
    return content


def _post(url: SplitResult, body: bytes, headers: dict[str, str], timeout_s: float) -> tuple[int, bytes]:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    path = url.path.rstrip("/")
    path = path if path.endswith(_PATH) else (path or "/v1") + _PATH
    connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    late = threading.Event()
    held: list[socket.socket] = []  # The connection forgets its socket once an answer began.

    def give_up() -> None:
        late.set()
        for sock in [*held, *filter(None, [connection.sock])]:
            with contextlib.suppress(OSError):  # It ended by itself meanwhile.
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    try:
        timer.start()
        connection.connect()
        held.append(connection.sock)
        connection.request("POST", path + (f"?{url.query}" if url.query else ""), body, headers)
        answer = connection.getresponse()
        data = answer.read(ANSWER_BYTES_MAX + 1)
    except TimeoutError as error:
        raise EndpointFailed("no answer in time") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EndpointFailed("no answer in time" if late.is_set() else "no connection") from error
    finally:
        timer.cancel()
        connection.close()
    if late.is_set():
        raise EndpointFailed("no answer in time")
    if len(data) > ANSWER_BYTES_MAX:
        raise EndpointFailed("the answer is too long")
    return answer.status, data
