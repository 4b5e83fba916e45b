"""A renamed host: what this machine spent under a name that the inventory no longer has."""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qctl.quota import remains
from qctl.worker.hostlock import is_run

log = logging.getLogger(__name__)

#: Folders of STATE that are looked at.
MAX_FOLDERS = 1_000


@dataclass(frozen=True, slots=True)
class Former:
    """A name that this machine spent under. evidence: which spending that was, to count it once."""

    host: str
    evidence: str


def former_hosts(state: Path, host: str, inventory_hosts: Container[str]) -> tuple[Former, ...]:
    """Hosts that the inventory no longer has, whose ledger here still counts units as spent.

    One that cannot be read may have spent anything. A name whose supervisor lives is not a former one.
    """
    found = []
    folders = (path for path in sorted(state.iterdir()) if path.name != host and path.name not in inventory_hosts)
    for folder in islice((path for path in folders if path.is_dir()), MAX_FOLDERS):
        left = remains(folder)
        if not left:
            continue
        if is_run(folder):
            log.warning("host %s runs on this machine and is not in the inventory: is it %s?", folder.name, host)
        else:
            found.append(Former(folder.name, f"former {left} {folder.name}"))
    return tuple(found)
