"""Whether the API behind a consumer serves: what tasks saw of it, folded to a hold and to probes. Pure decisions.

One task that is refused proves little: the refusal may be about that task alone (a private account, a customer's dead
webhook). So it takes two in a row, with nobody served in between, to hold a consumer; and a task that is refused again
and again while others are served is at fault itself.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from urllib.parse import urlsplit

#: Failures of the server (5xx) in a row, a task each, that hold a consumer. Before that, each is the task's own.
FAILURES_IN_A_ROW = 10
#: A task is spared this often for a refusal right after others were served; then it is at fault itself.
SPARED_TIMES = 3
#: Refused tasks that are remembered.
MAX_REMEMBERED = 10_000
#: The pause before a probe: the first, and the longest; it doubles in between.
PROBE_FIRST_S = 1.0
PROBE_LAST_S = 60.0
#: Part of a pause that is left to chance, so that a fleet does not come back all at once.
JITTER = 0.2

_WORD = re.compile(r"\S+")
_USER = re.compile(r"://[^\s/?#]*@")
#: What stands behind a URL in a sentence, and is not of it.
_BEHIND = "\"'()<>[]{},.;:!"


class Trouble(StrEnum):
    """Why a consumer is held for its API; the words of the hold."""

    REFUSES = "upstream refuses"
    DOWN = "upstream down"


class Sight(Enum):
    """What the last call of a task met."""

    SERVED = "served"  # any answer that is none of the others, a 404 and a 429 too
    REFUSED = "refused"  # 401, or 403 without the headers of a rate limit
    UNREACHABLE = "unreachable"  # no connection: refused, no such name, nobody there
    FAILING = "failing"  # 5xx


@dataclass(frozen=True, slots=True)
class Seen:
    """What a task saw. words: of whom, and what; for people."""

    sight: Sight
    words: str = ""


SERVED = Seen(Sight.SERVED)


def server(url: str) -> str:
    """Who was called, without the path: that may be long, or secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def without_queries(text: str) -> str:
    """The same, each URL or path in it without its query and its user: keys and tokens stand there, and what libraries
    say of a failure repeats them."""
    return _WORD.sub(_without_query, _USER.sub("://", text))


def _without_query(word: re.Match[str]) -> str:
    address, _, query = word[0].partition("?")
    of_query = query.rstrip(_BEHIND)
    return f"{address}?…{query[len(of_query) :]}" if of_query and "/" in address else word[0]


def seen_in(status: int, url: str, *, limited: bool) -> Seen:
    """What an answer says about who gave it. limited: it was not served for a rate limit's sake."""
    if status >= 500:
        return Seen(Sight.FAILING, f"{server(url)} answers {status}")
    if status in (401, 403) and not limited:
        return Seen(Sight.REFUSED, f"{server(url)} answers {status}")
    return SERVED


def unreachable(url: str) -> Seen:
    """What it means that no connection was made."""
    return Seen(Sight.UNREACHABLE, f"{server(url)} takes no connection")


class Health:
    """What one consumer of one process knows of its API. Not thread-safe.

    | seen                  | not held                                            | held, by the probe          |
    |-----------------------|-----------------------------------------------------|-----------------------------|
    | served                | nobody was refused                                  | released                    |
    | refused, unreachable  | after one that was served: spared, unless at fault  | a longer pause; spared      |
    |                       | else: held; spared                                  |                             |
    | failing               | held and spared from the tenth in a row on          | a longer pause; spared      |
    | nothing               |                                                     | the same pause again        |

    Spared: the task runs again later, and no attempt is used. What tasks that were under way see while it is held
    changes nothing; they are spared too.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        """chance: a number from 0 to 1, another one each time."""
        self.trouble: Trouble | None = None
        self.words = ""
        self.pause_s = PROBE_FIRST_S
        self._chance = chance
        self._probe_at_s = 0.0
        self._last_was_served = False
        self._failures = 0
        self._spared: OrderedDict[str, int] = OrderedDict()  # task id -> how often

    def weigh(self, seen: Seen, *, task: str, probe: bool, now_s: float) -> bool:
        """Take in what a task saw; True when it is to be spared. task: its id, or "". probe: it was sent to see."""
        if seen.sight is Sight.SERVED:
            if self.trouble is None or probe:
                self.trouble, self.words, self.pause_s = None, "", PROBE_FIRST_S
                self._last_was_served, self._failures = True, 0
            return False
        if seen.sight is Sight.FAILING:
            self._failures += 1
            if self.trouble is None and self._failures < FAILURES_IN_A_ROW:
                return False
        elif self.trouble is None and self._last_was_served:
            self._last_was_served = at_fault = self._at_fault(task)
            return not at_fault
        self._hold(seen, probe=probe, now_s=now_s)
        return True

    def probe_due(self, now_s: float) -> bool:
        """Whether it is time to send a task to see."""
        return self.trouble is not None and now_s >= self._probe_at_s

    def missed(self, now_s: float) -> None:
        """The probe ended without having seen anything: another one after the same pause."""
        spread = 1 - JITTER * self._chance()
        self._probe_at_s = now_s + self.pause_s * spread

    def _hold(self, seen: Seen, *, probe: bool, now_s: float) -> None:
        if self.trouble is not None and not probe:
            return
        if self.trouble is not None:
            self.pause_s = min(self.pause_s * 2, PROBE_LAST_S)
        self.trouble = Trouble.REFUSES if seen.sight is Sight.REFUSED else Trouble.DOWN
        self.words = seen.words
        self.missed(now_s)

    def _at_fault(self, task: str) -> bool:
        if not task:
            return False  # nobody can say whether it was here before; when it comes again it has an id
        times = self._spared.pop(task, 0)
        self._spared[task] = times + 1
        if len(self._spared) > MAX_REMEMBERED:
            self._spared.popitem(last=False)
        return times >= SPARED_TIMES
