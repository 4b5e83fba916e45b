"""The JSON Schema accepts what the check accepts, and refuses what it can refuse."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from qctl.inventory import form
from qctl.inventory.schema import json_schema
from tests.unit.inventory.test_sample import MINIMAL, SAMPLE

SCHEMA = json_schema()
KINDS: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Just the keywords that our schema has; an unknown one fails the test."""
    checks: dict[str, Any] = {
        "$ref": lambda ref: conforms(value, SCHEMA["$defs"][ref.removeprefix("#/$defs/")]),
        "anyOf": lambda options: any(conforms(value, option) for option in options),
        "type": lambda kinds: any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        "const": lambda const: value == const,
        "enum": lambda members: value in members,
        "pattern": lambda pattern: not isinstance(value, str) or bool(re.search(pattern, value)),
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minimum": lambda least: not isinstance(value, int) or value >= least,
        "maximum": lambda most: not isinstance(value, int) or value <= most,
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "minProperties": lambda least: not isinstance(value, dict) or len(value) >= least,
        "maxProperties": lambda most: not isinstance(value, dict) or len(value) <= most,
        "items": lambda item: not isinstance(value, list) or all(conforms(each, item) for each in value),
        "required": lambda keys: not isinstance(value, dict) or set(keys) <= set(value),
        "propertyNames": lambda names: not isinstance(value, dict) or all(conforms(key, names) for key in value),
        "properties": lambda parts: (
            not isinstance(value, dict)
            or all(conforms(each, parts[key]) for key, each in value.items() if key in parts)
        ),
        "additionalProperties": lambda rest: (
            not isinstance(value, dict)
            or all(
                rest if isinstance(rest, bool) else conforms(each, rest)
                for key, each in value.items()
                if key not in schema.get("properties", {})
            )
        ),
    }
    said = {"$schema", "$defs", "title", "description", "default", "format", "examples"}
    return all(checks[keyword](argument) for keyword, argument in schema.items() if keyword not in said)


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])


@pytest.mark.parametrize("text", [SAMPLE, MINIMAL], ids=["sample", "minimal"])
def test_what_is_valid_conforms(text: str) -> None:
    assert conforms(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1", "version: 2"),
        ("environment: development", "environment: prod"),
        ("environment: development", "environmnt: development"),
        ("username: guest", "username: {env: A, file: B}"),
        ("mail: 500/d", "mail: 500"),
        ("mail: 500/d", "mail: []"),
        ("mail: 500/d", "mail: {window: fixed}"),
        ("window: sliding", "window: rolling"),
        ("concurrency: 8", "concurrency: 0"),
        ("timeout: 30s", "timeout: 30"),
        ("queue: timeline", "queue: time line"),
        ("{twitter: 1}", "{twitter: 1.5}"),
        ("concurrency: 64", "queue: other"),
        ("  timeline:\n", "  time line:\n"),
        ("  web-1:", "  web 1:"),
    ],
)
def test_what_is_wrong_does_not(old: str, new: str) -> None:
    assert old in SAMPLE
    assert not conforms(yaml.safe_load(SAMPLE.replace(old, new)), SCHEMA)


def test_it_has_every_key_of_the_form() -> None:
    # the definitions are those of the forms, with nothing and the short forms added
    for name, definition in SCHEMA["$defs"].items():
        assert list(definition["anyOf"][0]["properties"]) == list(getattr(form, f"{name}Form").model_fields)
    assert list(SCHEMA["properties"]) == list(form.InventoryForm.model_fields)
    assert SCHEMA["required"] == ["version", "broker", "consumers", "hosts"]


def test_it_is_json() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
