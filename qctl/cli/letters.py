"""Dead letters as rows, as documents and one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qctl.cli import render
from qctl.cli.messages import body_text, message_block
from qctl.cli.options import Output, Settings
from qctl.cli.render import Column

if TYPE_CHECKING:
    from qctl.ops.dead import Letters
    from qctl.ops.letters import DeadLetter

#: What is shown of a single one, in this order, and how it is called.
_BLOCK = (
    ("address", "id"),
    ("given_id", "id as given"),
    ("queue", "queue"),
    ("type", "type"),
    ("reason", "reason"),
    ("error", "error"),
    ("died_at", "died at"),
    ("died_on", "died on"),
    ("first_seen", "first seen"),
    ("attempt", "attempt"),
    ("deferrals", "deferrals"),
    ("crashes", "crashes"),
    ("size_bytes", "bytes"),
)


def rows(settings: Settings, found: Sequence[Letters]) -> None:
    """Print them as `-o` says."""
    items = [_item(letter) for one in found for letter in one.letters]
    columns = (
        Column("ID", lambda item: item["address"]),
        Column("QUEUE", lambda item: item["queue"], wide=len(found) == 1),
        Column("TYPE", lambda item: item["type"]),
        Column("REASON", lambda item: item["reason"]),
        Column("AGE", lambda item: item["age"], right=True),
        Column("ATTEMPT", lambda item: item["attempt"], right=True),
        Column("BYTES", lambda item: item["size_bytes"], right=True, wide=True),
        Column("ON", lambda item: item["died_on"], wide=True),
        Column("ERROR", lambda item: item["error"], free=True),
    )
    documents = [
        {key: value for key, value in item.items() if key not in ("address", "given_id", "age", "properties")}
        for item in items
    ]
    if settings.output in (Output.JSON, Output.JSONL):
        notes = [f"{one.queue}: {note}" for one in found for note in one.notes]
        waiting = {one.queue: one.waiting for one in found}
        document = {"v": 1, "waiting": waiting, "notes": notes, "items": documents}
        render.show(settings, items=documents, columns=(), name=_address, document=document)
    else:
        render.show(settings, items=items, columns=columns, name=_address)


def _address(item: Any) -> str:
    return str(item["address"])


def _item(letter: DeadLetter) -> dict[str, Any]:
    import time

    from qctl.ops.when import iso, span

    age_s = letter.age_s(time.time())
    return {
        "address": letter.address,
        "given_id": letter.id if letter.id != letter.address else None,
        "age": None if age_s is None else span(age_s),
        "queue": letter.queue,
        "id": letter.id or None,
        "key": letter.key,
        "type": letter.type or None,
        "reason": letter.reason or None,
        "error": letter.error or None,
        "died_at": iso(letter.died_at_s),
        "died_on": letter.died_on or None,
        "first_seen": iso(letter.first_seen_s),
        "attempt": letter.attempt,
        "deferrals": letter.deferrals,
        "crashes": letter.crashes,
        "size_bytes": letter.size_bytes,
        "body": body_text(letter.body),
        "body_is_cut": letter.size_bytes > len(letter.body),
        "properties": {},
        "headers": dict(letter.headers),
    }


def each(found: Sequence[Letters]) -> None:
    """Print all that each of them says."""
    for letter in (letter for one in found for letter in one.letters):
        message_block(_item(letter), _BLOCK)
