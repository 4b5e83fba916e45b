"""Pause and resume consumers: give the command, gather the proof of each subscription, and say what is true."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qctl.broker import management
from qctl.broker.connect import Login, connect_within
from qctl.broker.message import utc
from qctl.broker.session import ChannelLost, Connection
from qctl.control.answer import Answer, parse_answer
from qctl.control.asking import Asking, asking
from qctl.control.event import Command, Verb
from qctl.control.host_answer import ProcessState
from qctl.control.verdict import Expected, HostEvidence, Standing, Supervisor, Verdict, judge
from qctl.errors import BrokerRefused, BrokerUnreachable, Exit, QctlError, TopologyMismatch, UsageError
from qctl.inventory.model import Inventory
from qctl.ops.claim import claim
from qctl.ops.targets import Selection

if TYPE_CHECKING:
    from qctl.control.telemetry import Listener

#: The management API may take this long; without it the workers' own answers stand alone.
API_S = 2.0
API_AGAIN_S = 0.25
#: A task is over at the latest so long after its timeout; --wait waits no longer.
BEYOND_TIMEOUT_S = 60.0
#: How often it is said what is being waited for.
PROGRESS_EVERY_S = 0.2
#: Names in a sentence about what is awaited.
LISTED_NAMES = 5
NOTHING = HostEvidence()
TIME_OVER = "its time is over: what is not proven was perhaps never paused, and need not be any more"


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator wants. until_s: wall clock; claimed_by: `user@machine`."""

    verb: Verb
    selection: Selection
    reason: str | None = None
    until_s: float | None = None
    claimed_by: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What is true at the end, and at any moment before.

    confirmed: the events that stand in the log, or that the host keeps (`local`); confirmed_at_s: the last one's wall
    clock. user: who commanded, verified by the broker; "" with `local`. notes: what could not be found out.
    runs_on: it was waited for tasks that were running, and not all are known to be over. is_interrupted: it holds, and
    somebody did not want to wait for the proof.
    """

    order: Order
    user: str
    confirmed: tuple[Command, ...]
    confirmed_at_s: float | None
    rows: tuple[Verdict, ...]
    notes: tuple[str, ...]
    local: bool = False
    runs_on: bool = False
    is_interrupted: bool = False

    @property
    def exit_code(self) -> Exit:
        """0: whatever is alive has proven it. 3: part has. 5: all that answered refused. 1: nothing is proven."""
        if self.is_interrupted:
            return Exit.INTERRUPTED
        standings = {row.standing for row in self.rows}
        if not standings & {Standing.UNPROVEN, Standing.REFUSED}:
            return Exit.PARTLY if self.runs_on else Exit.DONE
        if Standing.PROVEN in standings:
            return Exit.PARTLY
        return Exit.FAILED if Standing.UNPROVEN in standings else Exit.REFUSED


def order(verb: Verb, selection: Selection, *, reason: str | None, until_s: float | None) -> Order:
    """An order of whoever runs this program."""
    return Order(verb, selection, reason, until_s, claim())


def check_operator(inventory: Inventory, username: str) -> None:
    """Raise BrokerRefused for a user whom no worker with this inventory would obey."""
    if inventory.operators and username not in inventory.operators:
        step = "log in as one with $QCTL_USERNAME and $QCTL_PASSWORD."
        if inventory.broker.local:
            step = f"`broker: local` has the user {username!r} alone: add it there, or take the list out."
        raise BrokerRefused(
            f"not given: broker user {username!r} is not an operator",
            hint=f"`operators` in {inventory.path} are {', '.join(inventory.operators)}; {step}",
        )


def check_end(until_s: float | None) -> None:
    """Raise UsageError for what would end before it is given."""
    if until_s is not None and until_s <= time.time():
        raise UsageError("not given: its time is over", hint="Give it a later end with --until, or --for.")


def _is_over_now(wanted: Order) -> bool:
    return wanted.until_s is not None and wanted.until_s <= time.time()


def _within(wanted: Order, timeout_s: float) -> float:
    """What is left of the timeout and of the time that is ordered."""
    return timeout_s if wanted.until_s is None else max(0.0, min(timeout_s, wanted.until_s - time.time()))


def commands(wanted: Order, *, local: bool = False) -> tuple[Command, ...]:
    """The events of an order, made anew at each call."""
    at = utc(time.time())
    return tuple(
        Command(
            id=secrets.token_hex(16),
            at=at,
            verb=wanted.verb,
            target=target,
            reason=wanted.reason,
            until_s=wanted.until_s,
            claimed_by=wanted.claimed_by,
            local=local,
        )
        for target in wanted.selection.targets
    )


class Pausing:
    """Carries out one order. `report` is true at any moment, also after an error or an interrupt."""

    def __init__(self, wanted: Order, *, on_progress: Callable[[str], None] = lambda _: None) -> None:
        """on_progress(words): about every PROGRESS_EVERY_S, what is being waited for."""
        self._order = wanted
        self._on_progress = on_progress
        self._asking: Asking | None = None
        self._judged: dict[str, tuple[HostEvidence, tuple[Expected, ...], tuple[Verdict, ...]]] = {}
        self._over: set[str] = set()  # tags whose running tasks are over
        self._notes: list[str] = []
        self._runs_on = False
        self._waits_for = ""

    @property
    def is_sent(self) -> bool:
        """Whether something was sent that may be obeyed, confirmed or not."""
        return self._asking is not None and self._asking.is_sent

    @property
    def report(self) -> Report:
        """What is true now."""
        found = self._asking
        if found is None:
            return Report(self._order, "", (), None, (), tuple(self._notes))
        notes = (*found.notes, *self._notes)
        rows = tuple(replace(row, running=0) if row.tag in self._over else row for row in self._rows(found))
        user = found.connection.username
        confirmed = tuple(found.confirmed)
        return Report(self._order, user, confirmed, found.confirmed_at_s, rows, notes, runs_on=self._runs_on)

    async def run(
        self,
        login: Login,
        api: management.Api | None,
        *,
        connect_timeout_s: float,
        timeout_s: float,
        wait_s: float | None = None,
    ) -> Report:
        """Give the order and gather the proof for at most timeout_s, then wait at most wait_s for what runs.

        Raises BrokerUnreachable, BrokerRefused, BrokerBlocked, QctlError as `Asking.give` does, and UsageError when the
        order has ended before it could be given.
        """
        progress = asyncio.create_task(self._show_progress())
        connection: Connection | None = None
        try:
            self._waits_for = "connecting"
            connection = await connect_within(login, name=f"qctl {self._order.verb}", timeout_s=connect_timeout_s)
            async with asking(connection) as found:
                self._asking = found
                self._waits_for = "waiting for the broker to confirm"
                check_end(self._order.until_s)
                await found.give(commands(self._order))
                await self._gather(found, api, timeout_s)
                if wait_s is not None:
                    await self._await_running(connection, _within(self._order, wait_s))
                    self._say_what_may_run()
            return self.report
        finally:
            progress.cancel()
            if connection is not None:
                if connection.blocked:
                    connection.abort("the broker reads nothing at present")
                await asyncio.shield(connection.close())

    async def _gather(self, found: Asking, api: management.Api | None, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        selection = self._order.selection

        def is_known() -> bool:
            missing = [row for row in self._rows(found) if row.standing is Standing.UNPROVEN]
            self._waits_for = f"waiting for {_listed(dict.fromkeys(row.tag for row in missing))}"
            return not missing

        listed = None if api is None else lambda: management.in_thread(lambda: management.hosts(api), timeout_s=API_S)
        most_s = _within(self._order, timeout_s)
        await found.gather(selection.hosts, is_known, timeout_s=most_s, listed=listed, anywhere=selection.anywhere)
        if _is_over_now(self._order):
            if not is_known():
                self._note(TIME_OVER)
            return
        if api is not None and self._order.verb is Verb.PAUSE and found.confirmed_at_s is not None:
            self._waits_for = "checking with the broker's list of consumers"
            await self._check_consumers(api, deadline_s)

    def _rows(self, found: Asking) -> tuple[Verdict, ...]:
        """Every verdict; a host is judged anew only when something has come of it, since large fleets have many."""
        if found.confirmed_at_s is None:
            return ()
        expected: dict[str, list[Expected]] = {}
        for one in (*self._order.selection.expected, *found.foreign):
            expected.setdefault(one.host, []).append(one)
        rows: list[Verdict] = []
        for host in dict.fromkeys((*expected, *found.evidence)):
            evidence = found.evidence.get(host, NOTHING)
            of_host = tuple(expected.get(host, ()))
            known = self._judged.get(host)
            if known is None or known[0] is not evidence or known[1] != of_host:
                verdicts = judge(
                    self._order.verb,
                    self._order.selection.targets,
                    of_host,
                    {host: evidence},
                    confirmed_at_s=found.confirmed_at_s,
                )
                known = self._judged[host] = (evidence, of_host, verdicts)
            rows += known[2]
        return tuple(rows)

    async def _check_consumers(self, api: management.Api, deadline_s: float) -> None:
        """Look whether the broker's list has lost the consumers too. It lags; the worker's word is the better one."""
        proven = {row.tag for row in self.report.rows if row.standing is Standing.PROVEN}
        while proven:
            try:
                still = proven & await management.in_thread(lambda: management.tags(api), timeout_s=API_S)
            except QctlError as error:
                self._note(f"not checked with the broker's list of consumers: {error.message}")
                return
            if not still:
                return
            if time.monotonic() + API_AGAIN_S > deadline_s:
                self._note(f"the broker still lists {_listed(sorted(still))}; its list may lag behind")
                return
            await asyncio.sleep(API_AGAIN_S)

    async def _await_running(self, connection: Connection, wait_s: float) -> None:
        """Wait until what was running is over: readings say so, or the process that ran it has ended."""
        from qctl.control.telemetry import listen

        deadline_s = time.monotonic() + wait_s
        found = self._asking
        assert found is not None
        try:
            async with listen(connection) as listener:
                while (running := self._running(listener)) and (left_s := deadline_s - time.monotonic()) > 0:
                    tasks = sum(row.running or 0 for row in running)
                    self._waits_for = f"waiting for {tasks} running tasks of {_listed(row.tag for row in running)}"
                    found.ask_again()
                    await listener.until(lambda: len(self._running(listener)) < len(running), min(1.0, left_s))
                    if listener.lost.done() or not connection.is_open:
                        raise BrokerUnreachable(
                            "the command was confirmed and holds, but the broker was lost while tasks were running",
                            hint="`qctl status` shows what runs once it is back.",
                        )
        except ChannelLost as error:
            raise BrokerUnreachable(f"the command was confirmed and holds, but the broker was lost: {error}") from None
        except (BrokerRefused, TopologyMismatch) as error:
            self._runs_on = True
            self._note(f"it cannot be waited for what runs: {error.message}")
            return
        if running:
            self._runs_on = True
            tasks = sum(row.running or 0 for row in running)
            still = "1 task still runs" if tasks == 1 else f"{tasks} tasks still run"
            self._note(f"{still} after {wait_s:g} s: {_listed(row.tag for row in running)}")

    def _say_what_may_run(self) -> None:
        """A process that is cut off from the broker, or that nobody hears, finishes what it has begun."""
        if tags := [row.tag for row in self.report.rows if row.may_run]:
            self._runs_on = True
            self._note(f"it is not known whether tasks of {_listed(tags)} still run")

    def _running(self, listener: Listener) -> list[Verdict]:
        """The rows of which something may still run; the others are noted as over."""
        assert self._asking is not None
        found = []
        for row in self.report.rows:
            if row.standing is not Standing.PROVEN or not row.running:
                continue
            if _is_over(row, listener, self._asking.evidence.get(row.host)):
                self._over.add(row.tag)
            else:
                found.append(row)
        return found

    def _note(self, sentence: str) -> None:
        self._notes.append(sentence)

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            self._on_progress(self._waits_for)


def run_locally(wanted: Order, state_directory: Path, *, timeout_s: float) -> Report:
    """Give an order to this machine's supervisor of the one host that it names, without the broker.

    Raises NoSupervisor, UsageError when the order has ended already, and QctlError and Interrupted as `give` does.
    """
    from qctl.ops.local import give

    check_end(wanted.until_s)
    host, command = wanted.selection.hosts[0], commands(wanted, local=True)[0]
    given = give(state_directory / host, command.body(), timeout_s=_within(wanted, timeout_s))
    at_s = time.time()
    answers: dict[tuple[int, int], tuple[Answer, ...]] = {}
    notes = []
    for body in given.answers:
        try:
            answer = parse_answer(body)
        except ValueError as error:
            notes.append(f"an answer cannot be read: {error}")
            continue
        if answer.id == command.id:
            answers[answer.index, answer.pid] = (answer,)
    looks = given.before if given.after is None else given.after
    # Nothing of it may stand in the log yet, so a process that is about to read that need not know of it.
    looks = tuple(
        look if look.state is ProcessState.ENDED else replace(look, state=ProcessState.CONNECTED) for look in looks
    )
    evidence = HostEvidence(Supervisor.ANSWERS, looks, answers=answers)
    rows = judge(
        wanted.verb, wanted.selection.targets, wanted.selection.expected, {host: evidence}, confirmed_at_s=at_s
    )
    if _is_over_now(wanted) and any(row.standing is Standing.UNPROVEN for row in rows):
        notes.append(TIME_OVER)
    return Report(wanted, "", (command,), at_s, rows, tuple(notes), local=True, is_interrupted=given.is_interrupted)


def _is_over(row: Verdict, listener: Listener, evidence: HostEvidence | None) -> bool:
    """Whether the tasks of a stopped subscription are over: its process says that none runs, or has ended."""
    index = _index(row.tag)
    heard = listener.heard.get((row.host, index))
    if heard is not None and heard.reading.at_s > (row.cancelled_at_s or 0.0):
        for consumer in heard.reading.consumers:
            if consumer.name == row.consumer and consumer.running == 0:
                return True
    if evidence is None or evidence.supervisor is not Supervisor.ANSWERS:
        return False
    alive = {look.pid for look in evidence.looks if look.index == index and look.state is not ProcessState.ENDED}
    ran = {pid for (of, pid) in evidence.answers if of == index}
    return not alive & ran


def _index(tag: str) -> int:
    """The process of a consumer tag; -1, which none has, for what is no tag of qctl's."""
    number = tag.split("/")[3:4]
    return int(number[0]) if number and number[0].isdecimal() else -1


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - LISTED_NAMES} more" if len(every) > LISTED_NAMES else ""
    return f"{', '.join(every[:LISTED_NAMES])}{more}"


def wait_s(inventory: Inventory, selection: Selection) -> float:
    """How long the longest of the tasks may take that a selection's consumers run."""
    timeouts = [inventory.hosts[host].consumers[name].timeout_s for host, name in selection.pairs]
    return max(timeouts) + BEYOND_TIMEOUT_S
