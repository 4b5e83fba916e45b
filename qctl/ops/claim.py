"""Who runs this program, as it says itself; who it is to the broker, the broker verifies."""

from __future__ import annotations

import getpass
import socket

MAX_CLAIM_CHARS = 200


def claim() -> str:
    """`user@machine`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        user = "?"
    return f"{user}@{socket.gethostname()}"[:MAX_CLAIM_CHARS]
