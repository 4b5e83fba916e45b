"""What is said of a command before it is given and after, in the same words in the shell and in the console. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from qctl.control.event import Verb
from qctl.control.verdict import EACH, Standing
from qctl.inventory.model import Inventory
from qctl.ops import pausing, quotas, targets
from qctl.ops.when import local
from qctl.units import format_duration

#: Characters of a reason.
MAX_REASON_CHARS = 500
_STANDINGS = {
    Standing.PROVEN: "proven",
    Standing.DOWN: "down (obeys when it starts)",
    Standing.REFUSED: "refused",
    Standing.UNPROVEN: "NOT proven",
}


def ending(until_s: float | None, duration_s: float | None = None) -> str:
    """When it ends, in the operator's zone; with a duration, which counts from the answer to a question, how long."""
    if duration_s is not None:
        return f" for {format_duration(duration_s)}"
    return "" if until_s is None else f" until {local(until_s)}"


def concerning(selection: targets.Selection) -> str:
    """`web-1, 2 consumers`."""
    number = len(selection.pairs)
    return f"{selection.shown}, {number} consumer{'s' if number > 1 else ''}"


def subscriptions(selection: targets.Selection) -> tuple[str, ...]:
    """The consumer tags that are concerned, `*` for the process where all of a host's are."""
    return tuple(one.tag(EACH if one.index is None else one.index) for one in selection.expected)


def limits(
    verb: Verb,
    selection: quotas.Selection,
    rates: Iterable[str],
    until_s: float | None,
    duration_s: float | None = None,
) -> str:
    """`set web-1/twitter to 100/h until ...`, `clear what was set for web-1/twitter`."""
    if verb is Verb.QUOTA_SET:
        return f"set {selection} to {', '.join(rates)}{ending(until_s, duration_s)}"
    return f"clear what was set for {selection}"


def listed(inventory: Inventory, selection: quotas.Selection) -> list[str]:
    """The quotas that are concerned, each with its limits by the inventory."""
    found = []
    for host, name in selection.pairs:
        by_inventory = ", ".join(str(rate) for rate in inventory.hosts[host].quotas[name].limits)
        found.append(f"{host}/{name}, {by_inventory} by the inventory")
    return found


def warnings(inventory: Inventory, selection: quotas.Selection, rates: Iterable[str]) -> tuple[str, ...]:
    """What a lower limit would stop altogether, and which bursts it would cut, a sentence each."""
    rates = tuple(rates)
    held = (f"{one}: it will be held" for one in quotas.too_dear(inventory, selection, rates))
    return (*held, *quotas.cut_bursts(inventory, selection, rates))


def proven(standings: Iterable[Standing]) -> str:
    """How much is proven: `2 proven, 1 NOT proven`."""
    counts = Counter(standings)
    return ", ".join(f"{counts[standing]} {word}" for standing, word in _STANDINGS.items() if counts[standing])


def paused(report: pausing.Report) -> str:
    """The last line of a pause or resume: what was given, by whom, and how much of it is proven."""
    wanted = report.order
    by = "kept on this host until the broker has it" if report.local else f"by {report.user}"
    said = proven(row.standing for row in report.rows)
    done = f"{wanted.verb} {wanted.selection.shown}{ending(wanted.until_s)}, {by}: {said}"
    latest = max((row.may_start_until_s for row in report.rows if row.may_start_until_s is not None), default=None)
    if latest is not None:
        at = datetime.fromtimestamp(latest, UTC).astimezone()
        done += f"; a process that is stopped or cut off starts nothing after {at:%H:%M:%S}"
    return done


def limited(report: quotas.Report, what: str) -> str:
    """The last line of a change of limits. what: as `limits` says it."""
    return f"{what}, by {report.user}: {proven(row.standing for row in report.verdicts)}"
