"""What a host's supervisor answers to who asks it through the host's queue: who it is, and how its processes are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from qctl.broker.message import decode_json, short, text

VERSION = 1
#: Bytes of an answer that are looked at; that of a host with 256 processes is a tenth of it.
MAX_ANSWER_BYTES = 256 << 10
#: Processes that an answer may name.
MAX_PROCESSES = 1_000


def host_queue(host: str) -> str:
    """The queue that stands for a host's name, held by its supervisor: questions go there."""
    return f"qctl.host.{host}"


class ProcessState(StrEnum):
    """What a supervisor knows of one of its processes.

    STARTING and DISCONNECTED: it consumes nothing now, and will say CONNECTED before the hello that precedes its next
    consume; so it will have read whatever the control log held when it was in one of these. ENDED: it was buried.
    """

    STARTING = "starting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """One process as its supervisor sees it. since: wall clock, as text: from when on it is so.

    user: the broker's, under which the process answers; "" where it is that of the supervisor's own answer.
    """

    index: int
    pid: int
    state: ProcessState
    since: str
    user: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it travels."""
        return {**asdict(self), "state": str(self.state)}


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """The supervisor of a host. run: made anew for each of its starts; heartbeat_s: of its connections."""

    host: str
    machine: str
    pid: int
    since: str
    run: str
    heartbeat_s: int
    processes: tuple[ProcessLook, ...]

    def body(self) -> bytes:
        """As it travels."""
        fields = {**asdict(self), "processes": [one.to_json() for one in self.processes]}
        return json.dumps({"v": VERSION, **fields}).encode()


def parse_answer(body: bytes) -> HostAnswer | None:
    """The answer of a supervisor; None when it is none, or one that says nothing of processes."""
    try:
        if len(body) > MAX_ANSWER_BYTES:
            return None
        fields = decode_json(body)
        if type(fields["v"]) is not int or fields["v"] != VERSION:
            return None
        host, machine, since, run = (short(text(fields[name])) for name in ("host", "machine", "since", "run"))
        processes = parse_looks(fields["processes"])
        return HostAnswer(host, machine, _count(fields["pid"]), since, run, _count(fields["heartbeat_s"]), processes)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def parse_looks(found: object) -> tuple[ProcessLook, ...]:
    """The processes of an answer. Raises ValueError, KeyError, TypeError for anything else."""
    if not isinstance(found, list) or len(found) > MAX_PROCESSES:
        raise ValueError("not a list of processes")
    return tuple(_look(one) for one in found)


def _look(found: Mapping[str, Any]) -> ProcessLook:
    state = ProcessState(found["state"])
    # Supervisors of an earlier version name no user.
    since, user = short(text(found["since"])), text(found.get("user"))
    return ProcessLook(_count(found["index"]), _count(found["pid"]), state, since, user)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a count")
    return value
