"""Which limits hold for a host's quotas: those of the inventory, or what an operator has set in their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qctl.control.desired import Desired, Override
from qctl.quota import Leases, Limit, Policy, Window
from qctl.quota.policy import enforced
from qctl.units import Rate

log = logging.getLogger(__name__)

#: A ledger that has other limits is set right after so many looks at it in a row, half a second each, at first and at
#: most: whoever of the host is the last to hear of a change is seconds behind.
LOOKS = 6
MAX_LOOKS = 600


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
    Processes of an older inventory want something else: they are told to `leave` this to those of the new one. Should
    one of them have written last all the same, being slow or having been stopped, `has_lost` finds that.
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
        self._left = False
        self._lost: set[str] = set()
        self._again: set[str] = set()
        self._looks = self._looks_needed = 0
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
            others = {name for name, policy in wanted.items() if self._configured.get(name) != policy}
            if others:
                self._looks_needed = 0
            changed = [] if self._left else [wanted[name] for name in wanted if name in others | self._again]
            if changed and not hears:
                now = await asyncio.to_thread(self._leases.look)
                changed = [stricter(policy, (part.limit for part in now[policy.name].limits)) for policy in changed]
                wanted.update({policy.name: policy for policy in changed})
            if changed:
                await asyncio.to_thread(self._leases.configure, changed)
            self._again.clear()
            for policy in changed:
                self._tell(policy, overrides[policy.name])
            self._configured = wanted
            self.overrides = {name: override for name, override in overrides.items() if override is not None}

    def leave(self) -> None:
        """From now on write no limit: a process of a newer inventory does."""
        self._left = True

    def has_lost(self) -> bool:
        """Whether the ledger has had other limits than were written here, at one look after the other: then the next
        `apply` writes them again. Each time it takes more looks, lest two that disagree go on for ever."""
        readings = self._leases.readings()
        lost = {
            name
            for name, policy in self._configured.items()
            if (reading := readings.get(name)) is None
            or tuple(part.limit for part in reading.limits) != enforced(policy)
        }
        self._lost = lost & self._lost if self._looks else lost
        self._looks = self._looks + 1 if self._lost and not self._left else 0
        if self._looks < max(LOOKS, self._looks_needed):
            return False
        self._looks, self._looks_needed = 0, min(MAX_LOOKS, 2 * max(LOOKS, self._looks_needed))
        log.warning("%s: the ledger has other limits than are in force; set again", ", ".join(sorted(self._lost)))
        self._again = set(self._lost)
        return True

    def _tell(self, policy: Policy, override: Override | None) -> None:
        limits = ", ".join(rates(policy))
        if override is not None:
            log.info("quota %s: limit %s, set by %s", policy.name, limits, override.user)
        elif policy.name in self.overrides:
            log.info("quota %s: limit %s again, as in the inventory", policy.name, limits)
