"""What a pause claims of starts, as the judge of the fault matrix takes it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.faults.history import ALL_PROCESSES
from tests.faults.operators import Commanded, claims
from tests.faults.orders import iso

PIDS = [100, 101]
END_NS = time.monotonic_ns()


def row(index: int | str, proof: str, may_start_until: str | None = None) -> dict[str, Any]:
    tag = f"qctl/web-1/plain/{index}"
    return {"host": "web-1", "consumer": "plain", "tag": tag, "proof": proof, "may_start_until": may_start_until}


def said(code: int, *rows: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """Process, subject, and whether it is said of the command's end or of later."""
    found = claims(Commanded(code, {"items": rows}, "", 0, END_NS), PIDS)
    assert all(one.event == "paused" for one in found)
    return [(one.pid, f"{one.host}/{one.task}", one.at_ns > END_NS) for one in found]


def test_given_all_proven_then_it_is_said_of_every_process_now_and_later() -> None:
    assert said(0, row(0, "proven"), row(1, "down")) == [(ALL_PROCESSES, "web-1/plain", False)] * 2


@pytest.mark.parametrize(
    ("one", "claim"),
    [
        (row(1, "proven"), [(101, "web-1/plain", False)]),
        (row(1, "unproven", iso(time.time() + 60)), [(101, "web-1/plain", True)]),
        (row(1, "unproven"), []),
        (row(1, "refused"), []),
        (row("*", "unproven", iso(time.time() + 60)), [(ALL_PROCESSES, "web-1/plain", True)]),
    ],
)
def test_given_a_part_that_is_not_proven_then_each_process_has_its_own_claim(
    one: dict[str, Any], claim: list[tuple[int, str, bool]]
) -> None:
    assert said(3, one) == claim
