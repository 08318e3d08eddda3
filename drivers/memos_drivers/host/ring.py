"""A queue that goes round by owner: who put in three things gets no more turns than who put in one.

Invariants: no owner stands in it without a thing; the first owner is the one whose turn is longest due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """Things that wait for their turn."""

    def __init__(self) -> None:
        self._turns: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(len(things) for things in self._turns.values())

    def __iter__(self) -> Iterator[T]:
        for things in self._turns.values():
            yield from things

    def count(self, who: str) -> int:
        """How many of one owner's things wait."""
        return len(self._turns.get(who, ()))

    def add(self, who: str, thing: T) -> None:
        """Behind the owner's other things; an owner who had none comes last."""
        self._turns.setdefault(who, deque()).append(thing)

    def add_first(self, who: str, thing: T) -> None:
        """Before the owner's other things."""
        self._turns.setdefault(who, deque()).appendleft(thing)

    def take(self, may: Callable[[T], bool] | None = None) -> T | None:
        """The first thing of the first owner for whom it may be, or None; that owner goes to the end."""
        for who, things in self._turns.items():
            if may is None or may(things[0]):
                thing = things.popleft()
                del self._turns[who]
                if things:
                    self._turns[who] = things
                return thing
        return None

    def remove(self, who: str, thing: T) -> bool:
        """Whether the thing was there; it is no longer."""
        things = self._turns.get(who)
        if things is None or thing not in things:
            return False
        things.remove(thing)
        if not things:
            del self._turns[who]
        return True

    def clear(self) -> list[T]:
        """All that waited."""
        every = list(self)
        self._turns.clear()
        return every
