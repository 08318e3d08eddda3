"""A kernel on a topic of its own, calls going on, and what must hold when the fault is over.

- `Scene` starts `memosd` on a fresh topic and `Load` on it. `again` starts it anew on its old directory.
- `sound` is the end of every test that left a log to go on with: nothing that was acknowledged is lost, nothing is doubled,
  and a kernel that knows nothing but the topic comes to the same digest.
- MEMOS_FAULT_SECONDS says how long a fault lasts: seconds in `make test`, a minute in `make crash`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.load import FAULT_SECONDS, Load
from tests.outside import Daemon, Wire

THOROUGH: Final = FAULT_SECONDS >= 10
"""Whether there is time for every fault, or for a selection."""
RECOVERY_SECONDS: Final = 40.0
"""How soon after a fault calls must be acknowledged again, on a machine that has other work besides."""
KEY: Final = "5e" * 32


class Scene:
    """`with` ends the kernel with SIGKILL if it still runs."""

    def __init__(
        self, folder: Path, kernel_sees: str, *, direct: str | None = None, options: Mapping[str, str] | None = None,
        topic: str | None = None, arguments: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.folder = folder
        self.topic = topic or f"memos-{uuid.uuid4().hex[:12]}"
        self.direct = direct or kernel_sees
        """Where a kernel that the fault does not touch finds the brokers."""
        folder.mkdir(parents=True, exist_ok=True)
        key = folder / "master.key"
        key.write_text(KEY)
        key.chmod(0o600)
        self.arguments: tuple[str, ...] = ("--master-key-file", str(key))
        more = arguments
        if options:
            settings = folder / "kafka.properties"
            settings.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
            settings.chmod(0o600)
            more = (*more, "--kafka-config", str(settings))
        self._command = ("--log", f"kafka://{kernel_sees}/{self.topic}", *more, *self.arguments)
        self._said = 0
        self.daemon = Daemon(folder / "data", *self._command)
        self.load = Load(self.daemon.socket)

    def again(self, name: str = "data") -> Daemon:
        """The kernel once more, on its old directory or a new one."""
        self.daemon.kill()
        self._said = len(self.daemon.said()) if name == "data" else 0
        self.daemon = Daemon(self.folder / name, *self._command)
        self.load.socket = self.daemon.socket
        return self.daemon

    def wire(self, seconds: float = 60) -> Wire:
        return Wire(self.daemon.socket, seconds=seconds)

    def info(self) -> dict[str, Any]:
        with self.wire() as wire:
            return wire.call("sys_info")

    @property
    def topics(self) -> tuple[str, ...]:
        return self.topic, f"{self.topic}.payloads", f"{self.topic}.keys"

    def runs(self) -> None:
        """The kernel neither ended nor was replaced."""
        assert self.daemon.process.poll() is None, self.daemon.said()

    def ended(self, seconds: float = RECOVERY_SECONDS) -> int:
        """The exit status of a kernel that ends by itself."""
        return self.daemon.process.wait(seconds)

    def refused(self, name: str = "data") -> int:
        """The exit status of another start."""
        self.again(name)
        return self.ended()

    def said_last(self) -> str:
        """What the kernel said since it was started."""
        return self.daemon.said()[self._said :]

    def only_waited(self) -> None:
        """Nobody heard anything but that they should come again, or that their outcome is open."""
        odd = set(self.load.errors()) - {("EAGAIN", "none"), ("ETIMEDOUT", "unknown"), ("ETIMEDOUT", "none")}
        assert odd == set(), f"{self.load}\n{self.daemon.said()}"

    def sound(self) -> None:
        """Everybody was told the truth, and the topic says the same as the kernel."""
        self.load.honest()
        with self.wire() as wire:
            self.load.settle(wire)
            self.load.check(wire)
            report = wire.call("sys_verify", full=True)
            assert report["ok"], report["problems"]
            self.same_as_the_topic_says(wire)
        assert self.daemon.stop() == 0, self.daemon.said()
        assert "Traceback" not in self.daemon.said(), self.daemon.said()

    def same_as_the_topic_says(self, wire: Wire) -> None:
        """A standby on an empty directory has nothing but the topic."""
        name = f"rebuilt-{uuid.uuid4().hex[:6]}"
        log = ("--log", f"kafka://{self.direct}/{self.topic}")
        with Daemon(self.folder / name, *log, *self.arguments, "--standby") as other, Wire(other.socket) as there:
            until = time.monotonic() + RECOVERY_SECONDS
            while True:
                mine, its = wire.call("sys_info"), there.call("sys_info")
                if mine["head_offset"] == its["head_offset"]:
                    break
                assert time.monotonic() < until, f"the topic leads to {its}, the kernel is at {mine}"
                time.sleep(0.1)
            assert mine["state_digest"] == its["state_digest"]
            self.load.check(there)
            assert other.stop() == 0, other.said()

    def __enter__(self) -> Self:
        try:
            self.daemon.ready()
        except BaseException:
            self.daemon.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.daemon.kill()
