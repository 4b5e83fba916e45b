"""YAML text to a tree that knows the line and column of every key and value.

A loader of our own on top of PyYAML's event stream, for what its safe loader lacks: marks, duplicate keys refused, a
bound on what aliases expand to, one document, no tags. Scalars stay as they are written (`Plain` when unquoted): `on`,
`1:30`, `007` and `20000/h` mean something only to the key they stand at, so no YAML 1.1 type is ever guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from qctl.inventory.mistakes import Keys, Mistake, shown

#: Values a file may hold once its aliases are expanded; a file of 1 MiB without aliases holds fewer than this.
MAX_NODES = 600_000
#: Deepest nesting; the inventory needs eight.
MAX_DEPTH = 32

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# What YAML calls non-printable, as a parser would refuse it without a position.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff")

# What a parser finds wrong, by the words that begin or are in its own message, in ours. First match wins.
_SYNTAX = (
    ("mapping values are not allowed", "a ':' too many on this line; quote the text that holds it"),
    ("could not find expected ':'", "expected 'key: value'"),
    ("did not find expected key", "expected a key; look at the indentation and at quotes and brackets before here"),
    ("expected <block end>", "expected a key; look at the indentation and at quotes and brackets before here"),
    ("did not find expected '-'", "expected '- item' as in the lines above; look at the indentation"),
    ("did not find expected ',' or", "a bracket or brace is not closed, or a comma is missing"),
    ("expected ',' or", "a bracket or brace is not closed, or a comma is missing"),
    ("quoted scalar", "a quoted text is not closed or holds an unknown escape"),
    ("cannot start any token", "a text that begins with this character must be quoted"),
    ("block sequence entries", "a list cannot begin here; put '- item' on a line of its own"),
)


class Plain(str):
    """A scalar written without quotes."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Node:
    """A value and where it begins, line and column from 1. `size` counts the values in it, aliases expanded."""

    line: int
    column: int
    scalar: str | None = None
    entries: dict[str, Entry] | None = None
    items: list[Node] | None = None
    size: int = 1

    def plain_data(self) -> Any:
        """The tree as dicts, lists, texts and None."""
        if self.entries is not None:
            return {key: entry.value.plain_data() for key, entry in self.entries.items()}
        if self.items is not None:
            return [item.plain_data() for item in self.items]
        return self.scalar


@dataclass(slots=True, eq=False)
class Entry:
    """A key's position and its value."""

    line: int
    column: int
    value: Node


@dataclass(frozen=True, slots=True)
class Place:
    """A position; `keys` is as much of the path asked for as the file has."""

    line: int
    column: int
    keys: Keys


@dataclass(slots=True)
class Document:
    """The result of `parse`: `root` is None when the file holds nothing or cannot be read to its end.

    `unread`: keys of values that could not be read and are nothing now; what is said of them is not worth reporting.
    """

    root: Node | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    unread: set[Keys] = field(default_factory=set)


def locate(root: Node, keys: Keys, *, at_key: bool = False) -> Place:
    """Where the value at `keys` begins, or its key. Keys that the file does not have are passed over.

    Passing over is what makes a short form (`mail: 500/d` for `{limit: 500/d}`) report its own place.
    """
    node, line, column, matched = root, root.line, root.column, []
    for key in keys:
        if isinstance(key, str) and node.entries is not None and key in node.entries:
            entry = node.entries[key]
            node = entry.value
            line, column = (entry.line, entry.column) if at_key else (node.line, node.column)
        elif isinstance(key, int) and node.items is not None and key < len(node.items):
            node = node.items[key]
            line, column = node.line, node.column
        else:
            continue
        matched.append(key)
    return Place(line, column, tuple(matched))


def parse(text: str) -> Document:
    """Read one document. Mistakes of YAML itself are collected in the result; nothing is raised."""
    document = Document()
    stray = _UNPRINTABLE.search(text)
    if stray:
        before = text[: stray.start()]
        line, column = before.count("\n") + 1, stray.start() - (before.rfind("\n") + 1) + 1
        document.mistakes.append(
            Mistake(line, column, (), f"the character U+{ord(stray[0]):04X} cannot stand in a YAML file")
        )
        return document
    builder = _Builder(document)
    try:
        document.root = builder.build(yaml.parse(text, Loader=_LOADER))
    except _Stop:
        document.root = None
    except yaml.MarkedYAMLError as error:
        # What is left open is shown where it opens, not at the end of the file where it is missed.
        left_open = "flow" in str(error.context) or "quoted scalar" in str(error.context)
        mark = (error.context_mark if left_open else None) or error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.mistakes.append(Mistake(line, column, (), f"not valid YAML: {_in_our_words(error, text)}"))
        document.root = None
    except yaml.YAMLError:
        document.mistakes.append(Mistake(1, 1, (), "not valid YAML"))
        document.root = None
    return document


def _in_our_words(error: yaml.MarkedYAMLError, text: str) -> str:
    problem, mark = str(error.problem), error.problem_mark
    lines = text.split("\n")
    if mark and mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
        return "a tab cannot indent; use spaces"
    return next((ours for theirs, ours in _SYNTAX if theirs in problem), "this cannot be read; is a quote missing?")


class _Stop(Exception):
    """Reading cannot go on; the mistake is already noted."""


class _Builder:
    """Folds the event stream of one document into nodes."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._anchors: dict[str, Node | None] = {}  # None while the anchored value is still open

    def build(self, events: Iterator[Any]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._stop(event, (), "a second document begins here; an inventory is one document")
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, ())
        return root

    def _node(self, event: Any, events: Iterator[Any], keys: Keys) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, keys)
        if event.tag is not None and not (event.tag == "!" and isinstance(event, yaml.ScalarEvent)):
            self._note(event, keys, "tags (!...) are not allowed here")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if len(keys) > MAX_DEPTH:
            self._stop(event, (), f"nested deeper than {MAX_DEPTH} levels")
        node = Node(event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            node.scalar = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node.items = self._items(events, keys)
            node.size += sum(item.size for item in node.items)
        else:
            node.entries = self._entries(events, keys)
            node.size += sum(entry.value.size for entry in node.entries.values())
        if node.size > MAX_NODES:
            self._stop(event, keys, f"aliases expand to more than {MAX_NODES:,} values")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, keys: Keys) -> Node:
        if event.anchor not in self._anchors:
            self._note(event, keys, "this alias (*name) has no anchor (&name) before it")
        elif (target := self._anchors[event.anchor]) is None:
            self._note(event, keys, "this alias (*name) stands inside its own anchor (&name)")
        else:
            return target
        self._document.unread.add(keys)
        return Node(event.start_mark.line + 1, event.start_mark.column + 1)

    def _items(self, events: Iterator[Any], keys: Keys) -> list[Node]:
        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, events, (*keys, len(items))))
        return items

    def _entries(self, events: Iterator[Any], keys: Keys) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, events, keys)
            value = self._node(next(events), events, (*keys, key) if key is not None else keys)
            mark = event.start_mark
            if key is None:
                continue
            if key == "<<" and isinstance(event, yaml.ScalarEvent) and not event.style:
                merged.extend(self._merged(event, value, keys))
            elif key in entries:
                text = f"the key {shown(key)} stands here twice, first in line {entries[key].line}"
                self._note(event, (*keys, key), text)
            else:
                entries[key] = Entry(mark.line + 1, mark.column + 1, value)
        for node in merged:
            for key, entry in (node.entries or {}).items():
                entries.setdefault(key, entry)
        return entries

    def _key(self, event: Any, events: Iterator[Any], keys: Keys) -> str | None:
        node = self._node(event, events, keys)
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)  # `null`, `on` and `1` are names like any other
        if node.scalar is not None:
            return str(node.scalar)
        self._note(event, keys, "a key must be a text")
        return None

    def _merged(self, event: Any, value: Node, keys: Keys) -> list[Node]:
        nodes = value.items if value.items is not None else [value]
        if any(node.entries is None for node in nodes):
            self._note(event, keys, "expected << to merge a mapping or a list of mappings")
            return []
        return nodes

    def _note(self, event: Any, keys: Keys, text: str) -> None:
        mark = event.start_mark
        self._document.mistakes.append(Mistake(mark.line + 1, mark.column + 1, keys, text))

    def _stop(self, event: Any, keys: Keys, text: str) -> None:
        self._note(event, keys, text)
        raise _Stop


def _scalar(event: Any) -> str | None:
    text = str(event.value)
    if event.style:
        return text
    return None if text in _NULLS else Plain(text)
