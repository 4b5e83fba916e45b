"""Setting a host's limit, and taking that back: what is meant, what it does, and what is proven of it.

It goes through the control log like a pause, and each process of the host answers which limits hold for it now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from qctl.broker import management
from qctl.broker.connect import Login, connect_within
from qctl.control.answer import Answer
from qctl.control.asking import Asking, asking
from qctl.control.event import MAX_RATES, Command, Verb
from qctl.control.host_answer import ProcessState
from qctl.control.target import WILDCARD, Scope, Target, is_literal, pattern
from qctl.control.verdict import HostEvidence, Standing, Supervisor, judge_process, processes
from qctl.errors import BrokerBlocked, Exit, UnknownName, UsageError
from qctl.inventory.model import Inventory, Window
from qctl.inventory.nearest import did_you_mean
from qctl.ops.when import iso
from qctl.units import MAX_UNITS, Rate, parse_rate

#: The management API may take this long; without it the other evidence stands alone.
API_S = 2.0
#: From what is best known to what is least.
_DOUBT = (Standing.DOWN, Standing.PROVEN, Standing.REFUSED, Standing.UNPROVEN)


@dataclass(frozen=True, slots=True)
class Selection:
    """Quotas as they were named, patterns maybe, and which of the inventory's they are: HOST, QUOTA each."""

    scope: Scope
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.scope.host}/{self.scope.quota}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the inventory that are concerned."""
        return tuple(dict.fromkeys(host for host, _ in self.pairs))

    @property
    def anywhere(self) -> bool:
        """Whether hosts that the inventory does not have may be concerned."""
        return not is_literal(self.scope.host)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A quota of a host after the command. limits: those that hold, by who answered; () when nobody did."""

    host: str
    quota: str
    standing: Standing
    words: str = ""
    limits: tuple[str, ...] = ()
    override: bool = False
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What is true at the end, and at any moment before. user: who commanded, by the broker; notes: what is not known.

    confirmed: the command stands in the control log.
    """

    selection: Selection
    command: Command
    user: str
    confirmed: bool
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> Exit:
        """0: whatever is alive has proven it. 3: part has. 5: all that answered refused. 1: nothing is proven."""
        standings = {row.standing for row in self.verdicts}
        if not standings & {Standing.UNPROVEN, Standing.REFUSED}:
            return Exit.DONE
        if Standing.PROVEN in standings:
            return Exit.PARTLY
        return Exit.FAILED if Standing.UNPROVEN in standings else Exit.REFUSED


class Setting:
    """Carries out one command. `report` is true at any moment, also after an error or an interrupt."""

    def __init__(self, selection: Selection, wanted: Command) -> None:
        self._selection = selection
        self._command = wanted
        self._asking: Asking | None = None

    @property
    def report(self) -> Report:
        """What is true now."""
        found = self._asking
        if found is None or not found.confirmed:
            return Report(self._selection, self._command, "", False, (), tuple(found.notes) if found else ())
        return Report(
            self._selection, self._command, found.connection.username, True, self._verdicts(found), tuple(found.notes)
        )

    def _verdicts(self, found: Asking) -> tuple[Verdict, ...]:
        # Hosts that only telemetry has told of are concerned by a pattern too.
        strangers = [(host, self._command.quota or "") for host in found.evidence if host not in self._selection.hosts]
        pairs = (*self._selection.pairs, *(pair for pair in strangers if is_literal(pair[1])))
        return judge(pairs, self._command.rates, found.evidence)

    async def run(
        self, login: Login, api: management.Api | None, *, connect_timeout_s: float, timeout_s: float
    ) -> Report:
        """Give the command and gather the proof for at most timeout_s.

        Raises BrokerUnreachable, BrokerRefused, BrokerBlocked, and QctlError as `Asking.give` does.
        """
        verb, selection = self._command.verb, self._selection
        connection = await connect_within(login, name=f"qctl {verb}", timeout_s=connect_timeout_s)
        try:
            async with asking(connection) as found:
                self._asking = found
                try:
                    await found.give([self._command])
                except BrokerBlocked as error:
                    # Unlike a pause, a limit cannot be given on the host itself.
                    error.hint = "`rabbitmq-diagnostics alarms` shows which alarm; give it again when that is over."
                    raise
                listed = None
                if api is not None:
                    listed = partial(management.in_thread, partial(management.hosts, api), timeout_s=API_S)
                await found.gather(
                    selection.hosts,
                    lambda: all(row.standing is not Standing.UNPROVEN for row in self._verdicts(found)),
                    timeout_s=timeout_s,
                    listed=listed,
                    anywhere=selection.anywhere,
                )
            return self.report
        finally:
            if connection.blocked:
                connection.abort("the broker reads nothing at present")
            await asyncio.shield(connection.close())


def select(inventory: Inventory, named: str) -> Selection:
    """What `HOST/QUOTA` means. Raises UsageError, or UnknownName with the nearest name."""
    host, slash, quota = named.partition("/")
    if not slash or not host or not quota or "/" in quota:
        raise UsageError(f"expected HOST/QUOTA, found {named!r}", hint="`*` stands for any characters: '*/twitter'.")
    try:
        scope = Scope(pattern(host, "HOST"), pattern(quota, "QUOTA"))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if is_literal(host):
        inventory.host(host)
    if is_literal(quota) and quota not in inventory.quotas:
        near = did_you_mean(quota, inventory.quotas)
        raise UnknownName(
            f"{inventory.path} has no quota {quota!r}", hint=near or f"It has: {', '.join(inventory.quotas)}."
        )
    pairs = tuple(
        (each.name, name) for each in inventory.hosts.values() for name in each.quotas if scope.matches(each.name, name)
    )
    if not pairs:
        raise UsageError(f"nothing in {inventory.path} matches {named}", hint=f"`{WILDCARD}` is the only wildcard.")
    return Selection(scope, pairs)


def rates_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The limits to set, as they are written in inventories. Raises UsageError."""
    if len(texts) > MAX_RATES:
        raise UsageError(f"a quota has at most {MAX_RATES} limits, found {len(texts)}")
    try:
        return tuple(dict.fromkeys(str(parse_rate(text)) for text in texts))
    except ValueError as error:
        raise UsageError(str(error)) from None


def too_dear(inventory: Inventory, selection: Selection, rates: Iterable[str]) -> tuple[str, ...]:
    """The consumers that could not run a single task any more, a sentence each: they would be held until it ends."""
    least = min((parse_rate(rate).units for rate in rates), default=MAX_UNITS)
    return tuple(
        f"{host}/{consumer.name}: a task is expected to need {consumer.cost[quota]} units of {quota}, more than {least}"
        for host, quota in selection.pairs
        for consumer in inventory.hosts[host].consumers.values()
        if consumer.cost.get(quota, 0) > least
    )


def cut_bursts(inventory: Inventory, selection: Selection, rates: Iterable[str]) -> tuple[str, ...]:
    """The paced quotas that could not pay for their whole burst at once any more, a sentence each."""
    least = min((parse_rate(rate).units for rate in rates), default=MAX_UNITS)
    paced = ((host, inventory.hosts[host].quotas[quota]) for host, quota in selection.pairs)
    return tuple(
        f"{host}/{quota.name}: its burst of {quota.burst} units is more than the limit: {least} hold"
        for host, quota in paced
        if quota.window is Window.PACED and quota.burst > least
    )


def command(
    selection: Selection,
    verb: Verb,
    *,
    identity: str,
    now_s: float,
    rates: tuple[str, ...] = (),
    reason: str | None = None,
    until_s: float | None = None,
    claimed_by: str | None = None,
) -> Command:
    """The control event."""
    return Command(
        id=identity,
        at=iso(now_s) or "",
        verb=verb,
        target=Target(host=selection.scope.host),
        reason=reason,
        until_s=until_s,
        claimed_by=claimed_by,
        quota=selection.scope.quota,
        rates=rates,
    )


def judge(
    pairs: Iterable[tuple[str, str]], rates: tuple[str, ...], evidence: Mapping[str, HostEvidence]
) -> tuple[Verdict, ...]:
    """How each quota stands: what its worst known process says. rates: those set; () for a clear."""
    return tuple(_judge(host, quota, rates, evidence.get(host, HostEvidence())) for host, quota in pairs)


def _judge(host: str, quota: str, rates: tuple[str, ...], evidence: HostEvidence) -> Verdict:
    found: list[tuple[Standing, str]] = []
    limits: dict[str, None] = {}
    override = False
    known = processes(evidence)
    for key, state in known.items():
        answers = evidence.answers.get(key, ())
        refused = "; ".join(dict.fromkeys(one.refused for one in answers if one.refused))
        standing, words = _process(evidence, len(answers), state, refused=refused)
        mine = [row for one in answers for row in one.quotas if row.quota == quota]
        if standing is Standing.PROVEN and rates and any(not _same(row.limits, rates) for row in mine):
            standing, words = Standing.UNPROVEN, f"its process says that {', '.join(mine[0].limits)} holds"
        limits.update(dict.fromkeys(rate for row in mine for rate in row.limits))
        override = override or any(row.override is not None for row in mine)
        found.append((standing, words or _unused(answers, quota)))
    if evidence.supervisor is not Supervisor.ANSWERS:
        # Nobody says how many processes the host has: those that have not answered may be there.
        standing, words = _process(evidence, 0, None, refused="")
        if evidence.answers:
            standing, words = Standing.UNPROVEN, "no supervisor says how many processes the host has"
        found.append((standing, words))
    elif not known:
        found.append((Standing.DOWN, "the host has no process now; the next one obeys when it starts"))
    standing, words = max(found, key=lambda each: _DOUBT.index(each[0]))
    return Verdict(host, quota, standing, words, tuple(limits), override, len(evidence.answers))


def _process(evidence: HostEvidence, answers: int, state: ProcessState | None, *, refused: str) -> tuple[Standing, str]:
    standing, words = judge_process(
        answers,
        1,
        refused=bool(refused),
        state=state,
        supervisor=evidence.supervisor,
        heard=evidence.heard,
        listed=evidence.listed,
    )
    return standing, words or refused


def _same(told: Iterable[str], wanted: Iterable[str]) -> bool:
    return _parsed(told) == _parsed(wanted)


def _parsed(rates: Iterable[str]) -> frozenset[Rate] | None:
    try:
        return frozenset(parse_rate(rate) for rate in rates)
    except ValueError:
        return None


def _unused(answers: Iterable[Answer], quota: str) -> str:
    answered = [one for one in answers if not one.refused]
    spent = any(row.quota == quota for one in answered for row in one.quotas)
    return "" if spent or not answered else "nothing that it runs spends it"
