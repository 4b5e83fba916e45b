"""The inventory as values: frozen, validated, merged. What the rest of qctl reads.

Free of pydantic and YAML, so that a worker process can unpickle its plan without importing either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from qctl.errors import UnknownName
from qctl.inventory.nearest import did_you_mean
from qctl.units import Rate

#: The delays that every installation has, in seconds: 1s 2s 5s 10s 30s 1m 5m 15m 30m 1h 6h 1d.
FIXED_LADDER_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0)

#: Names listed in a hint when none of them is near.
_LISTED_NAMES = 8


class Window(StrEnum):
    """How a limit's window moves: sliding, fixed to the upstream's, or paced."""

    SLIDING = "sliding"
    FIXED = "fixed"
    PACED = "paced"


class HeaderStyle(StrEnum):
    """How an API reports what is left of its limit."""

    AUTO = "auto"
    X_RATE_LIMIT = "x-rate-limit"
    RATELIMIT = "ratelimit"
    GITHUB = "github"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Quota:
    """An upstream limit. Every one of `limits` must admit; `burst` counts for paced windows only."""

    name: str
    limits: tuple[Rate, ...]
    window: Window = Window.SLIDING
    burst: int = 1
    urls: tuple[str, ...] = ()
    headers: HeaderStyle = HeaderStyle.AUTO

    @property
    def most_units(self) -> int:
        """Units that it can ever pay at once."""
        least_units = min(limit.units for limit in self.limits)
        return min(least_units, self.burst) if self.window is Window.PACED else least_units


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """Where a secret comes from. `reference` is a variable, a path, an argv, or (development only) the value itself."""

    kind: Literal["env", "file", "command", "value"]
    reference: str | tuple[str, ...]

    def __repr__(self) -> str:
        shown = repr(self.reference) if self.kind in ("env", "file") else "'...'"
        return f"Secret(kind={self.kind!r}, reference={shown})"


@dataclass(frozen=True, slots=True)
class PythonHandler:
    """A function `package.module:function`, or one for each message type; exactly one of the two is given."""

    function: str | None = None
    by_type: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpHandler:
    """An API under `base_url`; `headers` are sent with every call, `allow_headers` are those a payload may set."""

    base_url: str
    # A literal header may be a credential all the same: it stays out of every repr.
    headers: Mapping[str, Secret | str] = field(default_factory=dict, repr=False)
    allow_headers: tuple[str, ...] = ()
    max_response_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class ExecHandler:
    """A program, run without a shell; the payload is its standard input."""

    argv: tuple[str, ...] = field(repr=False)


Handler = PythonHandler | HttpHandler | ExecHandler


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` counts all runs, the first included."""

    attempts: int = 5
    delays_s: tuple[float, ...] = (5.0, 30.0, 300.0)

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after run number `attempt` (from 1) failed; the last delay repeats."""
        if attempt < 1:
            raise ValueError(f"runs are counted from 1, found {attempt}")
        return self.delays_s[min(attempt, len(self.delays_s)) - 1]


@dataclass(frozen=True, slots=True)
class Consumer:
    """A queue and what is done with its tasks. `cost`: quota name -> units expected for one task."""

    name: str
    queue: str
    handler: Handler
    cost: Mapping[str, int]
    concurrency: int = 8
    timeout_s: float = 30.0
    retry: RetryPolicy = RetryPolicy()
    directed: bool = False
    persistent: bool = True
    declare: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One AMQP address of the broker."""

    host: str
    port: int
    tls: bool
    vhost: str

    def __str__(self) -> str:
        from urllib.parse import quote

        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.vhost == "/" else quote(self.vhost, safe="")
        return f"amqp{'s' if self.tls else ''}://{host}:{self.port}/{vhost}"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS, resolved against the inventory's folder; None means the system's own."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Broker:
    """Where RabbitMQ is. `local`: the private node of `qctl broker up`, `amqp` is then empty."""

    local: bool
    amqp: tuple[Endpoint, ...] = ()
    management: str | None = None
    username: Secret | str | None = None
    password: Secret | None = None
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What holds for every worker. `python_path` is resolved against the inventory's folder."""

    hold_after_s: float = 1.0
    max_body_bytes: int = 1 << 20
    python_path: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A set of hosts that share overrides; the overrides are merged into the hosts already."""

    name: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """A server, everything merged: the consumers it runs and the quotas that hold on it (all of the inventory's)."""

    name: str
    group: str | None
    quotas: Mapping[str, Quota]
    consumers: Mapping[str, Consumer]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The whole file. `quotas` and `consumers` are the top-level ones, before any override.

    `operators` is empty when whoever the broker lets publish may command.
    """

    path: Path
    environment: Literal["development", "production"]
    broker: Broker
    operators: tuple[str, ...]
    worker: WorkerSettings
    quotas: Mapping[str, Quota]
    consumers: Mapping[str, Consumer]
    groups: Mapping[str, Group]
    hosts: Mapping[str, Host]

    @property
    def base(self) -> Path:
        """The inventory's folder: what relative paths in the file refer to."""
        return self.path.parent

    @property
    def ladder_s(self) -> tuple[float, ...]:
        """Every delay a retry can have, ascending, seconds: the fixed ladder and all that consumers name."""
        seen: dict[int, Consumer] = {id(consumer): consumer for consumer in self.consumers.values()}
        for consumers in {id(host.consumers): host.consumers for host in self.hosts.values()}.values():
            seen.update((id(consumer), consumer) for consumer in consumers.values())
        return tuple(sorted({*FIXED_LADDER_S, *(d for consumer in seen.values() for d in consumer.retry.delays_s)}))

    def host(self, name: str) -> Host:
        """The host of that name. Raises UnknownName, the hint naming the nearest."""
        found = self.hosts.get(name)
        if found is None:
            raise self._unknown("host", name, self.hosts)
        return found

    def consumer(self, name: str) -> Consumer:
        """The top-level consumer of that name. Raises UnknownName, the hint naming the nearest."""
        found = self.consumers.get(name)
        if found is None:
            raise self._unknown("consumer", name, self.consumers)
        return found

    def _unknown(self, kind: str, name: str, known: Iterable[str]) -> UnknownName:
        names = list(known)
        more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
        listed = f"It has: {', '.join(names[:_LISTED_NAMES])}{more}."
        return UnknownName(f"{self.path} has no {kind} {name!r}", hint=did_you_mean(name, names) or listed)
