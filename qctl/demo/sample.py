"""The sample inventory as the scenario runs it: the same text with the ports and the window of this run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qctl.demo.judge import Upstream
from qctl.errors import QctlError
from qctl.inventory.load import load
from qctl.inventory.model import HttpHandler, Inventory
from qctl.units import format_duration, parse_rate

SAMPLE = Path(__file__).with_name("inventory.yaml")
CONSUMER = "timeline"
QUOTA = "users-api"
#: Where the sample says that each host's API is.
_URLS = {"web-1": "http://127.0.0.1:8801/", "web-2": "http://127.0.0.1:8802/"}
#: The limit of each host as the sample writes it. The API enforces these, and not what qctl has read from the file.
LIMITS = {"web-1": 200, "web-2": 1000}


def upstreams(window_s: float) -> tuple[Upstream, ...]:
    """What the API lets each host do in this run."""
    return tuple(Upstream(host, limit_units, window_s) for host, limit_units in LIMITS.items())


def text_for(sample: str, urls: Mapping[str, str], window_s: float) -> str:
    """The sample's text with each host's URL and the window replaced, comments and all. Raises QctlError."""
    text = sample
    for host, url in _URLS.items():
        if text.count(url) != 1:
            raise QctlError(f"the sample inventory does not name {url} once", hint=f"Undo the changes to {SAMPLE}.")
        text = text.replace(url, urls[host])
    return re.sub(r"\b(\d+)/m\b", rf"\1/{format_duration(window_s)}", text)


def write(path: Path, urls: Mapping[str, str], limits: Sequence[Upstream]) -> Inventory:
    """Write the run's inventory to `path` and load it. Raises QctlError when it is not what the API will judge by."""
    path.write_text(text_for(SAMPLE.read_text(encoding="utf-8"), urls, limits[0].window_s), encoding="utf-8")
    inventory = load(path)
    for limit in limits:
        host = inventory.host(limit.host)
        rate = parse_rate(f"{limit.limit_units}/{format_duration(limit.window_s)}")
        handler = host.consumers[CONSUMER].handler
        if (
            host.quotas[QUOTA].limits != (rate,)
            or not isinstance(handler, HttpHandler)
            or handler.base_url != urls[limit.host]
        ):
            raise QctlError(
                f"the sample inventory says something else about {limit.host} than the demo expects",
                hint=f"Undo the changes to {SAMPLE}.",
            )
    return inventory
