"""Actions and themes by their names, for Textual's palette."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from qctl.tui import theme
from qctl.tui.actions import Action, key_text

if TYPE_CHECKING:
    from qctl.tui.app import Console


class Actions(Provider):
    """What can be done in the present view."""

    async def discover(self) -> Hits:
        """All of it, while nothing is typed."""
        for name, help_, do in self._offers():
            yield DiscoveryHit(name, do, help=help_)

    async def search(self, query: str) -> Hits:
        """What is like the text."""
        matcher = self.matcher(query)
        for name, help_, do in self._offers():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), do, text=name, help=help_)

    def _offers(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        app = cast("Console", self.app)
        for action in app.actions:
            if offered(action) and action.works_in(app.main.view):
                yield f"{action.label}  {key_text(action.keys[0])}", action.help, partial(app.main.do, action)
        for each in theme.THEMES:
            yield f"Theme {each.name.removeprefix('qctl-')}", "how all this looks", partial(app.choose_theme, each.name)


def offered(action: Action) -> bool:
    """Whether an action is one that is looked for by its name: not a step with the cursor."""
    steps = ("up", "down", "page_up", "page_down", "top", "bottom", "left", "right", "palette", "theme", "back")
    return action.id not in steps
