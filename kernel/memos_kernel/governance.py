"""Who may do what: the one place that every call, search hit and watch item passes. Pure.

Rule 1. Who made a namespace owns it and everything below; the kernel's own uid is admin and may do everything.
Rule 2. To anyone else an object that exists and one that does not look the same: both are `EACCES`. Only an admin, who
        may see everything, is told `ENOENT`.
Rule 3. A namespace that nobody owns, directly or by an ancestor, may be made by anyone.
"""

from __future__ import annotations

from typing import NamedTuple

from memos_syscalls.errors import MemDenied, MemError, MemNotFound

from .state import Cube, View


class Caller(NamedTuple):
    """Who calls: a principal (`uid:1000`), and whether it is the kernel's own."""

    principal: str
    admin: bool


def may(caller: Caller, owner: str | None) -> bool:
    """The rule itself. Grants will extend it here."""
    return caller.admin or (owner is not None and owner == caller.principal)


def hidden(caller: Caller, what: str) -> MemError:
    """The error for an object that is not there, or that the caller must not know of."""
    return MemNotFound(f"no {what}") if caller.admin else MemDenied(f"no {what} that you may use")


def text_id(cube_id: bytes) -> str:
    """A cube id as callers write it."""
    h = cube_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def raw_id(text: str) -> bytes:
    """The 16 bytes of an id that the request model has checked."""
    return bytes.fromhex(text.replace("-", ""))


class Access:
    """A view through one caller's eyes. Remembers owners, so it must not outlive the turn it was made in."""

    __slots__ = ("_owners", "caller", "view")

    def __init__(self, view: View, caller: Caller) -> None:
        self.view = view
        self.caller = caller
        self._owners: dict[str, bool] = {}

    def sees(self, namespace: str) -> bool:
        """Whether the caller may read what lives in a namespace."""
        if self.caller.admin:
            return True
        known = self._owners.get(namespace)
        if known is None:
            known = self._owners[namespace] = may(self.caller, self.view.owner(namespace))
        return known

    def cube(self, text: str) -> Cube:
        """A cube that the caller may read and change."""
        cube = self.view.cube(raw_id(text))
        if cube is None or not self.sees(cube.namespace):
            raise hidden(self.caller, f"cube {text}")
        return cube

    def namespace(self, name: str) -> str:
        """A namespace that exists and that the caller owns."""
        if self.view.namespace(name) is None or not self.sees(name):
            raise hidden(self.caller, f"namespace {name}")
        return name

    def target(self, name: str) -> str:
        """A namespace that the caller owns or may make."""
        owner = self.view.owner(name)
        if owner is not None and not may(self.caller, owner):
            raise MemDenied(f"namespace {name} is not yours")
        return name

    def scopes(self) -> list[str] | None:
        """Namespaces that the caller may search when it names none; None means all."""
        if self.caller.admin:
            return None
        return [n.name for n in self.view.namespaces() if "/" not in n.name and n.owner == self.caller.principal]
