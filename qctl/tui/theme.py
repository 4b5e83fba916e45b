"""What things look like: one colour for each meaning, in three themes of ours.

A view names what a text means (`Tone`); only here is it known which colour that is. Each meaning has a word or a shape
besides, so nothing is lost without colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from rich.style import Style
from textual.content import Content
from textual.theme import Theme

from qctl.tui.cells import Cell
from qctl.tui.text import safe


class Tone(StrEnum):
    """What a piece of text means; no two meanings share a colour."""

    TEXT = ""
    STRONG = "strong"
    #: Words of a second rank, and what is not known.
    DIM = "dim"
    #: The empty part of a bar, rulers.
    FAINT = "faint"
    #: Where the operator is: cursor, marks, the column that sorts, keys.
    ACCENT = "accent"
    #: At work.
    OK = "ok"
    #: Needs somebody soon.
    WARN = "warn"
    #: Broken.
    BAD = "bad"
    #: Waits, and goes on by itself.
    HELD = "held"
    #: An operator's doing.
    PAUSED = "paused"
    #: An estimate, no count.
    ESTIMATE = "estimate"
    #: The filled part of a bar, a sparkline.
    BAR = "bar"
    #: Finishes what runs and takes nothing new.
    DRAINING = "draining"
    DOWN = "down"
    UNKNOWN = "unknown"
    #: Titles of columns.
    HEAD = "head"
    #: The name of what is on screen.
    TITLE = "title"
    #: A key to press.
    KEY = "key"
    #: Impossible to overlook: production.
    LOUD = "loud"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a theme, as `#rrggbb`."""

    name: str
    dark: bool
    background: str
    surface: str
    panel: str
    cursor: str
    text: str
    strong: str
    dim: str
    faint: str
    accent: str
    ok: str
    warn: str
    bad: str
    held: str
    paused: str
    bar: str


PALETTES = (
    Palette(
        name="qctl-dark",
        dark=True,
        background="#11151b",
        surface="#171c24",
        panel="#1e2530",
        cursor="#26364a",
        text="#c6ccd6",
        strong="#eef1f5",
        dim="#929bb0",
        faint="#465064",
        accent="#4fd6be",
        ok="#98c379",
        warn="#e5b04f",
        bad="#f07178",
        held="#6cb2f5",
        paused="#c792ea",
        bar="#7f97b2",
    ),
    Palette(
        name="qctl-light",
        dark=False,
        background="#fafaf7",
        surface="#f1f1ec",
        panel="#e7e7e0",
        cursor="#d5e3f3",
        text="#2b303a",
        strong="#0b0e13",
        dim="#5c6370",
        faint="#b9bcb6",
        accent="#00746a",
        ok="#2f7d1f",
        warn="#a15c00",
        bad="#bb1f2b",
        held="#0b62b3",
        paused="#7d2fb5",
        bar="#52728f",
    ),
    Palette(
        name="qctl-contrast",
        dark=True,
        background="#000000",
        surface="#000000",
        panel="#101010",
        cursor="#001f66",
        text="#dcdcdc",
        strong="#ffffff",
        dim="#b4b4b4",
        faint="#6a6a6a",
        accent="#00ffff",
        ok="#4be64b",
        warn="#e6b800",
        bad="#ff5050",
        held="#4d80ff",
        paused="#ff80ff",
        bar="#a8b4c0",
    ),
)
#: The theme of who never chose.
DEFAULT = PALETTES[0].name
#: On a terminal of 16 colours its meanings stay apart.
FEW_COLOURS = PALETTES[2].name
_BY_NAME = {palette.name: palette for palette in PALETTES}


#: The colour of a tone, bold, italic.
_LOOKS: dict[str, tuple[str, bool, bool]] = {
    Tone.STRONG: ("strong", True, False),
    Tone.DIM: ("dim", False, False),
    Tone.FAINT: ("faint", False, False),
    Tone.ACCENT: ("accent", False, False),
    Tone.OK: ("ok", False, False),
    Tone.WARN: ("warn", False, False),
    Tone.BAD: ("bad", False, False),
    Tone.DOWN: ("bad", False, False),
    Tone.HELD: ("held", False, False),
    Tone.PAUSED: ("paused", False, False),
    Tone.DRAINING: ("dim", False, False),
    Tone.UNKNOWN: ("dim", False, False),
    Tone.ESTIMATE: ("dim", False, True),
    Tone.BAR: ("bar", False, False),
    Tone.HEAD: ("dim", False, False),
    Tone.TITLE: ("strong", True, False),
    Tone.KEY: ("accent", False, False),
}
_COLOURS = ("strong", "dim", "faint", "accent", "ok", "warn", "bad", "held", "paused", "bar", "cursor")


def _variables(palette: Palette) -> dict[str, str]:
    own = {f"q-{colour}": getattr(palette, colour) for colour in _COLOURS}
    track = {f"scrollbar-background{when}": palette.background for when in ("", "-hover", "-active")}
    thumb = {"scrollbar": palette.faint, "scrollbar-hover": palette.dim, "scrollbar-active": palette.accent}
    return {**own, **track, **thumb, "scrollbar-corner-color": palette.background}


def _theme(palette: Palette) -> Theme:
    return Theme(
        name=palette.name,
        primary=palette.held,
        secondary=palette.bar,
        accent=palette.accent,
        success=palette.ok,
        warning=palette.warn,
        error=palette.bad,
        foreground=palette.text,
        background=palette.background,
        surface=palette.surface,
        panel=palette.panel,
        dark=palette.dark,
        variables=_variables(palette),
    )


#: To be registered in the application.
THEMES = tuple(_theme(palette) for palette in PALETTES)
#: What `$q-...` is before a theme is chosen; for `App.get_theme_variable_defaults`.
VARIABLES = _variables(PALETTES[0])


def default_for(colours: str | None) -> str:
    """The theme of who never chose, by what the terminal can (rich's `color_system`): few colours want strong ones."""
    return FEW_COLOURS if colours == "standard" else DEFAULT


def palette_of(name: str) -> Palette:
    """The palette of a theme; the default one's for a theme that is not ours."""
    return _BY_NAME.get(name, PALETTES[0])


@lru_cache(256)
def style(name: str, tone: str) -> Style:
    """How a theme draws a tone; an unknown tone is drawn as plain text."""
    palette = palette_of(name)
    if tone == Tone.LOUD:
        return Style(color=palette.background, bgcolor=palette.bad, bold=True)
    colour, bold, italic = _LOOKS.get(tone, ("text", False, False))
    return Style(color=getattr(palette, colour), bold=bold or None, italic=italic or None)


def content(cell: Cell) -> Content:
    """Parts as Textual shows them outside a table: made safe, never read as markup, in the colours of the theme."""
    return Content.assemble(*((safe(text), _CONTENT.get(tone, "")) for text, tone in cell))


#: The same in Textual's words.
_CONTENT: dict[str, str] = {
    tone: " ".join([*["bold"] * bold, *["italic"] * italic, f"$q-{colour}"])
    for tone, (colour, bold, italic) in _LOOKS.items()
} | {Tone.LOUD: "bold $background on $q-bad"}
