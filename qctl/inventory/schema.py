"""The inventory's JSON Schema, for editors; derived from the form."""

from __future__ import annotations

from typing import Any

from qctl.inventory import form
from qctl.inventory.leaves import NAME

_NULL = {"type": "null"}
_NAMES = {"pattern": f"^{NAME.pattern}$"}
_HOST_NAMES = {"pattern": r"^[A-Za-z0-9\[][A-Za-z0-9._\[\]-]*$"}


def json_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of version 1. What it cannot say (references, costs) `inventory check` says."""
    schema = form.InventoryForm.model_json_schema()
    definitions = schema["$defs"]
    _without_noise(schema)
    for section in ("consumers", "quotas", "groups"):
        schema["properties"][section]["propertyNames"] = _NAMES
    schema["properties"]["hosts"]["propertyNames"] = _HOST_NAMES
    limit = _or_single(definitions["QuotaForm"], "limit")
    _or_single(definitions["BrokerForm"], "amqp")
    shorthands = {"QuotaForm": limit, "BrokerForm": [{"const": "local"}]}
    for name, definition in definitions.items():
        definitions[name] = {"anyOf": [definition, *shorthands.get(name, []), _NULL]}
    _with_nulls(schema)
    for name in list(definitions):
        definitions[name.removesuffix("Form")] = definitions.pop(name)
    _rename(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qctl inventory, version 1",
        **schema,
    }


def _or_single(definition: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Let `key` take one item where it takes a list; the two forms it has then."""
    many = {**definition["properties"][key], "minItems": 1}
    definition["properties"][key] = {"anyOf": [many["items"], many]}
    return [many["items"], many]


def _walk(node: Any) -> list[dict[str, Any]]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    below = [found for child in children for found in _walk(child)]
    return [node, *below] if isinstance(node, dict) else below


def _without_noise(schema: dict[str, Any]) -> None:
    for node in _walk(schema):
        if isinstance(node.get("title"), str):
            del node["title"]
        if "default" in node and node["default"] is None:
            del node["default"]


def _with_nulls(schema: dict[str, Any]) -> None:
    """Where a mapping may stand, nothing may: it is the empty one."""
    for node in _walk(schema):
        if node.get("type") == "object" and "additionalProperties" in node and "properties" not in node:
            node["type"] = ["object", "null"]


def _rename(schema: dict[str, Any]) -> None:
    for node in _walk(schema):
        if isinstance(node.get("$ref"), str):
            node["$ref"] = node["$ref"].removesuffix("Form")
