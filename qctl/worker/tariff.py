"""Which quota a call counts against, what it can ever pay, and who hears what its API says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes, urlsplit

from qctl.inventory.model import Quota, Window
from qctl.quota.listener import Listener
from qctl.quota.upstream import Style

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Tariff:
    """Which quota a call counts against. `prefixes`: (normal URL prefix, quota), longest first; `default`: the rest.

    most: units that a quota can ever pay at once, where that is known. listeners: by quota, who hears its answers.
    """

    prefixes: tuple[tuple[str, str], ...]
    default: str | None
    quotas: frozenset[str]
    most: Mapping[str, int]
    listeners: Mapping[str, Listener] = field(default_factory=dict)

    def quota_of(self, url: str) -> str | None:
        """The quota that pays for a call of `url`, None for a call that costs nothing."""
        if self.prefixes:
            address = normal(url)
            for prefix, quota in self.prefixes:
                if address.startswith(prefix):
                    return quota
        return self.default

    def listener(self, quota: str | None) -> Listener:
        """Who hears the answers that count against `quota`."""
        found = None if quota is None else self.listeners.get(quota)
        return found if found is not None else Listener()


def normal(url: str) -> str:
    """The one spelling of a URL: another way to write the same server must not be a way around its quota."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port not in (None, _DEFAULT_PORTS.get(parts.scheme)) else ""
        path = _path(parts.path)
    except ValueError:
        return url
    host = (parts.hostname or "").rstrip(".")
    return f"{parts.scheme}://{host}{port}{path}"


def _path(path: str) -> str:
    """The one spelling of a path: escaped is what has to be, there are no dots to go up by and no empty segments."""
    kept: list[str] = []
    *above, last = [unquote_to_bytes(segment) for segment in path.split("/")]
    for segment in above:
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(quote(segment, safe=""))
    if last == b"..":
        del kept[-1:]
    name = "" if last in (b".", b"..") else quote(last, safe="")
    return "/".join(["", *kept, name])


def tariff(
    cost: Mapping[str, int],
    urls: Mapping[str, tuple[str, ...]],
    most: Mapping[str, int],
    listeners: Mapping[str, Listener] | None = None,
) -> Tariff:
    """The tariff of a consumer that names the quotas of `cost`, whose `urls` and `most` units are given per quota.

    A quota without urls takes every call that no other one claims. listeners: default, such as know nothing yet.
    """
    found = ((normal(url), quota) for quota in cost for url in urls.get(quota, ()))
    prefixes = sorted(found, key=lambda pair: -len(pair[0]))
    default = next((quota for quota in cost if not urls.get(quota)), None)
    known = listeners or {}
    return Tariff(
        tuple(prefixes), default, frozenset(cost), most, {quota: known.get(quota) or Listener() for quota in cost}
    )


def tariff_of(cost: Mapping[str, int], quotas: Mapping[str, Quota]) -> Tariff:
    """The tariff of a consumer that names the quotas of `cost`, by what the inventory says of them."""
    return tariff(
        cost,
        {name: quota.urls for name, quota in quotas.items()},
        {name: quota.most_units for name, quota in quotas.items()},
        {name: listener(quota) for name, quota in quotas.items() if name in cost},
    )


def listener(quota: Quota) -> Listener:
    """Who hears what the API of a quota says. Windows of the clock matter where the API's are fixed."""
    periods_ns = tuple(rate.period_ns for rate in quota.limits)
    return Listener(Style(quota.headers.value), periods_ns, by_clock=quota.window is Window.FIXED)
