"""`qctl inventory`: check the file and show what each host will run and spend; print its JSON Schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qctl.cli import render
from qctl.cli.options import Settings, pass_settings
from qctl.cli.render import Column, Item
from qctl.units import format_duration

if TYPE_CHECKING:
    from qctl.inventory.model import Consumer, Handler, Host, Inventory, Quota


@click.group()
def inventory() -> None:
    """Check the inventory; print its JSON Schema."""


@inventory.command()
@pass_settings
def check(settings: Settings) -> None:
    """Check the inventory and print what each host will run and spend.

    Every mistake is reported with its line. No secret is resolved and nothing is contacted.
    """
    checked = settings.load()
    items = [row(host, consumer) for host in checked.hosts.values() for consumer in host.consumers.values()]
    render.show(settings, items=items, columns=COLUMNS, name=_address, document=document(checked, items))
    render.say(settings, summary(checked))


@inventory.command()
def schema() -> None:
    """Print the JSON Schema of the inventory, for editors."""
    from qctl.inventory.schema import json_schema

    render.write_json(json_schema())


def _address(item: Item) -> str:
    return f"{item['host']}/{item['consumer']}"


def _spends(item: Item) -> str:
    return ", ".join(f"{s['quota']} {s['cost_units']} of {'+'.join(s['limits'])}" for s in item["spends"]) or "nothing"


COLUMNS = (
    Column("HOST", lambda item: item["host"]),
    Column("CONSUMER", lambda item: item["consumer"]),
    Column("QUEUE", lambda item: item["queue"]),
    Column("HANDLER", lambda item: item["handler"]),
    Column("TASKS", lambda item: item["concurrency"], right=True),
    Column("TIMEOUT", lambda item: format_duration(item["timeout_s"]), right=True),
    Column("SPENDS PER TASK", _spends),
    Column("GROUP", lambda item: item["group"], wide=True),
    Column("ATTEMPTS", lambda item: item["attempts"], right=True, wide=True),
    Column("DELAYS", lambda item: " ".join(map(format_duration, item["delays_s"])), wide=True),
    Column("DIRECTED", lambda item: item["directed"], wide=True),
    Column("PERSISTENT", lambda item: item["persistent"], wide=True),
    Column("DECLARE", lambda item: item["declare"], wide=True),
)


def row(host: Host, consumer: Consumer) -> dict[str, Any]:
    """What one consumer does on one host, JSON-able."""
    return {
        "host": host.name,
        "group": host.group,
        "consumer": consumer.name,
        "queue": consumer.queue,
        "handler": _kind(consumer.handler),
        "concurrency": consumer.concurrency,
        "timeout_s": consumer.timeout_s,
        "attempts": consumer.retry.attempts,
        "delays_s": list(consumer.retry.delays_s),
        "directed": consumer.directed,
        "persistent": consumer.persistent,
        "declare": consumer.declare,
        "spends": [_spend(host.quotas[name], units) for name, units in consumer.cost.items()],
    }


def document(checked: Inventory, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole check as a JSON document."""
    return {
        "v": 1,
        "inventory": str(checked.path),
        "environment": checked.environment,
        "broker": "local" if checked.broker.local else [str(endpoint) for endpoint in checked.broker.amqp],
        "operators": list(checked.operators),
        "hosts": list(checked.hosts),
        "items": items,
    }


def summary(checked: Inventory) -> str:
    """One line that says it is good, and how much of it there is."""
    counts = (
        _count(len(checked.hosts), "host"),
        _count(len(checked.consumers), "consumer"),
        _count(len(checked.quotas), "quota"),
    )
    return f"{checked.path}: no mistakes; {', '.join(counts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _spend(quota: Quota, units: int) -> dict[str, Any]:
    return {
        "quota": quota.name,
        "cost_units": units,
        "limits": [str(limit) for limit in quota.limits],
        "window": str(quota.window),
    }


def _kind(handler: Handler) -> str:
    return type(handler).__name__.removesuffix("Handler").lower()
