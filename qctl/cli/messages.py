"""A message of a queue as text: what it says of itself, its headers and its body, every character visible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qctl.cli import render

_INDENT = "  "


def body_text(body: bytes) -> str:
    """A body as text; bytes that are not UTF-8 are shown escaped."""
    return body.decode("utf-8", "backslashreplace")


def message_block(item: Mapping[str, Any], fields: Iterable[tuple[str, str]]) -> None:
    """Print one message over several lines: the fields (key, label) that are known, headers, body."""
    shown = [(label, item[key]) for key, label in fields if item.get(key) not in (None, "")]
    shown += [(name, value) for name, value in item["properties"].items()]
    width = max((len(label) for label, _ in shown), default=0)
    for label, value in shown:
        render.line(f"{label:<{width}}  {render.plain(value)}")
    for name, value in item["headers"].items():
        render.line(f"header {render.plain(name)}: {render.plain(value)}")
    cut = f" (the first of {item['size_bytes']} bytes)" if item["body_is_cut"] else ""
    render.line(f"body{cut}:")
    for line in item["body"].split("\n"):
        render.line(f"{_INDENT}{line}")
    render.line()
