"""What showed that others have spent is counted once, whenever it comes."""

from __future__ import annotations

from pathlib import Path

from qctl.quota import Ledger, Limit, Policy
from qctl.quota.exchange import Exchange, Want
from tests.unit.quota.model import FakeClock, S

API = Policy("api", (Limit(100, 10 * S),))


def test_given_a_replaced_ledger_then_evidence_that_comes_windows_later_counts(tmp_path: Path) -> None:
    # Given a ledger that was made in place of a damaged one, and whose window has passed
    clock = FakeClock()
    Ledger.open(tmp_path / "web-1", clock=clock.clock()).close()
    (tmp_path / "web-1" / "ledger.sqlite").write_bytes(b"garbage")
    ledger = Ledger.open(tmp_path / "web-1", clock=clock.clock())
    ledger.configure([API])
    ledger.join()
    clock.pass_ns(30 * S)

    # When it is shown that another ledger was spent from meanwhile
    counted = [ledger.count_as_spent("a hello") for _ in range(2)]

    # Then that counts, once
    assert counted == [True, False]
    asked = Exchange(wants=(Want("timeline", {"api": 1}, claim=False),))
    ledger.exchange(Exchange())
    assert ledger.exchange(asked).granted == (False,)
    clock.pass_ns(21 * S)
    assert ledger.exchange(asked).granted == (True,)
    ledger.close()
