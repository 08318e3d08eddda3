"""The socket: bytes and descriptors in, calls out, replies back. The only module that speaks to clients.

- A connection is who its peer credentials say; the overflow uid is refused. The first call must be `sys_hello`.
- Backpressure: the kernel stops reading from a connection that has 1,024 calls in progress or 8 MiB of replies unread,
  and goes on when it has caught up. Others do not notice.
- At most 16 frames of one connection are taken in one turn of the loop, so that a flood waits its turn.
- A malformed frame is answered with `EPROTO` under id 0 and the connection closes. Nothing a client sends raises here.

Sockets are handled with `add_reader` and `recvmsg`, because asyncio's streams cannot carry descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from memos_syscalls import limits, wire
from memos_syscalls.errors import MemBusy, MemCanceled, MemDenied, MemError, MemProtocol
from memos_syscalls.table import BY_NAME

from . import __version__
from .dispatch import WRITES, Kernel
from .fds import mapped
from .governance import Caller
from .turn import Turn

log_ = logging.getLogger("memos.server")

HELLO: Final = BY_NAME["sys_hello"].number
WATCH: Final = BY_NAME["mem_watch"].number
RECV_BYTES: Final = 256 * 1024
FRAMES_PER_TURN: Final = 16
TURN_SECONDS: Final = 0.001
LINGER_NS: Final = 80_000
"""After a read the loop looks again for this long before it sleeps: on virtual machines a wake-up outlasts a read."""
LOOKS_LEFT_OUT: Final = 32
OUTBOX_FDS_MAX: Final = 64
"""Descriptors in replies that a slow reader may leave unread before the kernel stops reading its requests."""
REFS_SECONDS: Final = 0.05
OVERFLOW_UID: Final = 65534
_CREDENTIALS: Final = struct.Struct("3i")


class Connection:
    """One client. `Peer` for the calls it makes."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._kernel = server.kernel
        self._loop = server.kernel.loop
        self._sock = sock
        self._fd = sock.fileno()
        self.pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        self.caller = Caller(f"uid:{uid}", uid == server.admin_uid)
        self.refused = uid == OVERFLOW_UID
        self.last_write = -1
        self.pending_writes = 0
        self._greeted = False
        self._splitter = wire.Splitter()
        self._frames: deque[bytes] = deque()
        self._descriptors: deque[int] = deque()
        self._turns: dict[int, Turn] = {}
        self._inflight = 0
        self._inflight_bytes = 0
        self._watches = 0
        self._long = 0
        """Calls in progress that run as tasks, each of which may end in a large reply."""
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._outbox_bytes = 0
        self._outbox_fds = 0
        self._reading = False
        self._writing = False
        self._serving = False
        self.closed = False
        self._drained: list[asyncio.Future[None]] = []
        self._hello_timer = self._loop.call_later(limits.HELLO_SECONDS_MAX, self._no_hello)
        self._resume()

    def _no_hello(self) -> None:
        if not self._greeted:
            self.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        if not self._reading and not self.closed:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _address = self._sock.recvmsg(RECV_BYTES, 256, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if ancillary:
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    count = len(payload) // 4
                    self._descriptors.extend(struct.unpack(f"{count}i", payload[: count * 4]))
        if not data:
            self.close()
            return
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > 4 * limits.FDS_PER_FRAME_MAX:
            self._malformed(MemProtocol(f"at most {limits.FDS_PER_FRAME_MAX} descriptors travel with a frame"))
            return
        try:
            self._frames.extend(self._splitter.feed(data))
        except MemError as error:
            self._malformed(error)
            return
        if not self._serving:
            self._serve()

    def _serve(self) -> None:
        """Take frames in order, until none is left or it is another connection's turn."""
        self._serving = False
        until = time.perf_counter() + TURN_SECONDS
        for _ in range(FRAMES_PER_TURN):
            if not self._frames or self.closed or time.perf_counter() > until:
                break
            if (
                self._inflight >= limits.INFLIGHT_PER_CONNECTION_MAX
                or self._outbox_bytes >= limits.OUTBOX_BYTES_MAX
                or self._outbox_fds >= OUTBOX_FDS_MAX
                or self._inflight_bytes >= limits.INFLIGHT_BYTES_MAX
                or self._long >= limits.LONG_PER_CONNECTION_MAX
            ):
                self._pause()
                return
            try:
                frame = self._frames.popleft()
                if not self._greeted and len(frame) > limits.HELLO_BYTES_MAX:
                    raise MemProtocol("the first call on a connection is sys_hello, and it is short")
                call_id, number, args = wire.parse_request(frame)
            except MemError as error:
                self._malformed(error)
                return
            if call_id in self._turns:
                self._malformed(MemProtocol(f"call id {call_id} is in use by a call in progress"))
                return
            self._inflight += 1
            if self._greeted:
                self._call(call_id, number, args, len(frame))
            else:
                self._hello(call_id, number, args)
        if self.closed:
            return
        if self._frames:
            self._serving = True
            self._pause()
            self._loop.call_soon(self._serve)
        else:
            if self._descriptors and not self._splitter.partial:
                # Nobody named them, and no frame is under way that could.
                while self._descriptors:
                    os.close(self._descriptors.popleft())
            self._resume()

    def _call(self, call_id: int, number: int, args: dict[str, Any], size: int) -> None:
        contents: list[memoryview] = []
        mapped_bytes = 0
        if number == WATCH and self._watches >= limits.WATCHES_PER_CONNECTION_MAX:
            self.send_error(
                call_id, MemBusy(f"this connection has {self._watches} watches", "End one, or open another connection.")
            )
            self.done(call_id)
            return
        if self._descriptors and ("fd" in args or "items" in args):
            # The descriptors of a frame arrive with its first byte, so the oldest ones are this frame's.
            fds = [self._descriptors.popleft() for _ in range(min(len(self._descriptors), _descriptors_in(args)))]
            try:
                if self._server.mappings + len(fds) > limits.MAPPINGS_MAX:
                    raise MemBusy("too many descriptors are in progress")
                contents = [mapped(fd) for fd in fds]
                mapped_bytes = sum(len(content) for content in contents)
                if self._server.mapped_bytes(self.caller.principal, 0) + mapped_bytes > limits.MAPPED_BYTES_PER_PRINCIPAL_MAX:
                    raise MemBusy(f"{self.caller.principal} has too many bytes of content in progress")
            except MemError as error:
                self.send_error(call_id, error)
                self.done(call_id)
                return
            finally:
                for fd in fds:
                    os.close(fd)
        turn = self._kernel.call(self, call_id, number, args, contents)
        if turn is None and number not in WRITES:
            self._server.linger()
        if turn is not None:
            self._turns[call_id] = turn
            self._watches += number == WATCH
            turn.size, turn.mapped = size, mapped_bytes
            self._inflight_bytes += size
            turn.mappings = len(contents)
            if contents:
                self._server.mappings += len(contents)
                self._server.mapped_bytes(self.caller.principal, mapped_bytes)
            if (turn.cancel is not None or number not in WRITES) and number != WATCH:
                # Those that run as tasks, and reads that wait for a write: each may end in a large reply.
                turn.long = True
                self._long += 1

    def _hello(self, call_id: int, number: int, args: dict[str, Any]) -> None:
        self._inflight -= 1
        if self.refused:
            self._malformed(
                MemDenied("this user id stands for nobody in particular", "Map the caller's uid into this namespace."), call_id
            )
        elif number != HELLO or type(args.get("abi")) is not int:
            self._malformed(MemProtocol("the first call on a connection is sys_hello with the ABI's number"), call_id)
        elif args["abi"] != limits.ABI:
            self._malformed(MemProtocol(f"this kernel speaks ABI {limits.ABI} to {limits.ABI}, not {args['abi']}"), call_id)
        elif args.get("token") is not None:
            self._malformed(MemDenied("this kernel knows no tokens"), call_id)
        else:
            self._greeted = True
            self._hello_timer.cancel()
            log_id = self._kernel.keys.log_id.hex()
            hello = {"abi": limits.ABI, "principal": self.caller.principal, "server": f"memosd {__version__}", "log_id": log_id}
            self.send_reply(call_id, hello)

    def _malformed(self, error: MemError, call_id: int = 0) -> None:
        """Say what was wrong, and close once it is said."""
        self._pause()
        self.send_error(call_id, error)
        self._frames.clear()
        if not self._outbox:
            self.close()
        else:
            self._loop.call_later(1, self.close)

    # -- Peer --------------------------------------------------------------------------------------------------------

    def send_reply(self, call_id: int, result: dict[str, Any], fds: list[int] | None = None) -> None:
        self._send(wire.pack_reply(call_id, result), fds or [])

    def send_error(self, call_id: int, error: MemError) -> None:
        self._send(wire.pack_error(call_id, error.number, error.to_wire()), [])

    def send_item(self, call_id: int, item: dict[str, Any]) -> None:
        self._send(wire.pack_item(call_id, item), [])

    def done(self, call_id: int) -> None:
        self._inflight -= 1
        turn = self._turns.pop(call_id, None)
        if turn is not None:
            self._watches -= turn.syscall.number == WATCH
            self._inflight_bytes -= turn.size
            if turn.mappings:
                self._server.mappings -= turn.mappings
                self._server.mapped_bytes(self.caller.principal, -turn.mapped)
            if turn.long:
                self._long -= 1
        if (
            not self._reading
            and not self._serving
            and not self.closed
            and self._inflight < limits.INFLIGHT_PER_CONNECTION_MAX // 2
        ):
            self._go_on()

    def cancel(self, call_id: int) -> bool:
        """Cancel a call of this connection; False when it is over, or too late because its record is under way."""
        turn = self._turns.get(call_id)
        if turn is None or turn.finished or turn.cancel is None or turn.appended:
            return False
        turn.cancel.cancel()
        # A task that has not begun yet never answers.
        turn.fail(MemCanceled("the call was cancelled"))
        return True

    async def writable(self) -> None:
        """Return when the outbox has room."""
        if self._outbox_bytes >= limits.OUTBOX_BYTES_MAX // 8 and not self.closed:
            future: asyncio.Future[None] = self._loop.create_future()
            self._drained.append(future)
            await future

    # -- writing -----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, fds: list[int]) -> None:
        if self.closed:
            for fd in fds:
                os.close(fd)
            return
        if self._server.corked and not fds:
            self._outbox.append((data, fds))
            self._outbox_bytes += len(data)
            self._server.dirty.add(self)
            return
        if not self._outbox and not fds:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._outbox.append((data, fds))
        self._outbox_bytes += len(data)
        self._outbox_fds += len(fds)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def flush(self) -> None:
        """Send what was corked; what does not fit waits for the socket."""
        if self._outbox and not self._writing and not self.closed:
            if len(self._outbox) > 1 and not any(fds for _data, fds in self._outbox):
                whole = b"".join(data for data, _fds in self._outbox)
                self._outbox.clear()
                self._outbox.append((whole, []))
            self._writable()
            if self._outbox and not self.closed:
                self._writing = True
                self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        try:
            while self._outbox:
                data, fds = self._outbox[0]
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
                    sent = self._sock.sendmsg([data], rights)
                    for fd in fds:
                        os.close(fd)
                    self._outbox_fds -= len(fds)
                else:
                    sent = self._sock.send(data)
                self._outbox_bytes -= sent
                if sent < len(data):
                    self._outbox[0] = (data[sent:], [])
                    break
                self._outbox.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS and self._writing:
                # Descriptors under way to whoever does not read are counted together: wait until some were read.
                self._writing = False
                self._loop.remove_writer(self._fd)
                self._loop.call_later(REFS_SECONDS, self._write_on)
            else:
                self.close()
            return
        if not self._outbox and self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        if self._outbox_bytes < limits.OUTBOX_BYTES_MAX // 8:
            for future in self._drained:
                if not future.done():
                    future.set_result(None)
            self._drained.clear()
            if not self._reading and not self._serving:
                self._go_on()

    def _write_on(self) -> None:
        if self._outbox and not self._writing and not self.closed:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _go_on(self) -> None:
        if self._frames:
            self._serving = True
            self._loop.call_soon(self._serve)
        else:
            self._resume()

    def close(self) -> None:
        """End the connection: its reads are cancelled, its writes go through unanswered."""
        if self.closed:
            return
        self.closed = True
        self._hello_timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        for turn in list(self._turns.values()):
            if turn.cancel is not None and not turn.appended:
                turn.cancel.cancel()
        for _data, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        while self._descriptors:
            os.close(self._descriptors.popleft())
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._outbox.clear()
        self._frames.clear()
        self._sock.close()
        self._kernel.maps.closed(self)
        self._server.connections.discard(self)


def _descriptors_in(args: dict[str, Any]) -> int:
    """How many descriptors a frame names."""
    items = args.get("items")
    holders = [args, *items] if isinstance(items, list) else [args]
    named = [h["fd"] for h in holders if isinstance(h, dict) and isinstance(h.get("fd"), int)]
    return min(limits.FDS_PER_FRAME_MAX, max(named, default=-1) + 1)


class Server:
    """The listening socket and its connections."""

    def __init__(self, kernel: Kernel, path: Path, group: int | None) -> None:
        self.kernel = kernel
        self.path = path
        self.admin_uid = os.getuid()
        self.connections: set[Connection] = set()
        self._lingering = False
        self._awake_until = 0
        self._calls = self._calls_before = self._looks_left_out = 0
        self.corked = False
        self.dirty: set[Connection] = set()
        self._mapped: dict[str, int] = {}
        self.mappings = 0
        """Descriptors that calls in progress hold, of everybody: the process may have a bounded number."""
        kernel.cork, kernel.uncork = self.cork, self.uncork
        self._group = group
        self._sock: socket.socket | None = None

    def mapped_bytes(self, principal: str, change: int) -> int:
        """Bytes of descriptors that a principal's calls in progress hold, after a change."""
        total = self._mapped.get(principal, 0) + change
        if change:
            self._mapped[principal] = total
        return total

    def linger(self) -> None:
        """Keep the loop awake for a moment: the caller's next call is probably on its way. After a look in vain (the
        caller may need this very processor) the next ones do without."""
        self._calls += 1
        if self._lingering:
            self._awake_until = time.perf_counter_ns() + LINGER_NS
        elif self._looks_left_out:
            self._looks_left_out -= 1
        else:
            self._lingering = True
            self._calls_before = self._calls
            self._awake_until = time.perf_counter_ns() + LINGER_NS
            self.kernel.loop.call_soon(self._look)

    def _look(self) -> None:
        if time.perf_counter_ns() < self._awake_until and not self.kernel.committing:
            self.kernel.loop.call_soon(self._look)
            return
        self._lingering = False
        if self._calls == self._calls_before:
            self._looks_left_out = LOOKS_LEFT_OUT

    def cork(self) -> None:
        self.corked = True

    def uncork(self) -> None:
        self.corked = False
        while self.dirty:
            self.dirty.pop().flush()

    def listen(self) -> None:
        """Bind with mode 0600 (0660 with a group); a stale socket file is replaced, a live one refused."""
        if self.path.exists():
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(str(self.path))
            except OSError:
                self.path.unlink()
            else:
                raise OSError(f"another kernel answers at {self.path}")
            finally:
                probe.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        previous = os.umask(0o177)
        try:
            sock.bind(str(self.path))
        finally:
            os.umask(previous)
        if self._group is not None:
            os.chown(self.path, -1, self._group)
            os.chmod(self.path, 0o660)
        sock.listen(1024)
        self._sock = sock
        self.kernel.loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._sock is not None
        for _ in range(64):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Out of descriptors: those who are connected go on; the next accept may succeed.
                log_.error("cannot accept a connection: %s", error)
                return
            sock.setblocking(False)
            if len(self.connections) >= limits.CONNECTIONS_MAX:
                sock.close()
                continue
            self.connections.add(Connection(self, sock))

    def close(self) -> None:
        if self._sock is not None:
            self.kernel.loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self.path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()
