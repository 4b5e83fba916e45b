"""What a worker process is told to do: the validated plan of its host, as it travels from the supervisor."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qctl.inventory.model import Host, Inventory, WorkerSettings
from qctl.quota import Limit, Policy, Window
from qctl.worker.former import Former

#: Bytes of a pickled plan; a host with thousands of consumers stays far below.
MAX_PLAN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a worker process needs; it reads no inventory, so an edit in progress cannot reach it.

    former: names that this machine had before and spent under.
    """

    inventory: Inventory
    host: Host
    ladder_s: tuple[float, ...]
    state_directory: Path
    drain_timeout_s: float
    log_format: str
    verbosity: int
    former: tuple[Former, ...] = ()

    @property
    def base(self) -> Path:
        """The inventory's folder, which relative paths in it refer to."""
        return self.inventory.base

    @property
    def settings(self) -> WorkerSettings:
        """What holds for every worker."""
        return self.inventory.worker


def policies(host: Host) -> tuple[Policy, ...]:
    """The host's quotas as the ledger knows them."""
    return tuple(
        Policy(
            quota.name,
            tuple(Limit(rate.units, rate.period_ns) for rate in quota.limits),
            Window(quota.window.value),
            quota.burst,
        )
        for quota in host.quotas.values()
    )


def operators(plan: Plan) -> frozenset[str] | None:
    """Who may command; None for whoever the broker lets publish commands."""
    return frozenset(plan.inventory.operators) or None


def write(plan: Plan, index: int) -> bytes:
    """The plan for the process `index`, framed for its standard input."""
    packed = pickle.dumps((plan, index))
    assert len(packed) <= MAX_PLAN_BYTES
    return len(packed).to_bytes(8, "big") + packed


def read(stream: BinaryIO) -> tuple[Plan, int]:
    """The plan that the supervisor wrote; it is our parent and of the same version, so a pickle is safe."""
    size = int.from_bytes(stream.read(8), "big")
    assert 0 < size <= MAX_PLAN_BYTES
    plan, index = pickle.loads(stream.read(size))  # noqa: S301
    assert isinstance(plan, Plan)
    assert isinstance(index, int)
    return plan, index
