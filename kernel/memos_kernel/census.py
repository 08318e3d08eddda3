"""How many cubes there are, by form, state and namespace, for `sys_stats`.

Counting walks every cube that the caller may see, some 15 µs each, in a thread. What took long is not counted again at once: a
count that took t seconds is given for `AGAIN` · t more, and says as of which record it is. Who asks while it is being counted
gets the same count. A call that gives up waiting does not end the counting, so that the next one finds it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .governance import Access, Caller
from .state import View

if TYPE_CHECKING:
    from .dispatch import Kernel

AGAIN: Final = 10
BRIEF_SECONDS: Final = 0.2
"""What took no longer is always counted anew."""
CALLERS_MAX: Final = 16


class _Count(NamedTuple):
    found: dict[str, Any]
    until: float


class Census:
    """The latest counts, one for each caller."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: OrderedDict[Caller, _Count] = OrderedDict()
        self._running: dict[Caller, asyncio.Task[dict[str, Any]]] = {}

    async def of(self, caller: Caller) -> dict[str, Any]:
        """What the caller may know of, as `SysStatsReply.cubes`."""
        kernel = self._kernel
        known = self._known.get(caller)
        if known is not None and kernel.loop.time() < known.until:
            # A namespace that went meanwhile is not named any more.
            view = kernel.view
            namespaces = {name: entry for name, entry in known.found["namespaces"].items() if view.namespace(name) is not None}
            return {**known.found, "namespaces": namespaces}
        task = self._running.get(caller)
        if task is None:
            task = self._running[caller] = kernel.spawn(self._count(caller))
            task.add_done_callback(lambda _task: self._running.pop(caller))
        return await asyncio.shield(task)

    async def _count(self, caller: Caller) -> dict[str, Any]:
        kernel = self._kernel
        began, at, view = kernel.loop.time(), kernel.durable.seq, kernel.frozen_view()
        found = await asyncio.to_thread(_counted, view, Access(view, caller)) | {"as_of_offset": at}
        took = kernel.loop.time() - began
        if took > BRIEF_SECONDS:
            self._known[caller] = _Count(found, kernel.loop.time() + AGAIN * took)
            self._known.move_to_end(caller)
            while len(self._known) > CALLERS_MAX:
                self._known.popitem(last=False)
        return found


def _counted(view: View, access: Access) -> dict[str, Any]:
    forms: dict[str, int] = {}
    states: dict[str, int] = {}
    namespaces: dict[str, dict[str, int]] = {}
    for namespace in view.namespaces():
        if not access.sees(namespace.name):
            continue
        entry = namespaces.setdefault(namespace.name, {"cubes": 0, "bytes": 0})
        for cube_id in view.cubes_in(namespace.name):
            cube = view.cube(cube_id)
            found = view.version(cube, cube.version) if cube is not None else None
            if cube is None or found is None:
                continue
            forms[cube.form] = forms.get(cube.form, 0) + 1
            states[cube.state] = states.get(cube.state, 0) + 1
            entry["cubes"] += 1
            entry["bytes"] += found[0].payload_bytes
    return {"forms": forms, "states": states, "namespaces": namespaces, "tiers": {"disk": sum(forms.values())}}
