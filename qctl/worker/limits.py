"""Which limits hold for a host's quotas: those of the inventory, or what an operator has set in their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qctl.control.desired import Desired, Override
from qctl.quota import Leases, Limit, Policy, Window
from qctl.units import Rate

log = logging.getLogger(__name__)


def in_force(policy: Policy, override: Override | None) -> Policy:
    """A quota of the inventory, with other limits while an override says so."""
    if override is None:
        return policy
    return replace(policy, limits=tuple(Limit(units, period_ns) for units, period_ns in override.limits))


def stricter(policy: Policy, limits: Iterable[Limit]) -> Policy:
    """A quota with these limits beside its own, of each period the lower one: it admits no more than either.

    A bucket among them follows from the others, and is none of them.
    """
    tightest: dict[int, int] = {}
    for limit in (*policy.limits, *(it for it in limits if it.window is not Window.PACED)):
        tightest[limit.period_ns] = min(limit.units, tightest.get(limit.period_ns, limit.units))
    return replace(policy, limits=tuple(Limit(units, period_ns) for period_ns, units in tightest.items()))


def rates(policy: Policy) -> tuple[str, ...]:
    """A quota's limits as people write them."""
    return tuple(str(Rate(limit.units, limit.period_ns)) for limit in policy.limits)


class Limits:
    """Of one process, kept in the ledger that it shares with the others of its host. Use from the loop's thread.

    Every process of the host says the same in the same order, each in its own time: for some milliseconds one may undo
    what another has done, and at last all have said what the log says last. So only what changes here is written.
    """

    def __init__(self, leases: Leases, host: str, policies: Iterable[Policy]) -> None:
        """policies: of the inventory. Those that the ledger does not know yet are entered; the others stay as they are
        until it is known what operators have set, lest a start undo it. Raises LedgerError."""
        self._leases = leases
        self._host = host
        self._own = {policy.name: policy for policy in policies}
        self._known = leases.readings().keys()
        self._configured: dict[str, Policy] = {}
        self._writing = asyncio.Lock()
        self.overrides: Mapping[str, Override] = {}
        leases.configure([policy for name, policy in self._own.items() if name not in self._known])

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The quotas with the limits that hold, as far as this process knows."""
        return tuple(self._configured.get(name, policy) for name, policy in self._own.items())

    async def apply(self, desired: Desired, now_s: float, *, hears: bool = True) -> None:
        """Have exactly these limits hold, for leases that are out as well.

        now_s: wall clock. hears False: nobody tells this process what is commanded at present, others of the host may
        know better, so no limit is raised. Raises LedgerError.
        """
        async with self._writing:
            overrides = {name: desired.override_of(self._host, name, now_s) for name in self._own}
            wanted = {name: in_force(policy, overrides[name]) for name, policy in self._own.items()}
            changed = [policy for name, policy in wanted.items() if self._configured.get(name) != policy]
            if changed and not hears:
                now = await asyncio.to_thread(self._leases.look)
                changed = [stricter(policy, (part.limit for part in now[policy.name].limits)) for policy in changed]
                wanted.update({policy.name: policy for policy in changed})
            if changed:
                await asyncio.to_thread(self._leases.configure, changed)
            for policy in changed:
                self._tell(policy, overrides[policy.name])
            self._configured = wanted
            self.overrides = {name: override for name, override in overrides.items() if override is not None}

    def _tell(self, policy: Policy, override: Override | None) -> None:
        limits = ", ".join(rates(policy))
        if override is not None:
            log.info("quota %s: limit %s, set by %s", policy.name, limits, override.user)
        elif policy.name in self.overrides:
            log.info("quota %s: limit %s again, as in the inventory", policy.name, limits)
