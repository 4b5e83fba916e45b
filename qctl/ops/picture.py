"""One picture of the fleet from all that was heard of it: live readings, the log of readings, supervisors, the control
log, the broker's queues. Pure; `sources` listens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from qctl.control.desired import Pause
from qctl.control.host_answer import HostAnswer, ProcessState
from qctl.control.reading import ConsumerReading, Goodbye, HostReading, Reading
from qctl.control.target import Subject
from qctl.inventory.model import Consumer, Host, Inventory
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
    Status,
    agreed,
    alike,
    often,
    overall,
)
from qctl.ops.when import instant

#: A host that my inventory does not have and that is silent is shown for so long.
STRANGER_S = 900.0
#: Who was heard so lately and said no goodbye may run on, cut off from the broker.
LATELY_S = 60.0


def picture(found: Found, inventory: Inventory, *, hosts: Iterable[str] = ()) -> Status:
    """What all that means; of these hosts only, or of all."""
    listed = dict.fromkeys(inventory.hosts)
    live: dict[str, list[Heard]] = {}
    for heard in found.live:
        live.setdefault(heard.reading.host, []).append(heard)
    names = [*listed, *_strangers(found, listed)]
    views = [_View(found, name, inventory.hosts.get(name), live.get(name, [])) for name in names]
    chosen = set(hosts) or {view.name for view in views}
    consumers = {view: tuple(view.consumers()) for view in views}
    mine = [view for view in views if view.name in chosen]
    return Status(
        at_s=found.at_s,
        blocked=found.blocked,
        hosts=tuple(view.row(consumers[view]) for view in mine),
        consumers=tuple(row for view in mine for row in consumers[view]),
        quotas=tuple(row for view in mine for row in view.quotas(consumers[view])),
        queues=tuple(backlog.rows(found, inventory, consumers=consumers.values(), chosen=chosen)),
        notes=found.notes,
    )


def _strangers(found: Found, listed: Mapping[str, None]) -> list[str]:
    """Hosts on the wire that the inventory does not have."""
    live = {heard.reading.host for heard in found.live}
    recent = {
        name
        for name, last in found.last.items()
        if isinstance(last, HostReading) and found.at_s - last.at_s < STRANGER_S
    }
    return sorted((live | recent) - listed.keys())


class _View:
    """All that was learnt of one host; host None: the inventory does not have it."""

    def __init__(self, found: Found, name: str, host: Host | None, live: Sequence[Heard]) -> None:
        self.found, self.name, self.host, self.live = found, name, host, live
        self.last = found.last.get(name)
        self.supervisor = found.supervisors.get(name, Silence.UNASKED)
        #: None: its consumers say it themselves.
        self.state: State | None = None
        self.why = ""
        self.since_s: float | None = None
        if not self.live:
            self.state, self.why, self.since_s = self._silent()

    def _silent(self) -> tuple[State, str, float | None]:
        """What a host is of which no process was heard just now: state, why, since."""
        last, answer = self.last, self.supervisor
        last_s = last.at_s if last is not None else None
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

    @property
    def unheard(self) -> int:
        """Processes that are silent while the supervisor calls them connected: tasks may run in them."""
        spoken = {heard.reading.index for heard in self.live}
        looks = self.supervisor.processes if isinstance(self.supervisor, HostAnswer) else ()
        return sum(1 for one in looks if one.state is ProcessState.CONNECTED and one.index not in spoken)

    @property
    def readings(self) -> list[Reading]:
        """The newest there are: live, else those of the log."""
        if self.live:
            return [heard.reading for heard in self.live]
        return list(self.last.processes) if isinstance(self.last, HostReading) else []

    @property
    def seen(self) -> Seen | None:
        if self.live:
            return Seen(Source.LIVE, min(heard.at_s for heard in self.live))
        return Seen(Source.LOG, self.last.at_s) if self.last is not None else None

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
            counts={one: states.count(one) for one in dict.fromkeys(states)},
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
        known = self.host.consumers if self.host else {}
        spoken = dict.fromkeys(one.name for reading in self.readings for one in reading.consumers)
        for name in dict.fromkeys([*known, *spoken]):
            yield self._consumer(name, known.get(name))

    def _consumer(self, name: str, known: Consumer | None) -> ConsumerRow:
        mine = [one for reading in self.readings for one in reading.consumers if one.name == name]
        queue = mine[0].queue if mine else known.queue if known else name
        pauses = self._pauses(name, queue, mine, known)
        row = ConsumerRow(
            host=self.name,
            consumer=name,
            queue=queue,
            state=self.state or State.DOWN,
            why=self.why,
            since_s=self.since_s,
            pauses=pauses,
            costs=dict(known.cost) if known else {},
            seen=self.seen,
        )
        if self.state is not None:
            return row
        if not mine:
            if any(reading.omitted for reading in self.readings):
                return replace(row, state=State.UNKNOWN, why="its reading was too long to be sent")
            return replace(row, why="its worker does not run it")
        unheard = self.unheard
        states = [_state(one.state) for one in mine] + [State.UNKNOWN] * unheard
        state = overall(states)
        inside = [one for one in mine if _state(one.state) is state]
        silent = unheard and state is State.UNKNOWN
        row = replace(
            row,
            state=state,
            why=_silence(unheard, len(states)) if silent else _why(state, inside, pauses),
            since_s=min((one.since_s for one in inside if one.since_s is not None), default=None),
            counts={its: states.count(its) for its in dict.fromkeys(states)},
            holds=_holds(mine),
        )
        if unheard:
            return row  # what runs there nobody says, so no sum is known
        return replace(
            row,
            running=sum(one.running for one in mine),
            waiting=sum(one.waiting for one in mine),
            concurrency=sum(one.concurrency for one in mine),
            rate_per_s=round(sum(one.rate_per_s for one in mine), 3),
            settled={
                what: sum(getattr(one.counts, what) for one in mine)
                for what in ("acked", "retried", "deferred", "dead", "given_back")
            },
        )

    def _pauses(
        self, name: str, queue: str, mine: Iterable[ConsumerReading], known: Consumer | None
    ) -> tuple[Order, ...]:
        """The pauses that hold by the control log; without it, what the processes say themselves."""
        tags = {tag.tag: tag.queue for one in mine for tag in one.tags}
        if not tags:
            tag = f"qctl/{self.name}/{name}/0"
            queues = backlog.queues_of(self.name, known) if known else (queue,)
            tags = dict(zip((tag, f"{tag}/directed"), queues, strict=False))
        if self.found.desired is not None:
            found: dict[str, Pause] = {}
            for tag, its in tags.items():
                subject = Subject(self.name, name, its, tag)
                found.update((one.id, one) for one in self.found.desired.pauses_of(subject, self.found.at_s))
            return tuple(burn.order(one, str(one.target)) for one in found.values())
        said = dict.fromkeys((one.by, one.claimed_by, one.reason, one.until_s) for one in mine if one.by)
        return tuple(
            Order("", f"{self.name}/{name}", by or "", claimed_by=claimed, reason=reason, until_s=until_s)
            for by, claimed, reason, until_s in said
        )


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


def _state(word: str) -> State:
    """A state as a process says it; one that this version does not know is unknown."""
    return State(word) if word in PRECEDENCE else State.UNKNOWN


def _silence(unheard: int, of: int) -> str:
    return f"{unheard} of its {of} processes {'is' if unheard == 1 else 'are'} connected and silent"


def _why(state: State, inside: list[ConsumerReading], pauses: tuple[Order, ...]) -> str:
    if state is State.PAUSED and pauses:
        return "; ".join(f"by {one.by}{f': {one.reason}' if one.reason else ''}{often(n)}" for one, n in alike(pauses))
    if state is State.HELD and (holds := _holds(inside)):
        return "; ".join(dict.fromkeys(one.words or one.cause for one in holds))
    return "; ".join(dict.fromkeys(one.why for one in inside if one.why))


def _holds(mine: Iterable[ConsumerReading]) -> tuple[HeldBy, ...]:
    """The causes of all processes, each once."""
    found: dict[str, HeldBy] = {}
    for one in mine:
        for hold in one.holds:
            found.setdefault(hold.cause, HeldBy(hold.cause, hold.words, hold.until_s))
    return tuple(found.values())
