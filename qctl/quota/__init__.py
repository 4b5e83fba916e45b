"""Quotas: what may be spent, and the record of what was. The heart of qctl.

Here live the limits of an upstream (`policy`), the arithmetic of windows (`window`, with `bucket` for paced ones and
`reset` for fixed ones) and of what others spend (`foreign`), the decisions to pay, wait or hold (`admission`) and the
numbers that people are shown (`account`), all pure; the durable record of a host (`ledger`, with what is said to it in
`exchange`; its sums in `books` and `desk`, what other limits, a reboot and a loss make of them in `changes`, what the
upstream's answers do in `answers`; its file in `directory`, `schema`, `words`, `liveness` and `locks`; what is done
when it is damaged in `repair`, and said in `faults`; what one out of use has left spent in `remains`); and one
process's share of it (`lease`: units in memory in `till` and `pool`, its thread in `renewal`, its consumers in
`standing`). From outside, use what is named in `__all__`.
Limits come from the inventory (the worker converts them), instants from the boot clock, units from the tasks; all goes
to STATE/HOST/ledger.sqlite and nowhere else. Nothing here knows a broker, a task or a wall clock.
"""

from __future__ import annotations

from qctl.quota.account import Account
from qctl.quota.admission import Cause, Hold, Standing
from qctl.quota.clock import Clock, boot_clock
from qctl.quota.directory import check_directory
from qctl.quota.lease import Leases
from qctl.quota.ledger import Ledger
from qctl.quota.locks import LOCK_HELD_TOO_LONG_S, Holding, lock_holders, watch_locks
from qctl.quota.policy import Limit, Policy, Window
from qctl.quota.pool import Grant, Priced
from qctl.quota.remains import remains
from qctl.quota.window import LimitReading, Reading, free_at, free_units

__all__ = [
    "LOCK_HELD_TOO_LONG_S",
    "Account",
    "Cause",
    "Clock",
    "Grant",
    "Hold",
    "Holding",
    "Leases",
    "Ledger",
    "Limit",
    "LimitReading",
    "Policy",
    "Priced",
    "Reading",
    "Standing",
    "Window",
    "boot_clock",
    "check_directory",
    "free_at",
    "free_units",
    "lock_holders",
    "remains",
    "watch_locks",
]
