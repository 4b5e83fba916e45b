"""Folding events to what should be: pure, in the order of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from qctl.control.event import Event


@dataclass(frozen=True, slots=True)
class Reign:
    """The ledger that a host spends from.

    since: the id of the hello that first named it; it tells this reign from an earlier one of the same ledger.
    before: the ledger that the host spent from until then, None when it never said hello before.
    """

    ledger: str
    since: str
    before: str | None


@dataclass(frozen=True, slots=True)
class Desired:
    """What the log says, up to some event. reigns: by host."""

    reigns: Mapping[str, Reign] = field(default_factory=dict)


def fold(desired: Desired, events: Iterable[Event]) -> Desired:
    """What should be after `events`. Copies what is known of all hosts, so it is to be given many at once."""
    reigns = dict(desired.reigns)
    for event in events:
        reign = reigns.get(event.host)
        if reign is None or reign.ledger != event.ledger:
            reigns[event.host] = Reign(event.ledger, event.nonce, reign.ledger if reign else None)
    return replace(desired, reigns=reigns)
