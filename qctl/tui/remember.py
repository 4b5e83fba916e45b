"""What the console remembers from one run to the next: view, order, filter, wide columns, theme. A small JSON file.

Whatever is wrong with the file, the console starts: what cannot be read is as it is for who never chose.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qctl.tui.snapshot import View
from qctl.tui.views.listing import MAX_MATCH, Arrangement

#: A file that is longer is not ours.
MAX_FILE_BYTES = 64 * 1024
#: Characters of a column's id or a theme's name.
MAX_NAME = 40
VERSION = 1

#: The order that a list of queues has until another is chosen: the broker sorts it, and knows no other of need.
DEEPEST = Arrangement(sort="ready", descending=True)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was chosen. theme "": never chosen."""

    view: View = View.HOSTS
    wide: bool = False
    theme: str = ""
    arrangements: Mapping[View, Arrangement] = field(default_factory=dict)

    def arrangement(self, view: View) -> Arrangement:
        """How a view's list was arranged last."""
        return self.arrangements.get(view, DEEPEST if view in (View.QUEUES, View.DEAD) else Arrangement())


def path() -> Path:
    """`$XDG_STATE_HOME/qctl/console.json`, by default under `~/.local/state`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    state = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return state / "qctl" / "console.json"


def load(file: Path) -> Remembered:
    """What the file says, as far as it can be understood."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        found = json.loads(content) if len(content) <= MAX_FILE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return Remembered()
    if not isinstance(found, dict) or found.get("v") != VERSION:
        return Remembered()
    lists = found.get("views")
    arrangements = {
        view: read
        for view in View
        if (read := _arrangement(lists.get(view.value) if isinstance(lists, dict) else None))
    }
    return Remembered(
        view=next((view for view in View if view.value == found.get("view")), View.HOSTS),
        wide=found.get("wide") is True,
        theme=_text(found.get("theme"), MAX_NAME),
        arrangements=arrangements,
    )


def save(file: Path, remembered: Remembered) -> None:
    """Replace the file, whole or not at all; a folder that cannot be written is no reason to trouble anybody."""
    document = {
        "v": VERSION,
        "view": remembered.view.value,
        "wide": remembered.wide,
        "theme": remembered.theme,
        "views": {
            view.value: {
                "sort": one.sort,
                "descending": one.descending,
                "match": one.match,
                "invert": one.invert,
            }
            for view, one in remembered.arrangements.items()
        },
    }
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump(document, opened, indent=2)
        Path(name).replace(file)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            Path(name).unlink()


def _arrangement(found: Any) -> Arrangement | None:
    if not isinstance(found, dict):
        return None
    return Arrangement(
        sort=_text(found.get("sort"), MAX_NAME),
        descending=found.get("descending") is True,
        match=_text(found.get("match"), MAX_MATCH),
        invert=found.get("invert") is True,
    )


def _text(found: Any, most: int) -> str:
    # A lone surrogate could be read from JSON and not be written again.
    return found if isinstance(found, str) and len(found) <= most and found.isprintable() else ""
