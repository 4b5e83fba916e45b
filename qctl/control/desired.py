"""Folding events to what should be: pure, in the order of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

from qctl.broker.message import short
from qctl.control.event import Command, Event, Hello, Notice, Verb, limits_of
from qctl.control.seen import Seeing, Seen
from qctl.control.target import Scope, Subject, Target, is_literal

#: Pauses and overrides in force, and what was lifted of them: more is a log gone wrong, and what it says is not known.
MAX_PAUSES = 20_000
MAX_OVERRIDES = 20_000
MAX_LIFTED = 100_000

SEEN_BEFORE = "seen before"


@dataclass(frozen=True, slots=True)
class Reign:
    """The ledger that a host spends from.

    since: the id of the hello that first named it; it tells this reign from an earlier one of the same ledger.
    before: the ledger that the host spent from until then, None when it never said hello before. user: who said hello
    for the host last.
    """

    ledger: str
    since: str
    before: str | None
    user: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause in force. lifted: what later resumes took out of it; the rest as in its Command."""

    id: str
    user: str
    claimed_by: str | None
    at: str
    reason: str | None
    until_s: float | None
    target: Target
    lifted: tuple[Target, ...] = ()

    def matches(self, subject: Subject) -> bool:
        """Whether it pauses `subject`, as long as it has not ended."""
        return self.target.matches(subject) and not any(lifted.matches(subject) for lifted in self.lifted)

    def ended(self, now_s: float) -> bool:
        """Whether its time is up."""
        return self.until_s is not None and self.until_s <= now_s


@dataclass(frozen=True, slots=True)
class Override:
    """A limit in force in place of the inventory's. host, quota: patterns; lifted: what was cleared of it since.

    rates: as they were written.
    """

    id: str
    user: str
    claimed_by: str | None
    at: str
    reason: str | None
    until_s: float | None
    host: str
    quota: str
    rates: tuple[str, ...]
    lifted: tuple[Scope, ...] = ()

    @property
    def limits(self) -> tuple[tuple[int, int], ...]:
        """(units, period_ns) of each rate."""
        return limits_of(self.rates)

    @property
    def scope(self) -> Scope:
        """Which quotas are meant, as it was commanded."""
        return Scope(self.host, self.quota)

    def matches(self, host: str, quota: str) -> bool:
        """Whether it says the limit of `quota` on `host`, as long as it has not ended and no later one does."""
        return self.scope.matches(host, quota) and not any(lifted.matches(host, quota) for lifted in self.lifted)

    def ended(self, now_s: float) -> bool:
        """Whether its time is up."""
        return self.until_s is not None and self.until_s <= now_s


@dataclass(frozen=True, slots=True)
class Desired:
    """What the log says, up to some event. reigns: by host; pauses, overrides: as they were given, in order."""

    reigns: Mapping[str, Reign] = field(default_factory=dict)
    pauses: tuple[Pause, ...] = ()
    overrides: tuple[Override, ...] = ()
    seen: Seen = field(default=Seen(), repr=False)

    def pauses_of(self, subject: Subject, now_s: float) -> tuple[Pause, ...]:
        """Every pause that holds for `subject` at a wall-clock second, in the order they were given."""
        return tuple(pause for pause in self.pauses if not pause.ended(now_s) and pause.matches(subject))

    def override_of(self, host: str, quota: str, now_s: float) -> Override | None:
        """What says the limit of a quota in place of the inventory: the last that matches and has not ended."""
        for override in reversed(self.overrides):
            if not override.ended(now_s) and override.matches(host, quota):
                return override
        return None

    def ends_after(self, now_s: float) -> float | None:
        """The next wall-clock second at which something ends by itself."""
        ends = [entry.until_s for entry in self._entries() if entry.until_s is not None]
        return min((end for end in ends if end > now_s), default=None)

    def carried_over(self, operators: frozenset[str] | None = None) -> Desired:
        """What to begin another log with: what holds still holds; what is in there as well counts from there.

        operators: who is obeyed now, None for whoever may publish; what others commanded does not hold any more. What
        was seen stays behind: if it is the same log after all, all of it is to be obeyed again.
        """
        pauses = tuple(pause for pause in self.pauses if operators is None or self._is_of(pause, operators))
        overrides = tuple(it for it in self.overrides if operators is None or it.user in operators)
        return Desired(pauses=pauses, overrides=overrides)

    def without_ended(self, now_s: float) -> Desired:
        """Forget what has ended: it stays ended, whatever the clock says later."""
        pauses = tuple(pause for pause in self.pauses if not pause.ended(now_s))
        overrides = tuple(override for override in self.overrides if not override.ended(now_s))
        if len(pauses) == len(self.pauses) and len(overrides) == len(self.overrides):
            return self
        return replace(self, pauses=pauses, overrides=overrides)

    def excess(self) -> str:
        """What is beyond the bounds, "" when nothing is."""
        lifted = sum(len(entry.lifted) for entry in self._entries())
        if len(self.pauses) > MAX_PAUSES:
            return f"it has more than {MAX_PAUSES} pauses in force"
        if len(self.overrides) > MAX_OVERRIDES:
            return f"it has more than {MAX_OVERRIDES} quota settings in force"
        return f"more than {MAX_LIFTED} parts of its pauses were lifted" if lifted > MAX_LIFTED else ""

    def _entries(self) -> Iterator[Pause | Override]:
        yield from self.pauses
        yield from self.overrides

    def _is_of(self, pause: Pause, operators: frozenset[str]) -> bool:
        """Whether it is one of theirs, or of whom the host logs in as, who may pause that host on itself."""
        reign = self.reigns.get(pause.target.host or "")
        return pause.user in operators or (reign is not None and reign.user == pause.user)


def judge(command: Command, operators: frozenset[str] | None, desired: Desired) -> str:
    """Why a command is not obeyed, after what `desired` knows; "" if it is. operators None: whoever may publish it."""
    return Folding(desired, operators).judge(command)


@dataclass(frozen=True, slots=True)
class Own:
    """The host whose process folds, and the user it logs in as."""

    host: str
    user: str


def fold(desired: Desired, events: Iterable[Event], operators: frozenset[str] | None = None) -> Desired:
    """What should be after `events`. Takes in all that is known first, so it is to be given many at once."""
    folding = Folding(desired, operators)
    for event in events:
        folding.add(event)
    return folding.desired()


class _Liftable(Protocol):
    """A Target or a Scope: what later commands may take out of an earlier one."""

    @property
    def host(self) -> str | None: ...
    def covers(self, other: Self, /) -> bool: ...
    def overlaps(self, other: Self, /) -> bool: ...
    def __hash__(self) -> int: ...


_Entry = TypeVar("_Entry", Pause, Override)
_Of = TypeVar("_Of", bound=_Liftable)


@dataclass(slots=True)
class _Standing(Generic[_Entry, _Of]):
    """An entry in force, with what is lifted of it so far, each once. `entry` may not have the last of that yet."""

    entry: _Entry
    of: _Of
    lifted: dict[_Of, None]


class _Standings(Generic[_Entry, _Of]):
    """Entries in the order they were given, found by the host they are about."""

    def __init__(self) -> None:
        self._all: dict[str, _Standing[_Entry, _Of]] = {}
        self._timed: dict[str, _Standing[_Entry, _Of]] = {}
        self.parts = 0  # lifted, of all of them
        self._told: tuple[_Entry, ...] | None = ()  # until something changes
        self._by_host: dict[str, dict[str, _Standing[_Entry, _Of]]] = {}

    def __contains__(self, identity: str) -> bool:
        return identity in self._all

    def __len__(self) -> int:
        return len(self._all)

    def add(self, entry: _Entry, of: _Of, lifted: Iterable[_Of] = ()) -> None:
        """Put it last, also if it is there already."""
        if entry.id in self._all:
            self._remove(self._all[entry.id])
        standing = _Standing(entry, of, dict.fromkeys(lifted))
        self.parts += len(standing.lifted)
        self._all[entry.id] = standing
        if entry.until_s is not None:
            self._timed[entry.id] = standing
        self._told = None
        self._by_host.setdefault(_shelf(of), {})[entry.id] = standing

    def lift(self, what: _Of) -> None:
        """Take `what` out of every entry: those of which nothing is left go."""
        for standing in self._about(what):
            if what.covers(standing.of):
                self._remove(standing)
            elif what not in standing.lifted and what.overlaps(standing.of):
                standing.lifted[what] = None
                self.parts += 1
                self._told = None

    def supersede(self, what: _Of) -> None:
        """Drop the entries that `what` hides for good."""
        for standing in self._about(what):
            if what.covers(standing.of):
                self._remove(standing)

    def drop_ended(self, now_s: float) -> None:
        """Drop the entries that have ended."""
        for standing in [each for each in self._timed.values() if each.entry.ended(now_s)]:
            self._remove(standing)

    def entries(self, with_lifted: Callable[[_Entry, tuple[_Of, ...]], _Entry]) -> tuple[_Entry, ...]:
        """All of them as they are now; the same tuple again if nothing has changed."""
        if self._told is not None:
            return self._told
        for standing in self._all.values():
            if len(standing.lifted) != len(standing.entry.lifted):
                standing.entry = with_lifted(standing.entry, tuple(standing.lifted))
        self._told = tuple(standing.entry for standing in self._all.values())
        return self._told

    def _about(self, what: _Of) -> list[_Standing[_Entry, _Of]]:
        if _shelf(what) == _ANY_HOST:
            return list(self._all.values())
        shelves = [self._by_host.get(_shelf(what), {}), self._by_host.get(_ANY_HOST, {})]
        return [standing for shelf in shelves for standing in shelf.values()]

    def _remove(self, standing: _Standing[_Entry, _Of]) -> None:
        del self._all[standing.entry.id]
        self.parts -= len(standing.lifted)
        self._timed.pop(standing.entry.id, None)
        self._told = None
        shelf = self._by_host[_shelf(standing.of)]
        del shelf[standing.entry.id]
        if not shelf:
            del self._by_host[_shelf(standing.of)]


#: No host is called so.
_ANY_HOST = ""


def _shelf(of: _Liftable) -> str:
    return of.host if of.host is not None and is_literal(of.host) else _ANY_HOST


class Folding:
    """A Desired that grows, event by event, in the order of the log. own: who folds, None for whoever only looks."""

    def __init__(self, desired: Desired, operators: frozenset[str] | None, own: Own | None = None) -> None:
        self._operators = operators
        self._own = own
        self._reigns = dict(desired.reigns)
        self._reigns_told: Mapping[str, Reign] = dict(desired.reigns)
        self._greeted = False
        self._pauses: _Standings[Pause, Target] = _Standings()
        self._overrides: _Standings[Override, Scope] = _Standings()
        for pause in desired.pauses:
            self._pauses.add(pause, pause.target, pause.lifted)
        for override in desired.overrides:
            self._overrides.add(override, override.scope, override.lifted)
        self._seeing = Seeing(desired.seen)
        self._seen = desired.seen

    def __len__(self) -> int:
        """Pauses and overrides, those that have ended included."""
        return len(self._pauses) + len(self._overrides)

    @property
    def parts(self) -> int:
        """Parts that were lifted out of them."""
        return self._pauses.parts + self._overrides.parts

    @property
    def hosts(self) -> int:
        """Hosts that ever said hello."""
        return len(self._reigns)

    def add(self, event: Event) -> str:
        """Take in the next event; why it is not obeyed, "" if it is."""
        if isinstance(event, Notice):
            return ""  # news, and nothing to be
        if isinstance(event, Hello):
            self._greet(event)
            return ""
        if why := self.judge(event):
            return why
        self._obey(event)
        return ""

    def judge(self, command: Command) -> str:
        """Why a command is not obeyed if it comes next, "" if it is."""
        if not self._may(command):
            return f"user {short(command.user)} is not an operator"
        has = self._seeing.has_pause if command.verb is Verb.PAUSE else self._seeing.has_lift
        seen = has(command.id)
        return SEEN_BEFORE if seen else ""

    def drop_ended(self, now_s: float) -> None:
        """Forget what has ended: it stays ended, whatever the clock says later."""
        self._pauses.drop_ended(now_s)
        self._overrides.drop_ended(now_s)

    def desired(self) -> Desired:
        """As it is now."""
        self._seen = self._seeing.seen(self._seen)
        if self._greeted:
            self._reigns_told, self._greeted = dict(self._reigns), False
        return Desired(
            self._reigns_told,
            self._pauses.entries(lambda pause, lifted: replace(pause, lifted=lifted)),
            self._overrides.entries(lambda override, lifted: replace(override, lifted=lifted)),
            self._seen,
        )

    def _greet(self, hello: Hello) -> None:
        reign = self._reigns.get(hello.host)
        if reign is None or reign.ledger != hello.ledger:
            self._reigns[hello.host] = Reign(hello.ledger, hello.nonce, reign.ledger if reign else None, hello.user)
        elif reign.user != hello.user:
            self._reigns[hello.host] = replace(reign, user=hello.user)
        else:
            return
        self._greeted = True

    def _may(self, command: Command) -> bool:
        if self._operators is None or command.user in self._operators:
            return True
        # Whoever a host's processes log in as may pause and resume that host on itself.
        if not command.local or command.verb not in (Verb.PAUSE, Verb.RESUME) or not is_literal(command.target.host):
            return False
        if self._own is not None and command.target.host == self._own.host:
            return command.user == self._own.user  # anybody may have said hello for it; what it logs in as, it knows
        reign = self._reigns.get(command.target.host or "")
        return reign is not None and reign.user == command.user

    def _obey(self, command: Command) -> None:
        common = (command.id, command.user, command.claimed_by, command.at, command.reason, command.until_s)
        if command.verb is Verb.PAUSE:
            self._pauses.add(Pause(*common, command.target), command.target)
            self._seeing.add_pause(command.id)
            return
        self._seeing.add_lift(command.id)
        if command.verb is Verb.RESUME:
            self._pauses.lift(command.target)
        elif command.verb is Verb.QUOTA_CLEAR:
            self._overrides.lift(command.scope)
        else:
            if command.until_s is None:
                self._overrides.supersede(command.scope)
            self._overrides.add(Override(*common, *command.scope, command.rates), command.scope)
