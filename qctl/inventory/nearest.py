"""The nearest known name to one that is unknown, for hints."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

#: Names compared for one hint; the comparison is slow and a hint is not worth more.
MAX_COMPARED = 1_000
#: Longest name compared, for the same reason.
MAX_LENGTH = 128


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The member of `known` that looks most like `name`, or None when none is near."""
    from difflib import get_close_matches

    if len(name) > MAX_LENGTH:
        return None
    reach = max(2, len(name) // 2)
    candidates = list(islice((each for each in known if abs(len(each) - len(name)) <= reach), MAX_COMPARED))
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    found = get_close_matches(name, candidates, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean web-1?`, or "" when nothing is near."""
    found = nearest(name, known)
    return f"Did you mean {found}?" if found else ""
