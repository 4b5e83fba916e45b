"""The line in which a filter is typed."""

from __future__ import annotations

from textual.events import Key
from textual.widgets import Input

from qctl.tui.views.listing import MAX_MATCH, Arrangement


class Filter(Input):
    """What a filter is typed into; nothing of it is known to be told in time but its value."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 (as every widget calls it)
        super().__init__(
            id=id,
            placeholder="text, or !text for rows without it",
            compact=True,
            max_length=MAX_MATCH + 1,
            select_on_focus=False,  # that is told later, when something may have been typed
        )

    def put(self, arranged: Arrangement) -> None:
        """The present filter, which is replaced by what is typed now."""
        with self.prevent(Input.Changed):
            self.value = f"{'!' if arranged.invert else ''}{arranged.match}"
        self.select_all()

    async def typed(self, event: Key) -> bool:
        """Whether a key is a character; it is in the text then."""
        if event.is_printable:
            await self._on_key(event)
        return event.is_printable
