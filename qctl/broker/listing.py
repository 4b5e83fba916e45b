"""What the management API lists, as values, and how a part of its queues is asked for. Pure: `management` asks.

What is not there may come as [], as "undefined" or not at all; it is None here, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from qctl.errors import QctlError

#: The broker gives at most as many queues at once.
PAGE_SIZE = 500
#: Connections, channels or consumers; whoever has more gets an error and not a part that looks like the whole.
MAX_LISTED = 20_000
#: Of a text that names must contain: the broker takes addresses of 8,000 bytes, and a character may be 12 of them.
MAX_MATCH_CHARS = 250
#: What the broker is asked for besides, where it matters whether messages come all the time: its counts of the last
#: while, as often as it counts.
LASTING = {"msg_rates_age": "20", "msg_rates_incr": "5"}
#: Fewer counts than this say nothing about that.
LEAST_SAMPLES = 4
#: No count or rate of a broker is larger.
_MOST = 2**63
#: The columns that each list is asked for; what else there is would be megabytes.
CONNECTION_COLUMNS = "name,vhost,client_properties,connected_at"
CHANNEL_COLUMNS = "name,connection_details.name,message_stats.ack"
CONSUMER_COLUMNS = "consumer_tag,queue.name,active,channel_details.name"
_IN = "publish"
#: What takes a message out of a queue for good: an acknowledgement, or a delivery to who needs to send none.
_OUT = ("ack", "deliver_no_ack", "get_no_ack")
QUEUE_COLUMNS = ",".join(
    (
        "name,type,messages,messages_ready,messages_unacknowledged,consumers",
        *(f"message_stats.{name}_details.rate" for name in (_IN, *_OUT)),
        f"message_stats.{_IN}_details.samples",
    )
)
#: A kind of queue that keeps its messages, whoever reads them.
STREAM = "stream"


class ManagementError(QctlError):
    """The management API cannot be asked, or what it answers is not its own."""


class Sort(StrEnum):
    """By what the broker sorts queues. Where it knows no rate, that counts as 0."""

    NAME = "name"
    READY = "messages_ready"
    UNACKED = "messages_unacknowledged"
    CONSUMERS = "consumers"
    IN = "message_stats.publish_details.rate"
    ACKED = "message_stats.ack_details.rate"


@dataclass(frozen=True, slots=True)
class QueuesAsked:
    """A page, from 1, of the queues whose name contains `match` in either case, or does not, and has the ending."""

    page: int = 1
    sort: Sort = Sort.NAME
    descending: bool = False
    match: str = ""
    invert: bool = False
    ending: str = ""

    def parameters(self) -> dict[str, str]:
        """The query that asks for it."""
        found = {
            "page": str(self.page),
            "page_size": str(PAGE_SIZE),
            "columns": QUEUE_COLUMNS,
            "sort": self.sort.value,
            "sort_reverse": str(self.descending).lower(),
        }
        pattern = self._pattern()
        return {**found, "name": pattern, "use_regex": "true"} if pattern else found

    def _pattern(self) -> str:
        """A regular expression of the broker's kind; it heeds no case by itself."""
        contained = _quoted(self.match[:MAX_MATCH_CHARS])
        if not contained and not self.ending:
            return ""
        condition = f"(?{'!' if self.invert else '='}.*{contained})" if contained else ""
        return rf"(?s)\A{condition}.*{_quoted(self.ending)}\z"


@dataclass(frozen=True, slots=True)
class ListedConnection:
    """An AMQP connection. name: as its client calls it; host: qctl's host, "" for other clients; id: the broker's name.

    opened_s: when it was opened, by the broker's clock, seconds since 1970.
    """

    name: str
    vhost: str
    host: str
    id: str = ""
    opened_s: float | None = None


@dataclass(frozen=True, slots=True)
class ListedChannel:
    """A channel of a connection of that id. acked: messages acknowledged on it so far, as of some seconds ago."""

    name: str
    connection: str
    acked: int | None


@dataclass(frozen=True, slots=True)
class ListedConsumer:
    """A subscription in the virtual host. active: False while another consumer of the queue has the turn."""

    queue: str
    tag: str
    active: bool
    channel: str = ""


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue, as of up to five seconds ago. None: the broker does not say. Rates are messages a second.

    out_per_s: what leaves it for good, None also for a stream, whose readers take nothing out. consumers: subscriptions
    that it has at present. lasting_in_per_s: what has come in all the time lately, which a bulk of messages has not;
    None also where that was not asked for.
    """

    name: str
    messages: int | None
    ready: int | None
    unacked: int | None
    consumers: int | None
    in_per_s: float | None
    out_per_s: float | None
    lasting_in_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueueTerms:
    """What a queue is: its type, and each delivery limit that somebody gave it, by argument or by policy."""

    kind: str
    delivery_limits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueueListing:
    """A page of the queues asked for. total: how many there are on all `pages`."""

    queues: tuple[QueueLook, ...]
    page: int
    pages: int
    total: int


def an_object(value: object) -> Mapping[str, Any]:
    """`value`. Raises ManagementError when it is no JSON object."""
    if not isinstance(value, dict):
        raise ManagementError("the management API's answer is not an object")
    return value


def objects(value: object) -> list[Mapping[str, Any]]:
    """`value`. Raises ManagementError when it is no list of JSON objects, or one of more than MAX_LISTED."""
    if not isinstance(value, list):
        raise ManagementError("the management API's answer is not a list")
    if len(value) > MAX_LISTED:
        raise ManagementError(f"the management API lists more than {MAX_LISTED} entries")
    return [an_object(item) for item in value]


def connection(item: Mapping[str, Any]) -> ListedConnection:
    """A connection as it is listed."""
    properties = _inner(item, "client_properties")
    opened_ms = count(item.get("connected_at"))
    return ListedConnection(
        name=_text(properties.get("connection_name")),
        vhost=_text(item.get("vhost")),
        host=_text(properties.get("qctl_host")),
        id=_text(item.get("name")),
        opened_s=opened_ms / 1_000 if opened_ms is not None else None,
    )


def channel(item: Mapping[str, Any]) -> ListedChannel:
    """A channel as it is listed."""
    acked = count(_inner(item, "message_stats").get("ack"))
    return ListedChannel(_text(item.get("name")), _text(_inner(item, "connection_details").get("name")), acked)


def consumer(item: Mapping[str, Any]) -> ListedConsumer:
    """A subscription as it is listed."""
    return ListedConsumer(
        queue=_text(_inner(item, "queue").get("name")),
        tag=_text(item.get("consumer_tag")),
        active=item.get("active") is not False,
        channel=_text(_inner(item, "channel_details").get("name")),
    )


def queue(item: Mapping[str, Any]) -> QueueLook:
    """A queue as it is listed."""
    stats = _inner(item, "message_stats")
    out = [rate for name in _OUT if (rate := _rate(stats, name)) is not None]
    return QueueLook(
        name=_text(item.get("name")),
        messages=count(item.get("messages")),
        ready=count(item.get("messages_ready")),
        unacked=count(item.get("messages_unacknowledged")),
        consumers=count(item.get("consumers")),
        in_per_s=_rate(stats, _IN),
        out_per_s=sum(out) if out and item.get("type") != STREAM else None,
        lasting_in_per_s=_lasting(stats, _IN),
    )


def terms(item: Mapping[str, Any]) -> QueueTerms:
    """What a queue is, of one that was asked for by name. A policy shows up to twenty seconds late."""
    given = (
        item.get("delivery_limit"),  # of newer brokers: the one that counts
        _inner(item, "arguments").get("x-delivery-limit"),
        _inner(item, "effective_policy_definition").get("delivery-limit"),
    )
    limits = tuple(limit for limit in given if isinstance(limit, int) and not isinstance(limit, bool))
    return QueueTerms(_text(item.get("type")) or _text(_inner(item, "arguments").get("x-queue-type")), limits)


def count(value: object) -> int | None:
    """A number of things; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None


def _rate(stats: Mapping[str, Any], name: str) -> float | None:
    rate = _inner(stats, f"{name}_details").get("rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < _MOST:
        return None
    return float(rate)


def _lasting(stats: Mapping[str, Any], name: str) -> float | None:
    """The least rate between two of the counts that the broker has kept, of a few at least."""
    samples = _inner(stats, f"{name}_details").get("samples")
    if not isinstance(samples, list):
        return None
    pairs = [(count(one.get("timestamp")), count(one.get("sample"))) for one in objects(samples)]
    points = sorted((at_ms, total) for at_ms, total in pairs if at_ms is not None and total is not None)
    if len(points) < LEAST_SAMPLES:
        return None
    rates = [
        (after - before) * 1000 / (to_ms - from_ms)
        for (from_ms, before), (to_ms, after) in pairwise(points)
        if to_ms > from_ms
    ]
    return max(0.0, min(rates)) if rates else None


def _inner(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    given = item.get(name)
    return given if isinstance(given, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _quoted(text: str) -> str:
    # Every engine of the broker's takes a hexadecimal for whatever might mean something; beyond ASCII it reads bytes.
    return re.sub(r"[^A-Za-z0-9\x80-\U0010ffff]", lambda found: f"\\x{ord(found[0]):02x}", text)
