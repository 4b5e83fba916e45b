"""Random histories in simulated time, judged by an independent model: see `history`.

Here a few hundred, in seconds; all ten thousand are row F19 of the fault matrix.
"""

from __future__ import annotations

import logging
import os

import pytest

from tests.unit.quota.history import play, simulation

#: QCTL_TEST_THOROUGH=20 plays twenty times as many.
HISTORIES = 200 * int(os.environ.get("QCTL_TEST_THOROUGH", "1"))


def test_whatever_happens_the_ledger_is_never_over_never_forgets_and_wastes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Every damaged ledger is told of loudly; here there are hundreds.
    caplog.set_level(logging.CRITICAL + 1)
    with simulation():
        audits = sum(play(seed).audits for seed in range(HISTORIES))

    assert audits >= HISTORIES, "hardly anything was compared"
