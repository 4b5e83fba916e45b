"""Colours: each meaning can be read and told from the others, in every theme and with few colours too."""

from __future__ import annotations

from itertools import combinations

import pytest
from rich.color import Color, ColorSystem

from qctl.tui.bars import state_mark
from qctl.tui.cells import Cell
from qctl.tui.theme import (
    DEFAULT,
    FEW_COLOURS,
    PALETTES,
    THEMES,
    VARIABLES,
    Palette,
    Tone,
    content,
    default_for,
    palette_of,
    style,
)

STATES = ("ok", "warn", "bad", "held", "paused")
every_palette = pytest.mark.parametrize("palette", PALETTES, ids=lambda palette: palette.name)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [part / 255 for part in _rgb(colour)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


@every_palette
def test_whatever_says_something_can_be_read_on_the_background_and_under_the_cursor(palette: Palette) -> None:
    for name in ("text", "strong", "dim", "accent", "bar", *STATES):
        assert contrast(getattr(palette, name), palette.background) >= 4.5, name
        assert contrast(getattr(palette, name), palette.cursor) >= 3.0, name


@every_palette
def test_no_two_meanings_look_alike(palette: Palette) -> None:
    for one, other in combinations(("text", "dim", "accent", *STATES), 2):
        apart = sum(
            (a - b) ** 2 for a, b in zip(_rgb(getattr(palette, one)), _rgb(getattr(palette, other)), strict=True)
        )
        assert apart**0.5 >= 60, (one, other)


def test_on_a_terminal_of_sixteen_colours_the_states_stay_apart() -> None:
    palette = palette_of(FEW_COLOURS)
    found = {name: Color.parse(getattr(palette, name)).downgrade(ColorSystem.STANDARD).number for name in STATES}

    assert len(set(found.values())) == len(STATES), found
    assert default_for("standard") == FEW_COLOURS
    assert default_for("truecolor") == default_for("256") == default_for(None) == DEFAULT


def test_every_tone_and_the_style_of_every_state_is_drawn_in_every_theme() -> None:
    from qctl.ops.status import State

    for theme in THEMES:
        for tone in (*Tone, *(state_mark(state)[1] for state in State)):
            assert tone in set(Tone)
            assert style(theme.name, tone).color is not None
    assert style(DEFAULT, Tone.OK) != style(DEFAULT, Tone.BAD) != style(DEFAULT, Tone.TEXT)
    assert style("a theme of somebody else", Tone.OK) == style(DEFAULT, Tone.OK)


def test_content_outside_tables_is_safe_and_no_markup() -> None:
    cell: Cell = (("[b]bold[/] [@click=app.quit]x", "ok"), ("\x1b[2J\u202e", ""), ("~3", Tone.ESTIMATE))
    found = content(cell)

    assert found.plain == r"[b]bold[/] [@click=app.quit]x\x1b[2J\u202e~3"
    assert [str(span.style) for span in found.spans] == ["$q-ok", "italic $q-dim"]
    assert {"q-ok", "q-dim"} <= set(VARIABLES)
