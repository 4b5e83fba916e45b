"""What is proven of each subscription after a command: a pure function of what was gathered, with its truth table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qctl.control.answer import Answer, Remains, Row
from qctl.control.event import Verb
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.control.target import Subject, Target

#: In place of the index of a process that is not known.
EACH = "*"
#: States of a subscription in which none of its tasks starts.
STOPPED = ("paused", "draining", "down")


class Supervisor(StrEnum):
    """What came of the question to a host's supervisor."""

    SILENT = "silent"  # its queue took the question; no answer so far
    ANSWERS = "answers"
    NOBODY = "nobody"  # the broker has no queue of that name: no supervisor is connected


class Heard(StrEnum):
    """What the telemetry log says of a host, in the time in which its supervisor writes there at least once."""

    UNKNOWN = "unknown"  # not read, or not readable
    SPEAKS = "speaks"
    SILENT = "silent"
    NEVER = "never"  # silent, and no process of it has ever said hello on the control log
    GOODBYE = "goodbye"  # its last entry: it ended in order


class Standing(StrEnum):
    """How sure it is that a process does what was commanded."""

    PROVEN = "proven"  # it has said so
    REFUSED = "refused"  # it has said that it does not
    DOWN = "down"  # there is none that could do otherwise; the next one reads the log before it consumes
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class HostEvidence:
    """What was gathered about one host after the command was confirmed.

    looks: what its supervisor answered last, asked after the command was confirmed. listed: whether the broker lists
    a connection of the host, None when that is not known. answers: by index and pid, one for each command so far.
    spoke: index and pid of its processes in the telemetry log. heartbeat_s: of its connections. strangers: who else has
    answered for a process, another broker user than its supervisor names; that does not count.
    """

    supervisor: Supervisor = Supervisor.SILENT
    looks: tuple[ProcessLook, ...] = ()
    heard: Heard = Heard.UNKNOWN
    listed: bool | None = None
    answers: Mapping[tuple[int, int], tuple[Answer, ...]] = field(default_factory=dict)
    spoke: tuple[tuple[int, int], ...] = ()
    heartbeat_s: float = 10.0
    strangers: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expected:
    """A subscription that a command is about, by the inventory. index None: on every process of the host."""

    host: str
    consumer: str
    queue: str
    directed: bool = False
    index: int | None = None

    def tag(self, index: int | str) -> str:
        """The consumer tag on the process with this index."""
        return f"qctl/{self.host}/{self.consumer}/{index}" + ("/directed" if self.directed else "")

    def subject(self, index: int) -> Subject:
        """The subscription of the process with this index."""
        return Subject(self.host, self.consumer, self.queue, self.tag(index))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row of the report: one subscription.

    state: the worker's own word where it answered, else `down` or `unproven`; `refused` where it does not obey.
    may_start_until_s: unproven, and the process is stopped or cut off: until then a task may still start. may_run:
    nothing can start, and yet what was started before may run: nobody says that its process has ended.
    """

    host: str
    consumer: str
    queue: str
    tag: str
    state: str
    standing: Standing
    words: str = ""
    cancelled_at_s: float | None = None
    running: int | None = None
    given_back: int | None = None
    may_start_until_s: float | None = None
    remains: tuple[Remains, ...] = ()
    may_run: bool = False


def judge_process(
    answers: int,
    commands: int,
    *,
    refused: bool,
    state: ProcessState | None,
    supervisor: Supervisor,
    heard: Heard,
    listed: bool | None,
    who: str = "the process",
) -> tuple[Standing, str]:
    """How one process stands, with a reason. answers: of the `commands` that may concern it; state: by its supervisor.

    | answered all | refused | supervisor | state                  | telemetry        | listed   | standing |
    |--------------|---------|------------|------------------------|------------------|----------|----------|
    | yes          | yes     | any        | any                    | any              | any      | REFUSED  |
    | yes          | no      | any        | any                    | any              | any      | PROVEN   |
    | no           | any     | answers    | ended, or not listed   | any              | any      | DOWN     |
    | no           | any     | answers    | starting, disconnected | any              | any      | DOWN     |
    | no           | any     | answers    | connected              | any              | any      | UNPROVEN |
    | no           | any     | silent     | any                    | any              | any      | UNPROVEN |
    | no           | any     | nobody     | -                      | goodbye          | any      | DOWN     |
    | no           | any     | nobody     | -                      | silent           | yes      | UNPROVEN |
    | no           | any     | nobody     | -                      | silent           | no       | DOWN     |
    | no           | any     | nobody     | -                      | silent           | unknown  | UNPROVEN |
    | no           | any     | nobody     | -                      | never            | yes      | UNPROVEN |
    | no           | any     | nobody     | -                      | never            | no, unknown | DOWN  |
    | no           | any     | nobody     | -                      | speaks, unknown  | any      | UNPROVEN |

    A process that is starting or disconnected says that it is connected before it says hello, and reads the log up to
    its hello before it consumes: what was confirmed before its supervisor was asked, it will have read.
    """
    if answers >= commands:
        return (Standing.REFUSED, "") if refused else (Standing.PROVEN, "")
    if supervisor is Supervisor.ANSWERS:
        if state is None or state is ProcessState.ENDED:
            return Standing.DOWN, f"{who} has ended; the next one obeys when it starts"
        if state is not ProcessState.CONNECTED:
            return Standing.DOWN, f"{who} is {state}; it obeys before it consumes"
        return Standing.UNPROVEN, f"{who} is connected and has not answered"
    if supervisor is Supervisor.SILENT:
        return Standing.UNPROVEN, f"neither {who} nor its supervisor has answered"
    if heard is Heard.GOODBYE:
        return Standing.DOWN, "the host said goodbye; it obeys when it starts"
    if heard in (Heard.SILENT, Heard.NEVER):
        if listed:
            return Standing.UNPROVEN, "no supervisor answers, yet the broker lists a connection of the host"
        if listed is None and heard is Heard.SILENT:
            return Standing.UNPROVEN, "nothing is heard of the host; only the management API could tell that it is down"
        return Standing.DOWN, "nothing is heard of the host; it obeys when it starts"
    if heard is Heard.SPEAKS:
        return Standing.UNPROVEN, "no supervisor answers, yet the host was heard of within the last minute"
    return Standing.UNPROVEN, "no supervisor answers, and nothing tells since when"


def judge_row(verb: Verb, row: Row) -> tuple[Standing, str]:
    """How a subscription stands whose process has answered all: for a pause only a stopped one is proven."""
    words = row.why
    if verb is Verb.PAUSE:
        if row.state not in STOPPED:
            return Standing.UNPROVEN, _join(f"its process says that it is {row.state}", words)
        if row.cancelled_at_s is None and row.state == "paused":
            return Standing.PROVEN, words or "was not subscribed"
        return Standing.PROVEN, words
    if row.remains:
        return Standing.PROVEN, "still paused: " + "; ".join(_remains(one) for one in row.remains)
    return Standing.PROVEN, words


def judge(
    verb: Verb,
    targets: Iterable[Target],
    expected: Iterable[Expected],
    evidence: Mapping[str, HostEvidence],
    *,
    confirmed_at_s: float,
) -> tuple[Verdict, ...]:
    """A verdict for each subscription that is known to be concerned; see `judge_process` for the rules.

    What a process has answered stands for it: it knows what it runs. Of one that has not, the inventory says what it
    runs. A subscription that no process of the host has is `down`. confirmed_at_s: wall clock, of the last command.
    """
    commanded = tuple(targets)
    by_host: dict[str, list[Expected]] = {}
    for one in expected:
        by_host.setdefault(one.host, []).append(one)
    found: list[Verdict] = []
    for host in dict.fromkeys((*by_host, *evidence)):
        concerning = sum(1 for target in commanded if target.might_match_host(host))
        gathered = evidence.get(host, HostEvidence())
        found += _host(verb, commanded, by_host.get(host, []), gathered, concerning, confirmed_at_s)
    return tuple(found)


def _host(
    verb: Verb,
    targets: tuple[Target, ...],
    expected: list[Expected],
    evidence: HostEvidence,
    commands: int,
    confirmed_at_s: float,
) -> list[Verdict]:
    found: dict[str, Verdict] = {}
    until_s = confirmed_at_s + 2 * evidence.heartbeat_s
    for (index, pid), look in processes(evidence).items():
        answers = evidence.answers.get((index, pid), ())
        refusals = sorted({answer.refused for answer in answers if answer.refused})
        standing, words = judge_process(
            len(answers),
            commands,
            refused=bool(refusals),
            state=look,
            supervisor=evidence.supervisor,
            heard=evidence.heard,
            listed=evidence.listed,
            who=f"process {pid}",
        )
        if standing is Standing.UNPROVEN and (stranger := evidence.strangers.get((index, pid))):
            words = f"process {pid} answered as {stranger}, not as its supervisor says"
        refused = "; ".join(refusals)
        rows = _answered(verb, answers, refused) if standing in (Standing.PROVEN, Standing.REFUSED) else ()
        others = _unanswered(targets, expected, index, standing, words or refused, until_s)
        may_run = _may_run(standing, evidence, look)
        for verdict in rows or (replace(one, may_run=may_run) for one in others):
            known = found.get(verdict.tag)
            if known is None or _doubt(verdict) > _doubt(known):
                found[verdict.tag] = verdict
    for one in expected:
        rows = tuple(row for row in found.values() if (row.consumer, row.queue) == (one.consumer, one.queue))
        is_open = any(row.standing is Standing.UNPROVEN for row in rows)
        missing: Verdict | None = None
        if evidence.supervisor is not Supervisor.ANSWERS:
            missing = None if is_open else _others(one, evidence, until_s)
        elif not rows:
            missing = _not_run(one, until_s, evidence)
        if missing is not None:
            found.setdefault(missing.tag, missing)
    return sorted(found.values(), key=lambda row: row.tag)


def processes(evidence: HostEvidence) -> dict[tuple[int, int], ProcessState | None]:
    """Index and pid of every process that is known of, with its state by its supervisor."""
    found: dict[tuple[int, int], ProcessState | None] = dict.fromkeys(evidence.answers)
    if evidence.supervisor is Supervisor.ANSWERS:
        found.update({(look.index, look.pid): look.state for look in evidence.looks})
    else:
        found.update({key: None for key in evidence.spoke if key not in found})
    return found


def _answered(verb: Verb, answers: tuple[Answer, ...], refused: str) -> tuple[Verdict, ...]:
    found: dict[str, Verdict] = {}
    for answer in answers:
        for row in answer.rows:
            standing, words = (Standing.REFUSED, refused) if refused else judge_row(verb, row)
            first = found.get(row.tag)  # of several commands the first that met it has cancelled it
            by = row if first is None or first.cancelled_at_s is None else first
            found[row.tag] = Verdict(
                answer.host,
                row.consumer,
                row.queue,
                row.tag,
                "refused" if standing is Standing.REFUSED else row.state,
                standing,
                words,
                by.cancelled_at_s,
                row.running,
                by.given_back,
                remains=row.remains,
            )
    return tuple(found.values())


def _unanswered(
    targets: tuple[Target, ...],
    expected: list[Expected],
    index: int,
    standing: Standing,
    words: str,
    until_s: float,
) -> Iterable[Verdict]:
    if standing is Standing.PROVEN:
        return  # it runs nothing of this
    for one in expected:
        if any(target.matches(one.subject(index)) for target in targets):
            yield _verdict(one, one.tag(index), standing, words, until_s)


def _not_run(one: Expected, until_s: float, evidence: HostEvidence) -> Verdict:
    """What is expected of a host whose supervisor answers, and no process of it runs it."""
    indexes = sorted({index for index, _ in processes(evidence)})
    words = "the host runs without it now" if indexes else "the host has no process now"
    if indexes and one.index is not None and one.index not in indexes:
        has = str(indexes[0]) if len(indexes) == 1 else f"{indexes[0]} to {indexes[-1]}"
        words = f"the host has no process {one.index} now, only {has}"
    return _verdict(one, one.tag(_index(one)), Standing.DOWN, f"{words}; it obeys when it starts", until_s)


def _others(one: Expected, evidence: HostEvidence, until_s: float) -> Verdict:
    """The processes that a host may have beside those that are known: only its supervisor could say."""
    if evidence.answers:
        standing, words = Standing.UNPROVEN, "no supervisor says how many processes the host has"
    else:
        standing, words = judge_process(
            0,
            1,
            refused=False,
            state=None,
            supervisor=evidence.supervisor,
            heard=evidence.heard,
            listed=evidence.listed,
        )
    verdict = _verdict(one, one.tag(_index(one)), standing, words, until_s)
    return replace(verdict, may_run=_may_run(standing, evidence, None))


def _may_run(standing: Standing, evidence: HostEvidence, state: ProcessState | None) -> bool:
    """Whether of what is down something may run that was started before: cut off from the broker, tasks go on."""
    if standing is not Standing.DOWN:
        return False
    if evidence.supervisor is Supervisor.ANSWERS:
        return state is ProcessState.DISCONNECTED
    return evidence.heard is Heard.SILENT


def _index(one: Expected) -> int | str:
    return EACH if one.index is None else one.index


def _verdict(one: Expected, tag: str, standing: Standing, words: str, until_s: float) -> Verdict:
    may_start_until_s = until_s if standing is Standing.UNPROVEN else None
    return Verdict(
        one.host, one.consumer, one.queue, tag, str(standing), standing, words, may_start_until_s=may_start_until_s
    )


def _doubt(verdict: Verdict) -> int:
    """Where two processes have had the same index, the one of which less is known is shown."""
    order = (Standing.DOWN, Standing.PROVEN, Standing.REFUSED, Standing.UNPROVEN)
    return order.index(verdict.standing)


def _remains(one: Remains) -> str:
    until = f" until {one.until}" if one.until else ""
    return f"{one.target} by {one.by}{until}" + (f" ({one.reason})" if one.reason else "")


def _join(*words: str) -> str:
    return ", ".join(word for word in words if word)
