"""Setting the limits of quotas from the console, and taking that back."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping

from qctl.control.event import Command, Verb
from qctl.errors import Exit, QctlError, UsageError
from qctl.ops import access, pausing, quotas, wording
from qctl.ops.claim import claim
from qctl.tui.acts.pausing import DOUBT, PROOF_S, PROOFS
from qctl.tui.acts.plan import (
    LASTS,
    REASON,
    Draft,
    Field,
    Plan,
    Row,
    Selection,
    Shown,
    Where,
    lasts,
    reason_of,
    typed_name,
)
from qctl.tui.cells import one
from qctl.tui.theme import Tone

#: Quotas that are set at once, and how many of them at the same time: each has a connection of its own.
MAX_QUOTAS = 50
AT_ONCE = 4
RATES = Field("rates", "Limit", "100/h, or several that all must admit: 10/s 20000/h", required=True)


def draft(where: Where, verb: Verb, about: Selection) -> Draft:
    """A change of the limits of the quotas whose rows these are. Raises UsageError and UnknownName."""
    inventory = where.inventory
    if len(about.keys) > MAX_QUOTAS:
        raise UsageError(
            f"{len(about.keys)} quotas are more than {MAX_QUOTAS}",
            hint="A pattern is a single command: `qctl quota set '*/QUOTA' RATE`.",
        )
    selections = tuple(quotas.select(inventory, key) for key in about.keys)
    is_set = verb is Verb.QUOTA_SET

    def plan(values: Mapping[str, str]) -> Plan:
        rates = quotas.rates_of(values.get(RATES.id, "").replace(",", " ").split()) if is_set else ()
        if is_set and not rates:
            raise UsageError("no limit yet", hint=f"Such as {RATES.placeholder}.")
        reason = reason_of(values)
        until_s, duration_s = lasts(values, time.time())

        def start() -> Limits:
            ends_s = until_s if duration_s is None else time.time() + duration_s
            pausing.check_end(ends_s)
            given = [(one, _command(one, verb, rates, reason, ends_s)) for one in selections]
            return Limits(where, given)

        what = wording.limits(verb, selections[0], rates, until_s, duration_s)
        if len(selections) > 1:
            what = what.replace(str(selections[0]), f"{len(selections)} quotas", 1)
        return Plan(
            what=what,
            verb="Set" if is_set else "Clear",
            targets=tuple(line for one in selections for line in wording.listed(inventory, one)),
            typed=typed_name(" ".join(map(str, selections)), len(selections), f"{len(selections)} quotas"),
            start=start,
            warnings=tuple(line for one in selections for line in wording.warnings(inventory, one, rates)),
        )

    return Draft("Set a limit" if is_set else "Clear a limit", plan, (RATES, LASTS, REASON) if is_set else (REASON,))


def _command(
    one: quotas.Selection, verb: Verb, rates: tuple[str, ...], reason: str | None, until_s: float | None
) -> Command:
    return quotas.command(
        one,
        verb,
        identity=secrets.token_hex(16),
        now_s=time.time(),
        rates=rates,
        reason=reason,
        until_s=until_s,
        claimed_by=claim(),
    )


class Limits:
    """A change of one or several limits that was confirmed: a command each."""

    def __init__(self, where: Where, given: list[tuple[quotas.Selection, Command]]) -> None:
        self._where = where
        self._works = [quotas.Setting(one, command) for one, command in given]
        self._begun: set[quotas.Setting] = set()
        self._failures: dict[quotas.Setting, QctlError] = {}
        self._is_over = False

    @property
    def doing(self) -> str:
        """What is being waited for."""
        return "waiting for the processes to say what holds" if self._begun else "connecting"

    @property
    def is_given(self) -> bool:
        """Whether a command may have been sent."""
        return bool(self._begun)

    def shown(self) -> Shown:
        """What holds now, by those who answered; of several, first those that were not given."""
        reports = [work.report for work in self._works]
        is_over = self._is_over and len(self._works) > 1
        missing = [work for work in self._works if is_over and not work.report.confirmed]
        rows = sorted((row for one in reports for row in one.verdicts), key=lambda row: DOUBT.index(row.standing))
        confirmed = [one for one in reports if one.confirmed]
        summary = ""
        if confirmed:
            verb, rates, until_s = confirmed[0].command.verb, confirmed[0].command.rates, confirmed[0].command.until_s
            summary = wording.limited(confirmed[0], wording.limits(verb, confirmed[0].selection, rates, until_s))
            if len(reports) > 1:
                done = wording.proven(row.standing for row in rows)
                summary = f"{len(confirmed)} of {len(reports)} given, by {confirmed[0].user}: {done}"
        return Shown(
            titles=("QUOTA", "PROOF", "LIMIT", "PROCESSES"),
            rows=(*map(self._missing, missing), *map(_row, rows)),
            right=frozenset({3}),
            notes=tuple(dict.fromkeys(note for one in reports for note in one.notes)),
            summary=summary,
            is_good=all(one.confirmed and one.exit_code is Exit.DONE for one in reports),
        )

    async def run(self) -> None:
        """Give the commands and gather the proof. Raises QctlError when all were tried; `shown` has which failed."""
        login, api = await asyncio.to_thread(access.operator, self._where.inventory)
        places = asyncio.Semaphore(AT_ONCE)

        async def give(work: quotas.Setting) -> None:
            async with places:
                self._begun.add(work)
                try:
                    await work.run(login, api, connect_timeout_s=self._where.connect_timeout_s, timeout_s=PROOF_S)
                except QctlError as error:
                    self._failures[work] = error

        try:
            found = await asyncio.gather(*(give(work) for work in self._works), return_exceptions=True)
        finally:
            self._is_over = True
        for defect in filter(None, found):
            raise defect
        failures = list(self._failures.values())
        if failures and len(self._works) > 1:
            first = failures[0]
            words = f"{len(failures)} of {len(self._works)} quotas failed, the first one: {first.message}"
            raise QctlError(words, hint=first.hint)
        for failure in failures:
            raise failure

    def _missing(self, work: quotas.Setting) -> Row:
        """A quota whose command is not known to stand in the log."""
        failure = self._failures.get(work)
        said = ("✗ failed", Tone.BAD) if failure else ("? not known", Tone.WARN)
        if work not in self._begun:
            said = ("· not given", Tone.DIM)
        return Row(
            (one(str(work.report.selection)), one(*said), one(None), one(None)), failure.message if failure else ""
        )


def _row(row: quotas.Verdict) -> Row:
    limits = ", ".join(row.limits) or None
    quota, proof = one(f"{row.host}/{row.quota}"), one(*PROOFS[row.standing])
    return Row((quota, proof, one(limits), one(row.processes)), row.words)
