"""One host: what was heard of it, and what that means for its consumers. Pure; `picture` puts the hosts together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from qctl.control.desired import Pause
from qctl.control.host_answer import HostAnswer, ProcessState
from qctl.control.reading import ConsumerReading, Goodbye, HostReading, Reading
from qctl.control.target import Subject, is_literal
from qctl.inventory.model import Consumer, Host
from qctl.ops import backlog, burn
from qctl.ops.found import Found, Heard, Silence
from qctl.ops.status import (
    BLOCKED,
    PRECEDENCE,
    ConsumerRow,
    HeldBy,
    HostRow,
    Order,
    QuotaRow,
    Seen,
    Source,
    State,
    agreed,
    alike,
    often,
    overall,
)
from qctl.ops.when import instant

#: Who was heard so lately and said no goodbye may run on, cut off from the broker.
LATELY_S = 60.0

_COUNTED = ("acked", "retried", "deferred", "dead", "given_back")


class Pauses:
    """Pauses found by their host: of a large fleet thousands of subscriptions are looked up in a second."""

    def __init__(self, pauses: Iterable[Pause]) -> None:
        self._by_host: dict[str | None, list[tuple[int, Pause]]] = {}
        for place, pause in enumerate(pauses):
            host = pause.target.host
            self._by_host.setdefault(host if is_literal(host) else None, []).append((place, pause))

    def about(self, host: str) -> tuple[Pause, ...]:
        """Those that may be about a host, in the order they were given."""
        places = [*self._by_host.get(host, ()), *self._by_host.get(None, ())]
        return tuple(pause for _, pause in sorted(places, key=lambda found: found[0]))


class HostView:
    """All that was learnt of one host; host None: the inventory does not have it.

    state: None where its consumers say it themselves. why, since_s: of that state.
    """

    def __init__(self, found: Found, name: str, host: Host | None, live: Sequence[Heard], pauses: Pauses) -> None:
        self.found, self.name, self.host, self.live = found, name, host, live
        self.last = found.last.get(name)
        self.supervisor = found.supervisors.get(name, Silence.UNASKED)
        self.state: State | None = None
        self.why = ""
        self.since_s: float | None = None
        self._given = pauses.about(name)
        if not live:
            self.state, self.why, self.since_s = self._silent()

    def _silent(self) -> tuple[State, str, float | None]:
        """What a host is of which no process was heard just now: state, why, since."""
        last, answer = self.last, self.supervisor
        last_s = last.at_s if last is not None else None
        if self.found.deaf:
            return State.UNKNOWN, self.found.deaf, last_s
        if isinstance(answer, HostAnswer):
            return _by_supervisor(answer, last_s)
        if self.found.blocked:
            return State.UNKNOWN, BLOCKED, last_s
        if answer is Silence.SILENT:
            return State.UNKNOWN, "its name is taken on the broker and nobody answers", last_s
        if isinstance(last, Goodbye):
            return State.DOWN, "its worker has ended", last_s
        if answer is not Silence.ABSENT:
            return State.UNKNOWN, "nothing is heard of it", last_s
        if self.name in (self.found.listed or ()):
            return State.UNKNOWN, "the broker lists a connection of it and nobody answers", last_s
        lately = last_s is not None and self.found.at_s - last_s < LATELY_S
        return State.UNKNOWN if lately else State.DOWN, "no worker of it is connected", last_s

    @cached_property
    def unheard(self) -> int:
        """Processes that are silent while the supervisor calls them connected: tasks may run in them."""
        spoken = {heard.reading.index for heard in self.live}
        looks = self.supervisor.processes if isinstance(self.supervisor, HostAnswer) else ()
        return sum(1 for one in looks if one.state is ProcessState.CONNECTED and one.index not in spoken)

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """The newest there are: live, else those that are remembered."""
        if self.live:
            return tuple(heard.reading for heard in self.live)
        last = self.last if isinstance(self.last, HostReading) else self.found.before.get(self.name)
        return last.processes if last is not None else ()

    @cached_property
    def seen(self) -> Seen | None:
        """Where the readings come from, and of when the oldest of them is."""
        if self.live:
            return Seen(Source.LIVE, min(heard.at_s for heard in self.live))
        return Seen(Source.LOG, self.last.at_s) if self.last is not None else None

    @cached_property
    def spoken(self) -> Mapping[str, list[ConsumerReading]]:
        """The consumers that its processes tell of, of each process one."""
        found: dict[str, list[ConsumerReading]] = {}
        for reading in self.readings:
            for one in reading.consumers:
                found.setdefault(one.name, []).append(one)
        return found

    def row(self, consumers: Sequence[ConsumerRow]) -> HostRow:
        """The host itself; `consumers` are its own."""
        states = [row.state for row in consumers]
        state = self.state or agreed(states)
        inside = [row for row in consumers if row.state is state]
        answer = self.supervisor if isinstance(self.supervisor, HostAnswer) else None
        running = [one for one in answer.processes if one.state is not ProcessState.ENDED] if answer else []
        machine = answer.machine if answer else self.readings[0].machine if self.readings else None
        whys = dict.fromkeys(row.why for row in inside)
        return HostRow(
            host=self.name,
            state=state,
            counts=_counted(states),
            listed=self.host is not None,
            since_s=self.since_s if self.state else max((row.since_s for row in inside if row.since_s), default=None),
            why=self.why or (next(iter(whys)) if len(whys) == 1 else ""),
            machine=machine,
            processes=len(running) if answer else len(self.live) or None,
            heard=len(self.live),
            seen=self.seen,
        )

    def quotas(self, consumers: Sequence[ConsumerRow]) -> Iterator[QuotaRow]:
        """Its quotas; `consumers` are its own."""
        return burn.rows(self.found, self.name, self.host, readings=self.readings, seen=self.seen, spenders=consumers)

    # Consumers

    def consumers(self) -> Iterator[ConsumerRow]:
        """Those of the inventory, and what else its processes tell of."""
        known = self.host.consumers if self.host else {}
        for name in dict.fromkeys([*known, *self.spoken]):
            yield self._consumer(name, self.spoken.get(name, []), known.get(name))

    def _consumer(self, name: str, mine: list[ConsumerReading], known: Consumer | None) -> ConsumerRow:
        queue = mine[0].queue if mine else known.queue if known else name
        pauses = self._pauses(name, queue, mine, known)
        costs = known.cost if known else {}
        if self.state is not None or not mine:
            state, why = self.unspoken()
            return ConsumerRow(
                self.name, name, queue, state, why, self.since_s, pauses=pauses, costs=costs, seen=self.seen
            )
        unheard = self.unheard
        said = [state_of(one.state) for one in mine]
        states = said + [State.UNKNOWN] * unheard
        state = overall(states)
        inside = [one for one, its in zip(mine, said, strict=True) if its is state]
        silent = unheard and state is State.UNKNOWN
        known_sums = not unheard  # else nobody says what runs in the silent ones
        return ConsumerRow(
            host=self.name,
            consumer=name,
            queue=queue,
            state=state,
            why=_silence(unheard, len(states)) if silent else why_of(state, inside, pauses),
            since_s=min([one.since_s for one in inside if one.since_s is not None], default=None),
            counts=_counted(states),
            pauses=pauses,
            holds=_holds(mine),
            costs=costs,
            running=sum([one.running for one in mine]) if known_sums else None,
            waiting=sum([one.waiting for one in mine]) if known_sums else None,
            concurrency=sum([one.concurrency for one in mine]) if known_sums else None,
            rate_per_s=round(sum([one.rate_per_s for one in mine]), 3) if known_sums else None,
            put_off_per_s=round(sum([one.put_off_per_s for one in mine]), 3),
            settled=_settled(mine) if known_sums else None,
            seen=self.seen,
        )

    def unspoken(self) -> tuple[State, str]:
        """The state of a consumer that no process tells of just now."""
        if self.state is not None:
            return self.state, self.why
        if any(reading.omitted for reading in self.readings):
            return State.UNKNOWN, "its reading was too long to be sent"
        return State.DOWN, "its worker does not run it"

    def _pauses(
        self, name: str, queue: str, mine: Iterable[ConsumerReading], known: Consumer | None
    ) -> tuple[Order, ...]:
        """The pauses that hold by the control log; without it, what the processes say themselves."""
        if self.found.desired is None:
            said = dict.fromkeys((one.by, one.claimed_by, one.reason, one.until_s) for one in mine if one.by)
            return tuple(
                Order("", f"{self.name}/{name}", by or "", claimed_by=claimed, reason=reason, until_s=until_s)
                for by, claimed, reason, until_s in said
            )
        if not self._given:
            return ()
        tags = {tag.tag: tag.queue for one in mine for tag in one.tags}
        if not tags:
            tags = tags_of(self.name, name, known, queue)
        found: dict[str, Pause] = {}
        for tag, its in tags.items():
            found.update((one.id, one) for one in self.pauses_of(Subject(self.name, name, its, tag)))
        return tuple(burn.order(one, str(one.target)) for one in found.values())

    def pauses_of(self, subject: Subject) -> Iterator[Pause]:
        """The pauses that hold for a subscription, by the control log."""
        now_s = self.found.at_s
        return (pause for pause in self._given if not pause.ended(now_s) and pause.matches(subject))

    @property
    def is_commanded(self) -> bool:
        """Whether any pause may be about it: of most hosts none is, and that saves asking for each subscription."""
        return bool(self._given)


def tags_of(host: str, consumer: str, known: Consumer | None, queue: str) -> dict[str, str]:
    """Tag -> queue, of the first process of a consumer of which nothing was heard."""
    tag = f"qctl/{host}/{consumer}/0"
    queues = backlog.queues_of(host, known) if known else (queue,)
    return dict(zip((tag, f"{tag}/directed"), queues, strict=False))


def _by_supervisor(answer: HostAnswer, last_s: float | None) -> tuple[State, str, float | None]:
    states = {one.state for one in answer.processes}
    since_s = max((at_s for one in answer.processes if (at_s := instant(one.since)) is not None), default=last_s)
    if ProcessState.CONNECTED in states:
        return State.UNKNOWN, "its processes are connected and say nothing", last_s
    if ProcessState.STARTING in states:
        return State.DOWN, "its processes are starting", since_s
    if ProcessState.DISCONNECTED in states:
        return State.DOWN, "its processes have no connection", since_s
    return State.DOWN, "its supervisor runs, its processes do not", since_s


_STATES = {state.value: state for state in PRECEDENCE}


def state_of(word: str) -> State:
    """A state as a process says it; one that this version does not know is unknown."""
    return _STATES.get(word, State.UNKNOWN)


def why_of(state: State, inside: Sequence[ConsumerReading], pauses: tuple[Order, ...]) -> str:
    """Why processes that say so are in a state: who paused it, what holds it, or what they say themselves."""
    if state is State.PAUSED and pauses:
        return "; ".join(f"by {one.by}{f': {one.reason}' if one.reason else ''}{often(n)}" for one, n in alike(pauses))
    if state is State.HELD and (holds := _holds(inside)):
        return "; ".join(dict.fromkeys([one.words or one.cause for one in holds]))
    return "; ".join(dict.fromkeys([one.why for one in inside if one.why]))


def _counted(states: Sequence[State]) -> dict[State, int]:
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _settled(mine: Sequence[ConsumerReading]) -> dict[str, int]:
    """Tasks by how they ended, in all processes."""
    sums = dict.fromkeys(_COUNTED, 0)
    for one in mine:
        for what in _COUNTED:
            sums[what] += getattr(one.counts, what)
    return sums


def _silence(unheard: int, of: int) -> str:
    return f"{unheard} of its {of} processes {'is' if unheard == 1 else 'are'} connected and silent"


def _holds(mine: Iterable[ConsumerReading]) -> tuple[HeldBy, ...]:
    """The causes of all processes, each once."""
    found: dict[str, HeldBy] = {}
    for one in mine:  # most hold nothing
        for hold in one.holds:
            found.setdefault(hold.cause, HeldBy(hold.cause, hold.words, hold.until_s))
    return tuple(found.values())
