"""Whatever stands in the file, reading it ends in an inventory or in mistakes: never in anything else."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qctl.inventory.load import read_text
from tests.unit.inventory.test_sample import SAMPLE

PATH = Path("inventory.yaml")
LINES = SAMPLE.count("\n") + 1

WORDS = """
version environment broker operators worker quotas consumers groups hosts limit window burst urls headers queue handler
quota concurrency timeout retry directed persistent declare group amqp password python http exec base_url timeline
twitter mail large web-1 env value attempts delays tls
"""
KEYS = st.sampled_from(sorted(WORDS.split()))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    KEYS,
    st.sampled_from(["5s", "3/m", "1", "local"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


def check(text: str) -> None:
    """Read it: an inventory without mistakes, or mistakes at places that the file has."""
    inventory, mistakes = read_text(text, PATH)
    assert mistakes or inventory is not None
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 2
    for mistake in mistakes:
        assert 1 <= mistake.line <= lines
        assert mistake.column >= 1
        assert "Input should" not in mistake.text
        assert mistake.render(PATH).isprintable()
    assert mistakes == sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!|>'\"%@`#? \n\t~<1/h", max_size=60))
def test_any_text_that_looks_like_yaml(text: str) -> None:
    check(text)


@settings(max_examples=400, deadline=None)
@given(TREES)
def test_any_tree(tree: object) -> None:
    check(yaml.safe_dump(tree, allow_unicode=True))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_sample_with_a_value_exchanged(data: st.DataObject) -> None:
    # given the sample as a tree, and a place in it
    tree = yaml.safe_load(SAMPLE)
    parent = tree
    key = data.draw(st.sampled_from(sorted(parent)))
    while isinstance(parent[key], (dict, list)) and parent[key] and data.draw(st.booleans()):
        parent = parent[key]
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))

    # when something else stands there
    parent[key] = data.draw(TREES)

    # then it is read, or its mistakes are told
    check(yaml.safe_dump(tree))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 12), st.text(max_size=6))
def test_the_sample_with_a_piece_exchanged(start: int, length: int, piece: str) -> None:
    check(SAMPLE[:start] + piece + SAMPLE[start + length :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, LINES - 1), max_size=4), st.lists(st.integers(0, LINES - 1), max_size=4))
def test_the_sample_with_lines_gone_and_doubled(gone: list[int], doubled: list[int]) -> None:
    lines = SAMPLE.split("\n")
    check("\n".join(line for n, line in enumerate(lines) if n not in gone for _ in range(2 if n in doubled else 1)))
