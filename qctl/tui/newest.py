"""A place for one value, from any thread into an event loop: the newest wins, and nothing piles up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """`put` from any thread; `taken` is called on the loop, once for all that was put until then."""

    def __init__(self, loop: asyncio.AbstractEventLoop, taken: Callable[[T], None]) -> None:
        self._loop, self._taken = loop, taken
        self._lock = threading.Lock()
        self._slot: list[T] = []

    def put(self, value: T) -> None:
        """Leave a value there instead of the one that is there; returns at once, also when the loop is over."""
        with self._lock:
            waiting, self._slot = bool(self._slot), [value]
        if not waiting:
            try:
                self._loop.call_soon_threadsafe(self._take)
            except RuntimeError:
                pass  # the loop is closed: nobody looks any more

    def _take(self) -> None:
        with self._lock:
            (value,), self._slot = self._slot, []
        self._taken(value)
