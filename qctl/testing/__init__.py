"""Run a handler in a unit test: no broker, no ledger, no network.

`run_task` takes one task through the worker's own code, from its headers to its ending, with a quota that is only
counted (`purse`) and an API that answers what the test says (`api`). Nothing here is a second model of how a task ends.
"""

from __future__ import annotations

from qctl.testing.api import Call, FakeApi, UnexpectedCall
from qctl.testing.run import Enqueued, Result, run_task

__all__ = ["Call", "Enqueued", "FakeApi", "Result", "UnexpectedCall", "run_task"]
