"""Pausing and resuming from the console: rows become targets, and each subscription's proof becomes a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

from qctl.control.event import Verb
from qctl.control.verdict import Standing, Verdict
from qctl.errors import Exit
from qctl.inventory.model import Inventory
from qctl.ops import access, pausing, targets, wording
from qctl.ops.status import ConsumerRow, in_words
from qctl.ops.when import precise
from qctl.tui.acts.plan import (
    LASTS,
    REASON,
    Draft,
    Plan,
    Row,
    Selection,
    Shown,
    Where,
    lasts,
    of_when,
    reason_of,
    typed_name,
)
from qctl.tui.cells import one
from qctl.tui.snapshot import View
from qctl.tui.theme import Tone

#: How long the proof may take.
PROOF_S = 5.0
#: A proof in a word and a shape, and how it is shown.
PROOFS = {
    Standing.PROVEN: ("✓ proven", Tone.OK),
    Standing.DOWN: ("· down", Tone.DIM),
    Standing.REFUSED: ("✗ refused", Tone.BAD),
    Standing.UNPROVEN: ("? NOT proven", Tone.WARN),
}
PAUSED = ("TAG", "PROOF", "STATE", "CANCEL-OK", "RUNNING", "BACK")
RESUMED = ("TAG", "PROOF", "STATE", "RUNNING")
#: What is in doubt comes first.
DOUBT = (Standing.UNPROVEN, Standing.REFUSED, Standing.PROVEN, Standing.DOWN)


def draft(where: Where, verb: Verb, about: Selection) -> Draft:
    """A pause or resume of what the rows of hosts, consumers or queues stand for.

    Raises UsageError and UnknownName, as `targets.select` does, for what is not in the inventory.
    """
    named = selected(where.inventory, about)
    number = len(named.pairs)
    typed = typed_name(named.shown, len(named.targets), f"{number} consumer{'s' if number > 1 else ''}")
    # Rows that were marked may be more names than a sentence holds.
    selection = named if typed == named.shown else replace(named, shown=f"{len(named.targets)} targets")
    states = {(row.host, row.consumer): row for row in about.snapshot.status.consumers}
    fields = (REASON, LASTS) if verb is Verb.PAUSE else (REASON,)

    def plan(values: Mapping[str, str]) -> Plan:
        reason = reason_of(values)
        until_s, duration_s = lasts(values, time.time())

        def start() -> Pausing:
            ends_s = until_s if duration_s is None else time.time() + duration_s
            return Pausing(where, pausing.order(verb, selection, reason=reason, until_s=ends_s))

        return Plan(
            what=f"{verb} {wording.concerning(selection)}{wording.ending(until_s, duration_s)}",
            verb=verb.capitalize(),
            targets=tuple(_target(states, host, consumer) for host, consumer in selection.pairs),
            typed=typed,
            start=start,
            more=("and on every other host that the target matches, also later",) if selection.anywhere else (),
        )

    return Draft(verb.capitalize(), plan, fields)


def _target(states: Mapping[tuple[str, str], ConsumerRow], host: str, consumer: str) -> str:
    """A consumer, what is known of it, and of when that is."""
    row = states.get((host, consumer))
    if row is None:
        return f"{host}/{consumer}"
    return f"{host}/{consumer}  {in_words(row.state, row.why)}{of_when(row.seen, ', heard at')}"


def selected(inventory: Inventory, about: Selection) -> targets.Selection:
    """What rows stand for: a host for all it runs, a tag for its consumer there, a queue for all who take from it."""
    match about.view:
        case View.QUEUES:
            each = [targets.select(inventory, targets.Words(queue=queue)) for queue in about.keys]
            return targets.together(each)
        case View.CONSUMERS:
            rows = {row.tag: row for row in about.snapshot.tags}
            named = [rows[key].address if key in rows else _address(key) for key in about.keys]
        case _:
            named = list(about.keys)
    return targets.select(inventory, targets.Words(targets=tuple(dict.fromkeys(named))))


def _address(tag: str) -> str:
    """`HOST/CONSUMER` of a tag whose row has gone meanwhile."""
    return "/".join(tag.split("/")[1:3]) or tag


class Pausing:
    """A pause or resume that was confirmed."""

    def __init__(self, where: Where, wanted: pausing.Order) -> None:
        self._where = where
        self._wanted = wanted
        self._work = pausing.Pausing(wanted, on_progress=self._say)
        self._doing = "connecting"

    def _say(self, words: str) -> None:
        self._doing = words

    @property
    def doing(self) -> str:
        """What is being waited for."""
        return self._doing

    @property
    def is_given(self) -> bool:
        """Whether it was sent."""
        return self._work.is_sent

    def shown(self) -> Shown:
        """The proof of each subscription so far."""
        return proof(self._work.report)

    async def run(self) -> None:
        """Give the order and gather the proof. Raises QctlError as `pausing.Pausing.run` does."""
        login, api = await asyncio.to_thread(access.operator, self._where.inventory)
        await self._work.run(login, api, connect_timeout_s=self._where.connect_timeout_s, timeout_s=PROOF_S)


def proof(report: pausing.Report) -> Shown:
    """A report as rows, what is in doubt first."""
    is_pause = report.order.verb is Verb.PAUSE
    return Shown(
        titles=PAUSED if is_pause else RESUMED,
        rows=tuple(
            _row(row, is_pause=is_pause) for row in sorted(report.rows, key=lambda row: DOUBT.index(row.standing))
        ),
        right=frozenset({4, 5}) if is_pause else frozenset({3}),
        notes=report.notes,
        summary=wording.paused(report) if report.confirmed else "",
        is_good=bool(report.confirmed) and report.exit_code is Exit.DONE,
    )


def _row(row: Verdict, *, is_pause: bool) -> Row:
    begin = (one(row.tag.removeprefix("qctl/")), one(*PROOFS[row.standing]), one(row.state))
    if not is_pause:
        return Row((*begin, one(row.running)), row.words)
    cancelled = None if row.cancelled_at_s is None else precise(row.cancelled_at_s)
    return Row((*begin, one(cancelled), one(row.running), one(row.given_back)), row.words)
