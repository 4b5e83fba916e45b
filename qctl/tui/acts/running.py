"""Acts that were confirmed, while they run and afterwards: each a task on the console's loop, and none ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from qctl.errors import Interrupted, QctlError
from qctl.tui.acts.plan import Act, Shown

#: Acts at one time; each has connections of its own.
MAX_RUNNING = 8
#: The end of the console waits so long for acts to end: for confirmations on their way.
LEAVE_S = 2.0
#: Acts that are over and are kept to be looked at.
MAX_KEPT = 20

log = logging.getLogger(__name__)


def unexpected(what: str, error: Exception) -> QctlError:
    """What an error that is a mistake of ours is to a user; its trace goes to the log."""
    log.error("failed what=%r", what, exc_info=error)
    return QctlError(
        f"it failed within qctl: {type(error).__name__}", hint="This is a mistake in qctl; please report it."
    )


class Running:
    """An act that was begun. failure: what ended it before it was done."""

    def __init__(self, what: str, act: Act, ended: Callable[[Running], None]) -> None:
        """what: in words; ended: called once, when it is over but not when the console ends. Needs a running loop."""
        self.what = what
        #: None when it is over: what it has gathered of a large fleet takes room.
        self._act: Act | None = act
        self._last = Shown()
        self._was_given = False
        self._is_stopped = False
        self.begun_at_s = time.time()
        self.failure: QctlError | None = None
        self.is_over = False
        self._task = asyncio.create_task(self._run(act, ended))

    async def _run(self, act: Act, ended: Callable[[Running], None]) -> None:
        try:
            await act.run()
        except QctlError as error:
            self.failure = error
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise  # the console ends
            done = "what was done until then is done" if act.is_given else "nothing was given"
            self.failure = Interrupted(f"stopped; {done}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the console goes on, and what was given holds
            self.failure = unexpected(self.what, error)
        self._last, self._was_given = act.shown().bounded(), act.is_given
        self._act = None
        self.is_over = True
        ended(self)

    def stop(self) -> None:
        """End it as soon as it can be; what it has given stays given."""
        self._is_stopped = True
        self._task.cancel()

    def shown(self) -> Shown:
        """What is true of it now."""
        return self._last if self._act is None else self._act.shown().bounded()

    @property
    def doing(self) -> str:
        """What is being waited for; "" when it is over."""
        return "" if self._act is None else self._act.doing

    @property
    def last_words(self) -> str:
        """What is true of it when the console has ended it."""
        summary = self.shown().summary
        if self.is_over and self.failure is None:
            return summary or self.what
        if summary:
            return f"{summary} (it was not waited for the rest)"
        is_given = self._was_given if self._act is None else self._act.is_given
        return f"{self.what}: {'not known to be given' if is_given else 'not given'}"

    async def ended(self) -> None:
        """Wait until it is over."""
        await asyncio.wait({self._task})


class Acts:
    """All that was begun here, the newest first; bounded."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._over: deque[Running] = deque(maxlen=MAX_KEPT)
        self._is_left = False

    @property
    def running(self) -> tuple[Running, ...]:
        """What still runs."""
        return tuple(self._running)

    @property
    def all(self) -> tuple[Running, ...]:
        """What runs and what is over, the newest first."""
        return tuple(sorted((*self._running, *self._over), key=lambda one: one.begun_at_s, reverse=True))

    def begin(self, what: str, act: Act, ended: Callable[[Running], None]) -> Running:
        """Run an act. Raises QctlError when there are too many already."""
        if len(self._running) >= MAX_RUNNING:
            raise QctlError(f"{MAX_RUNNING} acts run already", hint="Wait for one of them to end.")

        def over(one: Running) -> None:
            self._running.remove(one)
            self._over.append(one)
            if not self._is_left:
                ended(one)

        running = Running(what, act, over)
        self._running.append(running)
        return running

    async def leave(self) -> tuple[str, ...]:
        """Stop what still runs, wait for its end, at most LEAVE_S, and only then say what is true of each."""
        self._is_left = True  # there is no screen to tell it on
        stopped = self.running
        for one in stopped:
            one.stop()
        try:
            async with asyncio.timeout(LEAVE_S):
                for one in stopped:
                    await one.ended()
        except TimeoutError:
            pass
        return tuple(one.last_words for one in stopped)
