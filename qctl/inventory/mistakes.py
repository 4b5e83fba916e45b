"""A mistake in the inventory: where it is, and how it is said without giving a secret away."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Mistakes reported for one file; a file with more is another kind of file.
MAX_MISTAKES = 1_000
#: Longest value or key repeated in a message.
MAX_SHOWN = 48

Key = str | int
Keys = tuple[Key, ...]

_WORD = re.compile(r"[\w.\-\[\]]{1,80}", re.ASCII)
# A value that could be a URL (whose user part is a credential) is never repeated.
_URL_LIKE = re.compile(r"://|@")


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake at `line` and `column` (from 1); `keys` is the path to it in the file."""

    line: int
    column: int
    keys: Keys
    text: str

    def render(self, file: Path) -> str:
        """`FILE:LINE:COLUMN: path: what was expected`."""
        place = f"{file}:{self.line}:{self.column}: "
        return place + (f"{dotted(self.keys)}: {self.text}" if self.keys else self.text)


def in_order(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """By position, each once."""
    unique = dict.fromkeys(mistakes)
    return sorted(unique, key=lambda mistake: (mistake.line, mistake.column))


def dotted(keys: Keys) -> str:
    """`consumers.timeline.retry.delays[1]`; a key that may hold a credential shows as `...`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + word(key)
    return text


def word(name: str) -> str:
    """A name in a sentence: as it is when it looks like one, else `shown`."""
    return name if _WORD.fullmatch(name) else shown(name)


def shown(text: str) -> str:
    """`text` quoted, or `'...'` when it is long or may hold a credential."""
    if len(text) > MAX_SHOWN or _URL_LIKE.search(text):
        return "'...'"
    return repr(str(text))


def found(value: object) -> str:
    """What stands in the file, for `expected X, found Y`; never a long text and never a URL."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value == "":
        return "an empty text"
    text = str(value)
    return shown(text) if shown(text) != "'...'" else "a text"
