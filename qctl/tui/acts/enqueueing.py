"""Enqueueing from the console: one payload, once or a bounded number of times, confirmed by the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from qctl.broker.login import login_for
from qctl.broker.request import Request, request
from qctl.errors import UsageError
from qctl.inventory.model import Inventory
from qctl.ops import lines
from qctl.ops.enqueue import Enqueuer, Report
from qctl.tui.acts.plan import Draft, Field, Plan, Row, Selection, Shown, Where
from qctl.tui.cells import one
from qctl.tui.snapshot import View
from qctl.tui.text import safe
from qctl.tui.theme import Tone

#: Tasks that one form makes; who wants more has a file of them.
MAX_COUNT = 10_000
#: Lines that are handed on at once.
BATCH = 500
#: Cells of a payload in a question.
PREVIEW_CELLS = 100

CONSUMER = Field("consumer", "Consumer", "whose task it is", required=True)
PAYLOAD = Field("payload", "Payload", 'JSON, such as {"user": 7}', value="{}", required=True)
COUNT = Field("count", "How many", f"1 to {MAX_COUNT}", value="1", required=True)


def draft(where: Where, about: Selection) -> Draft:
    """Tasks for a consumer: that of the first row."""
    inventory = where.inventory
    consumer = Field(CONSUMER.id, CONSUMER.label, CONSUMER.placeholder, _consumer(inventory, about), required=True)

    def plan(values: Mapping[str, str]) -> Plan:
        count = count_of(values.get(COUNT.id, ""))
        name = values.get(CONSUMER.id, "").strip()
        if not name:
            raise UsageError("no consumer yet", hint=f"There are {', '.join(list(inventory.consumers)[:8])}.")
        wanted = request(inventory, name)
        body = payload_of(values.get(PAYLOAD.id, ""), inventory.worker.max_body_bytes)
        tasks = "1 task" if count == 1 else f"{count} tasks"
        return Plan(
            what=f"enqueue {tasks} for {name}",
            verb="Enqueue",
            targets=(f"queue {wanted.queue}", f"payload {safe(body.decode(), width=PREVIEW_CELLS)}"),
            typed=name,
            start=lambda: Enqueueing(where, wanted, body, count),
        )

    return Draft("Enqueue", plan, (consumer, PAYLOAD, COUNT))


def _consumer(inventory: Inventory, about: Selection) -> str:
    """The consumer that the first row is of, "" where the inventory has none."""
    first = about.keys[0] if about.keys else ""
    if about.view is View.QUEUES:
        return next((each.name for each in inventory.consumers.values() if each.queue == first), "")
    parts = first.split("/")  # of a tag
    return parts[2] if len(parts) > 2 and parts[2] in inventory.consumers else ""


def count_of(text: str) -> int:
    """How many. Raises UsageError."""
    stripped = text.strip()
    number = (
        int(stripped) if stripped.isascii() and stripped.isdecimal() and len(stripped) <= len(str(MAX_COUNT)) else 0
    )
    if not 1 <= number <= MAX_COUNT:
        raise UsageError(
            f"a count is a whole number from 1 to {MAX_COUNT}, found {stripped[:20]!r}",
            hint="`qctl enqueue CONSUMER --file F` takes any number of tasks.",
        )
    return number


def payload_of(text: str, max_bytes: int) -> bytes:
    """The body of each task. Raises UsageError for what is not one JSON value, or too long."""
    try:
        body = text.strip().encode()
        lines.check(body, max_bytes)
    except ValueError as error:
        raise UsageError(f"the payload is {error}", hint='A string needs its quotes: "text".') from None
    return body


class Enqueueing:
    """Tasks that were confirmed to be sent."""

    def __init__(self, where: Where, wanted: Request, body: bytes, count: int) -> None:
        self._where = where
        self._wanted = wanted
        self._body = body
        self._count = count
        self._state = "connecting"
        self._work = Enqueuer(wanted, on_progress=self._say)

    def _say(self, report: Report, state: str) -> None:
        self._state = state or f"confirmed {report.confirmed} of {self._count}"

    @property
    def doing(self) -> str:
        """How far it is."""
        return self._state

    @property
    def is_given(self) -> bool:
        """Whether a task may be in the queue."""
        report = self._work.report
        return report.confirmed + report.maybe_twice > 0

    def shown(self) -> Shown:
        """How many are safe, and how many may be."""
        report = self._work.report
        rows = (Row((one(report.queue), one(report.confirmed, Tone.OK), one(self._count))),)
        notes: tuple[str, ...] = ()
        if report.maybe_twice:
            notes = (f"{report.maybe_twice} more were sent and not confirmed: they may be in the queue",)
        done = report.confirmed == self._count
        summary = f"{report.queue}: confirmed {report.confirmed} of {self._count}" if report.confirmed else ""
        return Shown(("QUEUE", "CONFIRMED", "OF"), rows, frozenset({1, 2}), notes, summary, is_good=done)

    async def run(self) -> None:
        """Send all of them. Raises QctlError as `Enqueuer.run` does."""
        inventory = self._where.inventory
        login = await asyncio.to_thread(login_for, inventory.broker, inventory.path, prefer_environment=True)
        await self._work.run(lambda: login, self._batches(), self._where.connect_timeout_s)

    async def _batches(self) -> AsyncIterator[list[lines.Line]]:
        for first in range(0, self._count, BATCH):
            last = min(first + BATCH, self._count)
            yield [lines.Line(number + 1, self._body) for number in range(first, last)]
