"""What an adapter's payload says that it was taught: facts, and the probes that were held out from its training.

An adapter may come from anywhere, so every field is looked at before it is believed. Facts of several adapters become those of
one by `union`: the probes of each keep to their own facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Probe
from memos_syscalls.errors import MemInvalid

FACTS_MAX: Final = 4096
PROBES_MAX: Final = 65_536
CHARS_MAX: Final = 4096
_FACT: Final = {"statement": str, "prompt": str, "object": str, "subject": str, "source": int, "when": int}
_PROBE: Final = {"prompt": str, "answer": str, "chat": bool, "fact": int, "kind": str}


class Taught(NamedTuple):
    facts: list[Fact]
    probes: list[Probe]

    @property
    def subjects(self) -> list[str]:
        return sorted({fact.subject for fact in self.facts})

    def told(self) -> dict[str, Any]:
        """As a payload says it; nothing when there is nothing."""
        if not self.facts:
            return {}
        return {
            "facts": [fact._asdict() for fact in self.facts], "probes": [probe._asdict() for probe in self.probes], "forms": [],
        }  # fmt: skip


def taught(said: Mapping[str, Any]) -> Taught:
    """Raises `MemInvalid` for what is not of these shapes."""
    facts = [Fact(**row) for row in _rows(said, "facts", _FACT, FACTS_MAX)]
    probes = [Probe(**row) for row in _rows(said, "probes", _PROBE, PROBES_MAX)]
    if any(not fact.subject.strip() or not fact.prompt.strip() or not fact.object.strip() for fact in facts):
        raise MemInvalid("a fact of the adapter has no subject, prompt or object")
    if any(not 0 <= probe.fact < len(facts) or not probe.prompt.strip() for probe in probes):
        raise MemInvalid("a probe of the adapter asks nothing, or is of a fact that is not there")
    return Taught(facts, probes)


def _rows(said: Mapping[str, Any], name: str, shape: Mapping[str, type], most: int) -> list[dict[str, Any]]:
    found: Any = said.get(name, [])
    if type(found) is not list:
        raise MemInvalid(f"the adapter's {name} are not a list")
    rows: list[Any] = found
    if len(rows) > most:
        raise MemInvalid(f"the adapter has {len(rows)} {name}; the limit is {most}")
    for row in rows:
        fields: dict[Any, Any] = row if type(row) is dict else {}
        if {key: type(value) for key, value in fields.items()} != shape:
            raise MemInvalid(f"one of the adapter's {name} has not the fields {', '.join(shape)}")
        if any(type(value) is str and len(value) > CHARS_MAX for value in fields.values()):
            raise MemInvalid(f"one of the adapter's {name} has a text of more than {CHARS_MAX} characters")
    return rows


def union(those: Sequence[Taught]) -> Taught:
    facts: list[Fact] = []
    probes: list[Probe] = []
    for one in those:
        probes += [probe._replace(fact=probe.fact + len(facts)) for probe in one.probes]
        facts += one.facts
    return Taught(facts, probes)
