"""qctl: RabbitMQ workers with per-host API quotas, and the commands to operate them.

The names a task author imports, resolved when they are first used, so that `import qctl` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qctl.ops.client import Client
    from qctl.worker.exceptions import RateLimited, Reject, Retry
    from qctl.worker.task import Task

__version__ = "0.1.0"
__all__ = ["Client", "RateLimited", "Reject", "Retry", "Task"]

_HOMES = {
    "Client": "qctl.ops.client",
    "Task": "qctl.worker.task",
    "RateLimited": "qctl.worker.exceptions",
    "Retry": "qctl.worker.exceptions",
    "Reject": "qctl.worker.exceptions",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qctl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
