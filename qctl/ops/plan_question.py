"""What a plan is asked: the fleet as it is, or with other limits, more hosts, something paused. Names checked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qctl.control.target import Subject, Target
from qctl.errors import UnknownName, UsageError
from qctl.inventory.hosts import expand
from qctl.inventory.model import Inventory
from qctl.inventory.nearest import did_you_mean
from qctl.ops import quotas, targets
from qctl.units import Rate, parse_rate

#: Hosts that are added to a fleet in thought.
MAX_ADDED = 10_000

Rates = tuple[Rate, ...]


@dataclass(frozen=True, slots=True)
class Added:
    """A host that is not there: it runs what `like` runs, with these limits in place of those of `like`."""

    name: str
    like: str
    limits: Mapping[str, Rates]


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be different. limits: by (host, quota); paused: whose subscriptions, from now on and without an end.

    shown: the options as they were given.
    """

    limits: Mapping[tuple[str, str], Rates] = field(default_factory=dict)
    added: tuple[Added, ...] = ()
    paused: tuple[Target, ...] = ()
    shown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def item(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "set": list(self.shown.get("set", ())),
            "add_host": list(self.shown.get("add_host", ())),
            "pause": list(self.shown.get("pause", ())),
            "like": {one.name: one.like for one in self.added},
        }

    def is_paused(self, subject: Subject) -> bool:
        """Whether this subscription is paused in thought."""
        return any(target.matches(subject) for target in self.paused)


def question(
    inventory: Inventory, *, sets: Sequence[str] = (), added: Sequence[str] = (), paused: Sequence[str] = ()
) -> Question:
    """What the options mean. sets: HOST/QUOTA=RATE; added: NAME/QUOTA=RATE; paused: targets as of `qctl pause`.

    Raises UsageError, or UnknownName with the nearest name.
    """
    limits: dict[tuple[str, str], Rates] = {}  # of two options that name the same quota the last holds
    for text in sets:
        named, rates = _split(text, "--set", "HOST/QUOTA=RATE")
        limits.update(dict.fromkeys(quotas.select(inventory, named).pairs, rates))
    selected = [_select(inventory, text) for text in paused]
    return Question(
        limits=limits,
        added=_added(inventory, added),
        paused=tuple(dict.fromkeys(target for one in selected for target in one.targets)),
        shown={"set": tuple(sets), "add_host": tuple(added), "pause": tuple(paused)},
    )


def _select(inventory: Inventory, text: str) -> targets.Selection:
    try:
        return targets.select(inventory, targets.Words(targets=(text,)))
    except UsageError as error:
        each = " ".join(f"--pause {one}" for one in text.split(",")) if "," in text else ""
        hint = f"Give the option once for each: {each}" if each else error.hint
        raise UsageError(f"--pause {text}: {error.message}", hint=hint) from None


def _split(text: str, option: str, form: str) -> tuple[str, Rates]:
    named, equals, rate = text.partition("=")
    if not equals:
        raise UsageError(f"{option} takes {form}, found {text!r}", hint=f"For example: {option} web-1/twitter=20000/h")
    try:
        return named, tuple(parse_rate(each) for each in quotas.rates_of(rate.split(",")))
    except UsageError as error:
        raise UsageError(f"{option} {text}: {error.message}", hint=error.hint) from None


def _added(inventory: Inventory, texts: Iterable[str]) -> tuple[Added, ...]:
    """The hosts, each like the first of the inventory that spends the quota named first."""
    found: dict[str, dict[str, Rates]] = {}
    for text in texts:
        named, rates = _split(text, "--add-host", "NAME/QUOTA=RATE")
        pattern, slash, quota = named.partition("/")
        if not slash or not pattern or not quota or "/" in quota:
            raise UsageError(f"--add-host takes NAME/QUOTA=RATE, found {text!r}")
        if quota not in inventory.quotas:
            near = did_you_mean(quota, inventory.quotas) or f"It has: {', '.join(inventory.quotas)}."
            raise UnknownName(f"{inventory.path} has no quota {quota!r}", hint=near)
        try:
            names = expand(pattern, most=MAX_ADDED)
        except ValueError as error:
            raise UsageError(f"--add-host {text}: {error}") from None
        for name in names:
            if name in inventory.hosts:
                raise UsageError(
                    f"{inventory.path} has a host {name!r} already",
                    hint=f"For another limit: --set {name}/{quota}=RATE",
                )
            found.setdefault(name, {})[quota] = rates
    if len(found) > MAX_ADDED:
        raise UsageError(f"--add-host adds at most {MAX_ADDED:,} hosts, found {len(found):,}")
    return tuple(Added(name, _like(inventory, next(iter(limits))), limits) for name, limits in found.items())


def _like(inventory: Inventory, quota: str) -> str:
    for host in inventory.hosts.values():
        if any(consumer.cost.get(quota) for consumer in host.consumers.values()):
            return host.name
    raise UsageError(f"no host of {inventory.path} spends quota {quota}, so none can be added that does")
