"""Replaying and dropping dead letters, and purging queues, from the console; how many that were is true to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qctl.errors import UsageError
from qctl.ops import dead, queues, triage
from qctl.ops.letters import DeadLetter
from qctl.ops.status import QueueRow
from qctl.ops.triage import Act
from qctl.ops.when import span
from qctl.tui.acts.plan import Draft, Field, Plan, Row, Selection, Shown, Where, of_when, typed_name
from qctl.tui.cells import one
from qctl.tui.theme import Tone
from qctl.units import Rate, parse_rate

__all__ = ["Act"]

RATE = Field("rate", "Rate", "no faster than, 10/s; empty: as fast as the broker takes them")


def draft(where: Where, act: Act, about: Selection) -> Draft:
    """Every dead letter of these queues."""
    names = tuple(dict.fromkeys(about.keys))
    rows = {row.queue: row for row in about.snapshot.dead}
    for name in names:
        dead.dead_queue_of(where.inventory, name)

    def plan(values: Mapping[str, str]) -> Plan:
        rate = rate_of(values)
        return Plan(
            what=f"{act} every dead letter of {_listed(names)}{_pace(rate)}",
            verb=act.capitalize(),
            targets=tuple(f"{name}: {_depth(rows.get(name))}" for name in names),
            typed=typed_name(" ".join(names), len(names), f"{len(names)} queues"),
            start=lambda: Letters(where, act, names, rate=rate),
            more=_gone(act),
        )

    return Draft(act.capitalize(), plan, _fields(act))


def draft_of(where: Where, act: Act, queue: str, letters: Sequence[DeadLetter], now_s: float) -> Draft:
    """Exactly these letters, which lie in `queue`."""
    found = dead.Letters(queue, tuple(letters), len(letters), len(letters))
    number = "1 dead letter" if len(letters) == 1 else f"{len(letters)} dead letters"

    def plan(values: Mapping[str, str]) -> Plan:
        rate = rate_of(values)
        return Plan(
            what=f"{act} {number} of {queue}{_pace(rate)}",
            verb=act.capitalize(),
            targets=tuple(_line(letter, now_s) for letter in letters),
            typed=queue,
            start=lambda: Letters(where, act, (queue,), rate=rate, found=found),
            more=_gone(act),
        )

    return Draft(act.capitalize(), plan, _fields(act))


def _fields(act: Act) -> tuple[Field, ...]:
    return (RATE,) if act is Act.REPLAY else ()


def _gone(act: Act) -> tuple[str, ...]:
    return () if act is Act.REPLAY else ("what is dropped is gone for good",)


def _pace(rate: Rate | None) -> str:
    return f", at most {rate}" if rate else ""


def purge(where: Where, about: Selection) -> Draft:
    """Every message of these queues that no consumer has in hand."""
    names = tuple(dict.fromkeys(about.keys))
    rows = {row.queue: row for row in about.snapshot.status.queues}
    for name in names:
        queues.check_queue(where.inventory, name)

    def plan(_values: Mapping[str, str]) -> Plan:
        return Plan(
            what=f"purge {_listed(names)}",
            verb="Purge",
            targets=tuple(f"{name}: {_depth(rows.get(name))}" for name in names),
            typed=typed_name(" ".join(names), len(names), f"{len(names)} queues"),
            start=lambda: Purging(where, names),
            more=("what is purged is gone for good; what consumers have in hand stays",),
        )

    return Draft("Purge", plan)


def rate_of(values: Mapping[str, str]) -> Rate | None:
    """The pace that a form wants. Raises UsageError."""
    text = values.get(RATE.id, "").strip()
    try:
        return parse_rate(text) if text else None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} queues"


def _depth(row: QueueRow | None) -> str:
    """How many there were, and when."""
    if row is None or row.ready is None:
        return "how many there are is not known"
    hand = f", {row.unacked} in hand" if row.unacked else ""
    return f"{row.ready} there{hand}{of_when(row.seen, ' at')}"


def _line(letter: DeadLetter, now_s: float) -> str:
    age_s = letter.age_s(now_s)
    said = (letter.address, letter.type, letter.reason, "" if age_s is None else f"{span(age_s)} ago")
    return "  ".join(text for text in said if text)


class Letters:
    """A replay or drop that was confirmed: of one queue after the other."""

    def __init__(
        self,
        where: Where,
        act: Act,
        names: Sequence[str],
        *,
        rate: Rate | None = None,
        found: dead.Letters | None = None,
    ) -> None:
        """found: exactly these letters; else all that are there when it is their queue's turn."""
        self._where = where
        self._act = act
        self._names = tuple(names)
        self._rate = rate
        self._found = found
        self._done: dict[str, triage.Triage] = {}
        self._empty: list[str] = []
        self._state = "looking at the letters"

    def _say(self, report: triage.Report, state: str) -> None:
        self._state = state or report.words

    @property
    def doing(self) -> str:
        """How far it is."""
        return self._state

    @property
    def is_given(self) -> bool:
        """Whether a letter may have been taken."""
        return any(work.report.done or work.report.maybe_twice for work in self._done.values())

    def shown(self) -> Shown:
        """How many are done, may be there twice, or stay; a line for each queue."""
        reports = {name: work.report for name, work in self._done.items()}
        words = [f"{name}: {report.words}" for name, report in reports.items()]
        words += [f"{name}: there is none" for name in self._empty]
        done = len(words) == len(self._names) and all(one.done == one.total for one in reports.values())
        return Shown(
            titles=("QUEUE", "DONE", "OF", "MAYBE TWICE", "STAY"),
            rows=tuple(_row(name, report) for name, report in reports.items()),
            right=frozenset({1, 2, 3, 4}),
            summary="; ".join(words),
            is_good=done and not any(one.maybe_twice or one.stays for one in reports.values()),
        )

    async def run(self) -> None:
        """Do it. Raises QctlError as `Triage.run` does; the queues after that one are then left as they are."""
        timeout_s = self._where.connect_timeout_s
        for name in self._names:
            order = await self._order(name, timeout_s)
            if not order.total:
                self._empty.append(name)
                continue
            work = self._done[name] = triage.Triage(self._where.inventory, order, on_progress=self._say)
            await work.run(connect_timeout_s=timeout_s)

    async def _order(self, name: str, timeout_s: float) -> triage.Order:
        if self._found is not None:
            return triage.chosen(self._act, self._found, rate=self._rate)
        there = await dead.waiting_letters(self._where.inventory, [name], connect_timeout_s=timeout_s)
        return triage.Order(self._act, name, there.get(name) or 0, rate=self._rate)


def _row(name: str, report: triage.Report) -> Row:
    twice, stays = one(report.maybe_twice, Tone.WARN if report.maybe_twice else ""), one(report.stays)
    return Row((one(name), one(report.done, Tone.OK), one(report.total), twice, stays))


class Purging:
    """Queues that are being emptied, one after the other."""

    def __init__(self, where: Where, names: Sequence[str]) -> None:
        self._where = where
        self._names = tuple(names)
        self._begun = 0
        self._done: list[queues.Purged] = []

    @property
    def doing(self) -> str:
        """Which one it is at."""
        return f"purging {self._names[max(0, self._begun - 1)]}"

    @property
    def is_given(self) -> bool:
        """Whether a queue may have been emptied."""
        return self._begun > 0

    def shown(self) -> Shown:
        """How many messages each has lost."""
        rows = tuple(Row((one(each.queue), one(each.count, Tone.OK), one(each.unacked))) for each in self._done)
        words = "; ".join(_purged(each) for each in self._done)
        done = len(self._done) == len(self._names)
        return Shown(("QUEUE", "PURGED", "IN HAND"), rows, frozenset({1, 2}), summary=words, is_good=done)

    async def run(self) -> None:
        """Do it. Raises QctlError as `queues.purge` does."""
        for name in self._names:
            self._begun += 1
            timeout_s = self._where.connect_timeout_s
            # Counted at once: what comes after that may fail or be interrupted.
            await queues.purge(self._where.inventory, name, connect_timeout_s=timeout_s, on_purged=self._done.append)


def _purged(done: queues.Purged) -> str:
    hand = f", {done.unacked} were in hand and stay" if done.unacked else ""
    return f"{done.queue}: purged {done.count}{hand}"
