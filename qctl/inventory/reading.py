"""A document against the form: every mistake with its place, in our own words.

Validation stops at nothing: what is wrong is taken out, or a stand-in put where the rest needs one, until the rest can
be read. So mistakes of form and of reference come out in one pass.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from qctl.inventory.form import FIXED_KEYS, Form, InventoryForm, OverrideForm, listed
from qctl.inventory.mistakes import Key, Keys, Mistake, shown
from qctl.inventory.nearest import nearest
from qctl.inventory.yaml_marks import Node, Plain, locate
from qctl.units import MAX_UNITS

#: What to say of a required key that is missing, and what stands in for it while the rest is checked.
_REQUIRED: dict[str, tuple[str, Any]] = {
    "version": ("expected version: 1", Plain("1")),
    "broker": ("expected broker: local, or a mapping with amqp", "local"),
    "amqp": ("expected a URL such as amqp://HOST:5672/, or broker: local", "amqps://stand-in/"),
    "consumers": ("expected a mapping of consumers", {}),
    "hosts": ("expected a mapping of hosts", {}),
    "handler": ("expected one of {python: ...}, {http: ...} and {exec: [ARGV]}", {"exec": ["stand-in"]}),
    "quota": ("expected a mapping of quota to units, such as {twitter: 1}, or {} when it costs nothing", {}),
    "limit": ("expected a rate N/PERIOD such as 20000/h, or a list of them", f"{MAX_UNITS}/d"),
    "base_url": ("expected the URL under which the API is", "http://stand-in/"),
}
#: What stands in for a whole entry that cannot be used, so that what names it is not reported as well.
_ENTRIES: dict[str, Any] = {
    "consumers": {"handler": {"exec": ["stand-in"]}, "quota": {}},
    "quotas": f"{MAX_UNITS}/d",
    "groups": {},
}
#: Rounds of taking out what is wrong; each goes one level up at least.
_MAX_ROUNDS = 6


def read(root: Node) -> tuple[InventoryForm | None, list[Mistake]]:
    """The form and its mistakes.

    With mistakes, the form is what is left without them, for `rules` to look at; None when nothing usable is left.
    """
    data = root.plain_data()
    mistakes: list[Mistake] = []
    for attempt in range(_MAX_ROUNDS):
        try:
            return InventoryForm.model_validate(data), mistakes
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        if attempt == 0:
            mistakes = [_mistake(root, item) for item in errors]
        for item in sorted(errors, key=lambda item: _deepest_last_first(item["loc"]), reverse=True):
            _take_out(data, item["loc"], missing=item["type"] == "missing")
    return None, mistakes


def _deepest_last_first(loc: Keys) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, key) if isinstance(key, int) else (1, key) for key in loc)


def _mistake(root: Node, error: Any) -> Mistake:
    loc: Keys = error["loc"]
    kind = error["type"]
    if kind == "missing":
        place = locate(root, loc[:-1], at_key=True)
        key = str(loc[-1])
        return Mistake(place.line, place.column, (*place.keys, key), f"required key is missing; {_REQUIRED[key][0]}")
    if kind == "extra_forbidden":
        place = locate(root, loc, at_key=True)
        return Mistake(place.line, place.column, place.keys, _unknown_key(loc))
    place = locate(root, loc)
    # Every other error is raised by a check of ours; its text is for the user.
    cause = error.get("ctx", {}).get("error")
    return Mistake(place.line, place.column, place.keys, str(cause) if cause else "this value is not accepted here")


def _unknown_key(loc: Keys) -> str:
    key, form = str(loc[-1]), _form_at(loc[:-1])
    if form is OverrideForm and key in FIXED_KEYS:
        return f"{key} cannot be overridden; it is the same on every host"
    near = nearest(key, form.model_fields) if form else None
    hint = f"did you mean {near}?" if near else f"expected {listed(form)}" if form else "remove it"
    return f"unknown key {shown(key)}; {hint}"


def _form_at(loc: Keys) -> type[Form] | None:
    current: Any = InventoryForm
    for key in loc:
        current = _unwrapped(current)
        if isinstance(current, type) and issubclass(current, Form):
            if key not in current.model_fields:
                return None
            current = current.model_fields[str(key)].annotation
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        else:
            return None
    current = _unwrapped(current)
    return current if isinstance(current, type) and issubclass(current, Form) else None


def _unwrapped(annotation: Any) -> Any:
    """The form or dict in `Annotated[...]` and `X | None`."""
    if get_origin(annotation) is Annotated:
        return _unwrapped(get_args(annotation)[0])
    inner = [item for item in get_args(annotation) if item is not type(None)]
    if len(inner) == 1 and get_origin(annotation) not in (dict, tuple):
        return _unwrapped(inner[0])
    return annotation


def _take_out(data: Any, loc: Keys, *, missing: bool) -> None:
    """Remove the wrong value at `loc` from `data`, or put a stand-in where the rest needs one.

    Levels that the file does not have (those of a short form) are passed over, as in `locate`.
    """
    trail: list[tuple[Any, Key]] = []
    current = data
    for key in loc[:-1] if missing else loc:
        inside = isinstance(current, list) and isinstance(key, int) and key < len(current)
        if inside or (isinstance(current, dict) and key in current):
            trail.append((current, key))
            current = current[key]
    if missing:
        if current is None:
            container, key = trail[-1]
            current = container[key] = {}
        current[loc[-1]] = deepcopy(_REQUIRED[str(loc[-1])][1])
    elif trail:
        container, key = trail[-1]
        if len(trail) == 2 and trail[0][1] in _ENTRIES:
            container[key] = deepcopy(_ENTRIES[str(trail[0][1])])
        else:
            del container[key]
