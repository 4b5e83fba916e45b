"""What the judging API is told: plain values that travel as JSON on its command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from tests.judge.rule import Kind, Rule
from tests.judge.said import Style


class Spends(StrEnum):
    """When somebody else spends of the same allowance."""

    NEVER = "never"
    STEADY = "steady"  # at random instants, so many a period in the mean
    BITE = "bite"  # all at one random instant of each period
    BEFORE = "before"  # all before anybody else: as a fixed window begins, and once before the first call of others


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody else: `units` a period, as far as the limit lets him."""

    spends: Spends = Spends.NEVER
    units: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """One API.

    latency_ms: from, to; uniformly random for each call, part of it (random too) before the call is counted and the
    rest after. skew_s, drift_ppm: how far its clock is off, and how much faster it runs. floor: whole seconds are
    rounded down. date_phase_ms: its Date is made anew each second, so long after that began, and is up to a second old,
    as that of many servers; None: it is of the instant. enforces: False only counts, and never refuses.
    """

    rule: Rule
    log: str = ""
    latency_ms: tuple[int, int] = (0, 500)
    skew_s: float = 0.0
    drift_ppm: int = 0
    style: Style = Style.EPOCH
    floor: bool = False
    date_phase_ms: int | None = None
    retry_after: bool = True
    enforces: bool = True
    foreign: Foreign = field(default_factory=Foreign)
    seed: int = 1

    def to_json(self) -> str:
        """As it goes onto the command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Config:
        """Raises ValueError, KeyError or TypeError when it is not of that form."""
        raw = json.loads(text)
        rule, foreign = raw.pop("rule"), raw.pop("foreign")
        return Config(
            rule=Rule(Kind(rule.pop("kind")), **rule),
            foreign=Foreign(Spends(foreign["spends"]), foreign["units"]),
            style=Style(raw.pop("style")),
            latency_ms=tuple(raw.pop("latency_ms")),
            **raw,
        )
