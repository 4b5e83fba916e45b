"""Messages that were looked at: dead letters, to be marked and replayed or dropped, and the first of other queues."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from qctl.broker.message import text
from qctl.errors import QctlError
from qctl.ops import dead, peek
from qctl.ops.letters import DeadLetter
from qctl.ops.when import span
from qctl.tui.acts import triage
from qctl.tui.acts.plan import Draft, Selection, Where
from qctl.tui.acts.running import unexpected
from qctl.tui.cells import Cell, one
from qctl.tui.screens.said import Said, in_words, sentence, sentences
from qctl.tui.snapshot import View
from qctl.tui.text import fit, safe
from qctl.tui.theme import Tone, content
from qctl.tui.views.listing import filter_words

#: Dead letters, and messages of other queues, that are looked at.
MAX_LETTERS = dead.DEFAULT_LIMIT
MAX_MESSAGES = 20
#: Cells of a body, and headers, that are shown.
MAX_BODY = 2_000
MAX_HEADERS = 16
#: Characters of a filter.
MAX_FILTER = 200


class Letters(ModalScreen[Draft | None]):
    """What lies in a queue; gives the draft of what is to be done with it, or None."""

    DEFAULT_CSS = """
    Letters { align: center middle; }
    Letters > Vertical {
        width: 100%; max-width: 160; height: 90%;
        background: $surface; padding: 1 2; border-left: thick $q-held;
    }
    Letters #what { text-style: bold; color: $q-strong; margin-bottom: 1; }
    Letters #notes { color: $q-warn; }
    Letters #failure { color: $q-bad; }
    Letters OptionList, Letters OptionList:focus { height: 1fr; border: none; background: $surface; padding: 0; }
    Letters VerticalScroll { height: 1fr; margin-top: 1; }
    Letters Input, Letters Input:focus { border: none; height: 1; padding: 0 1; background: $panel; }
    Letters #keys { color: $q-dim; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Close", show=False),
        Binding("q", "cancel", "Close", show=False),
        Binding("j", "down", "Down", show=False),
        Binding("k", "up", "Up", show=False),
        Binding("space", "mark", "Mark", show=False),
        Binding("a", "mark_all", "Mark all", show=False),
        Binding("slash", "filter", "Filter", show=False),
        Binding("R", "act('replay')", "Replay", show=False),
        Binding("D", "act('drop')", "Drop", show=False),
    ]

    def __init__(self, where: Where, about: Selection, *, read_only: bool) -> None:
        super().__init__()
        self._where = where
        self._queue = about.keys[0]
        self._is_dead = about.view is View.DEAD
        self._may_act = self._is_dead and not read_only
        self._found: tuple[DeadLetter | peek.Message, ...] = ()
        #: what is listed, by its place in what was found; and what is marked, listed or not
        self._listed: list[int] = []
        self._marked: set[int] = set()
        self._there = 0
        self._now_s = time.time()

    def compose(self) -> ComposeResult:
        """The list, and what the letter under the cursor says."""
        with Vertical():
            yield Said(f"{self._queue}: looking …", id="what")
            yield Said(id="notes")
            yield Said(id="failure")
            yield OptionList()
            yield Input(placeholder="reason, type, id or error; a leading ! turns it round", max_length=MAX_FILTER)
            with VerticalScroll(can_focus=False):
                yield Said(id="body")
            acts = "/ filters, Space marks, a marks all, R replays, D drops; " if self._may_act else "/ filters; "
            yield Said(f"{acts}Esc closes", id="keys")

    def on_mount(self) -> None:
        """Look, while the console goes on."""
        self.query_one(Input).display = False
        self._looking = asyncio.create_task(self._look())

    def on_unmount(self) -> None:
        """Nobody is interested any more: what was in hand is given back."""
        self._looking.cancel()

    async def _look(self) -> None:
        inventory, timeout_s = self._where.inventory, self._where.connect_timeout_s
        try:
            if self._is_dead:
                letters = await dead.letters(inventory, self._queue, limit=MAX_LETTERS, connect_timeout_s=timeout_s)
                found: tuple[DeadLetter | peek.Message, ...] = letters.letters
                there, notes = letters.waiting, letters.notes
            else:
                looked = await peek.look(inventory, self._queue, MAX_MESSAGES, connect_timeout_s=timeout_s)
                found, there, notes = looked.messages, looked.waiting, looked.notes
        except QctlError as error:
            self._fail(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the console goes on
            self._fail(unexpected(f"looking at {self._queue}", error))
            return
        self._found, self._now_s = found, time.time()
        self._there = there
        self.query_one("#notes", Said).say(sentences(notes))
        self._list("")
        self.query_one(OptionList).focus()

    def _fail(self, error: QctlError) -> None:
        self.query_one("#what", Said).say(self._queue)
        self.query_one("#failure", Said).say(in_words(error))

    def _list(self, match: str) -> None:
        """List what fits, the cursor on the first."""
        self._listed = [number for number, one in enumerate(self._found) if fits(one, match)]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(self._line(number)) for number in self._listed)
        options.highlighted = 0 if self._listed else None
        self._say_how_many()
        if not self._listed:
            self.query_one("#body", Said).say("")

    def _say_how_many(self) -> None:
        listed = "" if len(self._listed) == len(self._found) else f", {len(self._listed)} listed"
        marked = f", {len(self._marked)} marked" if self._marked else ""
        self.query_one("#what", Said).say(f"{self._queue}: {len(self._found)} of {self._there}{listed}{marked}")

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """What it says."""
        if event.option_index < len(self._listed):  # else it is of a list that was filtered meanwhile
            self.query_one("#body", Said).say(_body(self._found[self._listed[event.option_index]]))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only what fits is listed, at each letter."""
        self._list(event.value.strip())

    def on_input_submitted(self) -> None:
        """Back to the list; the filter stays."""
        self.query_one(OptionList).focus()

    def action_filter(self) -> None:
        """Type what is to be listed."""
        field = self.query_one(Input)
        field.display = True
        self.set_focus(field)  # at once: what is typed next is for the field

    def action_down(self) -> None:
        """The next one."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The one before."""
        self.query_one(OptionList).action_cursor_up()

    def action_cancel(self) -> None:
        """Take the filter away, else nothing is done."""
        field = self.query_one(Input)
        if not field.display:
            self.dismiss(None)
            return
        field.value = ""
        field.display = False
        self.query_one(OptionList).focus()

    def action_mark(self) -> None:
        """This one, or no longer."""
        options = self.query_one(OptionList)
        place = options.highlighted
        if place is None or not self._may_act:
            return
        self._marked ^= {self._listed[place]}
        options.replace_option_prompt_at_index(place, self._line(self._listed[place]))
        options.action_cursor_down()
        self._say_how_many()

    def action_mark_all(self) -> None:
        """All that are listed, or none of them."""
        if not self._may_act:
            return
        listed = set(self._listed)
        self._marked = self._marked - listed if listed <= self._marked else self._marked | listed
        options = self.query_one(OptionList)
        for place, number in enumerate(self._listed):
            options.replace_option_prompt_at_index(place, self._line(number))
        self._say_how_many()

    def action_act(self, verb: str) -> None:
        """Ask about the marked ones, or the one under the cursor."""
        place = self.query_one(OptionList).highlighted
        if not self._may_act or (place is None and not self._marked):
            return
        chosen = [self._found[each] for each in sorted(self._marked or {self._listed[place or 0]})]
        letters = [each for each in chosen if isinstance(each, DeadLetter)]
        self.dismiss(triage.draft_of(self._where, triage.Act(verb), self._queue, letters, time.time()))

    def _line(self, number: int) -> Content:
        found = self._found[number]
        mark: Cell = one("▪ " if number in self._marked else "  ", Tone.ACCENT)
        if isinstance(found, DeadLetter):
            age_s = found.age_s(self._now_s)
            age = None if age_s is None else span(age_s)
            cells: tuple[Cell, ...] = (
                fit(one(age), 7, right=True),
                fit(one(found.reason or None, Tone.WARN), 18),
                fit(one(found.type or None), 16),
                fit(one(found.address), 38),
                one(found.error),
            )
        else:
            cells = (
                fit(one(found.place), 7, right=True),
                fit(one(found.type or None), 16),
                fit(one(found.id or None), 38),
                fit(one(found.size_bytes), 10, right=True),
            )
        return content(tuple(part for cell in (mark, *cells) for part in (*cell, ("  ", ""))))


def fits(found: DeadLetter | peek.Message, match: str) -> bool:
    """Whether it says `match` anywhere that a list shows; `!match`: whether it does not."""
    text_of, invert = filter_words(match)
    said = [found.id, found.type]
    if isinstance(found, DeadLetter):
        said += [found.address, found.reason, found.error]
    return any(text_of.casefold() in each.casefold() for each in said) is not invert


def _body(found: DeadLetter | peek.Message) -> Content:
    """What a message says, each header in a line, and its body's first part, every character of it seen."""
    lines: list[Any] = []
    if isinstance(found, DeadLetter):
        lines += [
            f"reason   {found.reason or '-'}",
            f"error    {found.error or '-'}",
            f"died on  {found.died_on or '-'}",
        ]
    lines += [f"{name}: {value}" for name, value in list(found.headers.items())[:MAX_HEADERS]]
    said = [sentence(line) for line in lines]
    return Content("\n").join([*said, Content(safe(text(found.body), width=MAX_BODY))])
