"""What was commanded, by the control log; how far it was read is kept in a file, so that a long log costs once."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from qctl.broker.session import Connection
from qctl.control import checkpoint
from qctl.control.desired import Desired
from qctl.control.history import read_to_end
from qctl.inventory.model import Inventory

log = logging.getLogger(__name__)


async def commanded(inventory: Inventory, connection: Connection) -> Desired:
    """What the control log says now. Raises ControlLogError, ChannelLost, and as topology.ensure does."""
    operators = frozenset(inventory.operators) or None
    directory = _directory(str(connection.address))
    before = checkpoint.load(directory, operators) if directory else None
    known = await read_to_end(connection, operators=operators, known=before)
    if directory and known.offset >= 0 and (before is None or before.offset != known.offset):
        checkpoint.save(directory, known, operators)
    return known.desired


def _directory(address: str) -> Path | None:
    """Where this user keeps what was read of a broker's log; None where that cannot be, or is not theirs alone."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        home = base if base.is_absolute() else Path.home() / ".cache"
        directory = home / "qctl" / hashlib.sha256(address.encode()).hexdigest()[:16]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        # Who else may write there could tell us of pauses that nobody gave.
        return directory if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None
    except (OSError, RuntimeError) as error:
        log.debug("what is read of the control log is not kept: %s", error)
        return None
