"""RabbitMQ's management API: who is connected, who consumes, how deep queues are and what goes through them.

Never needed, only consulted: it may be off, slow, or refuse a user that AMQP takes. Connections and consumers that are
new appear in it after up to five seconds, rates as late; what is gone disappears at once.
"""

from __future__ import annotations

import asyncio
import http
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from qctl.broker import listing
from qctl.broker.connect import Login
from qctl.broker.listing import (
    PAGE_SIZE,
    ListedChannel,
    ListedConnection,
    ListedConsumer,
    ManagementError,
    QueueListing,
    QueueLook,
    QueuesAsked,
    QueueTerms,
)
from qctl.broker.local import local_directory, running_node
from qctl.broker.message import decode_json, short
from qctl.inventory.model import Broker

__all__ = [
    "Api",
    "Management",
    "ManagementError",
    "NoSuchPage",
    "QueueLook",
    "Refused",
    "SeesOnlyItsOwn",
    "api_of",
    "hosts",
    "in_thread",
    "tags",
]

#: 20,000 queues or connections; whoever has more gets an error and not a part that looks like the whole.
MAX_PAGES = 40
#: The consumers come in one piece: 5,000 of them are 4 MB.
MAX_BODY_BYTES = 32 << 20
CHUNK_BYTES = 64 << 10
#: What a refusal says about itself.
MAX_REASON_BYTES = 4 << 10
#: Of one request, its answer included; a console that asks every 5 s must not fall behind.
REQUEST_TIMEOUT_S = 2.0
#: Tags of users, one of which is needed to be shown the connections of everybody.
SEE_ALL = frozenset({"monitoring", "administrator"})
_GIVE_TAG = "`rabbitmqctl set_user_tags USER monitoring` gives it."
#: Where what the broker says matters.
_WITH_REASON = frozenset({http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN})
#: So the broker calls a user without a tag, and a page that its list does not reach.
_NO_TAG = "Not management user"
_NO_PAGE = "Page out of range"
#: Errors wrapped in one another that are looked through; a ring of them must not be followed for ever.
MAX_WRAPPED = 10

T = TypeVar("T")


class Refused(ManagementError):
    """The user may not ask, or not this."""


class SeesOnlyItsOwn(ManagementError):
    """The user is shown its own connections, channels and consumers, and nobody else's."""


class NoSuchPage(ManagementError):
    """The list has become shorter: the page that was asked for is none of its."""


@dataclass(frozen=True, slots=True)
class Api:
    """Where the management API is, and who asks it. `vhost`: the one that `queue` and the others are about."""

    url: str
    username: str
    password: str = field(repr=False)
    vhost: str = "/"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def api_of(broker: Broker, inventory_path: Path, login: Login) -> Api | None:
    """The management API of an inventory's broker, asked as `login`; None where the inventory names none.

    Raises BrokerUnreachable when the broker is the private node and does not run.
    """
    url = running_node(local_directory(inventory_path)).management_url if broker.local else broker.management
    if url is None:
        return None
    vhost = login.addresses[0].vhost
    return Api(url, login.username, login.password, vhost, login.ca_file, login.cert_file, login.key_file)


class Management:
    """Asks one management API. Every call blocks, for at most about `timeout_s` a page; use from one thread at a time.

    All raise ManagementError with one sentence.
    """

    def __init__(self, api: Api, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        import requests  # slow to import, and most commands never ask
        import requests.auth

        self._api = api
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # else a variable could name a proxy, or another certificate authority
        self._session.auth = requests.auth.HTTPBasicAuth(api.username.encode(), api.password.encode())
        self._session.headers["Accept-Encoding"] = "identity"  # the limit on the size is one of what is read
        self._session.verify = api.ca_file or True
        if api.cert_file:
            self._session.cert = (api.cert_file, api.key_file) if api.key_file else api.cert_file

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def connections(self) -> tuple[ListedConnection, ...]:
        """All connections that this user may see: its own, those of everybody with the tag `monitoring`."""
        return tuple(listing.connection(item) for item in self._pages("/connections", listing.CONNECTION_COLUMNS))

    def check_sees_all(self) -> None:
        """Raise SeesOnlyItsOwn when this user's lists have only its own: then nothing follows from a gap."""
        given = listing.an_object(self._get("/whoami")).get("tags")
        tags = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
        if not SEE_ALL.intersection(tag.strip() for tag in tags if isinstance(tag, str)):
            raise SeesOnlyItsOwn(
                f"{self._api.url} shows user {self._api.username!r}, who lacks the tag `monitoring`, only its own",
                hint=_GIVE_TAG,
            )

    def consumers(self) -> tuple[ListedConsumer, ...]:
        """All subscriptions in the virtual host."""
        found = self._get(f"/consumers/{self._vhost}", {"columns": listing.CONSUMER_COLUMNS})
        return tuple(listing.consumer(item) for item in listing.objects(found))

    def connections_here(self) -> tuple[ListedConnection, ...]:
        """The connections to the virtual host that this user may see, in one request."""
        found = self._get(f"/vhosts/{self._vhost}/connections", {"columns": listing.CONNECTION_COLUMNS})
        return tuple(listing.connection(item) for item in listing.objects(found))

    def channels_here(self) -> tuple[ListedChannel, ...]:
        """The channels in the virtual host that this user may see, in one request."""
        found = self._get(f"/vhosts/{self._vhost}/channels", {"columns": listing.CHANNEL_COLUMNS})
        return tuple(listing.channel(item) for item in listing.objects(found))

    def queue(self, name: str, *, lasting: bool = False) -> QueueLook | None:
        """One queue; None when there is none of that name. lasting: also what comes in all the time."""
        parameters = listing.LASTING if lasting else None
        found = self._get(f"/queues/{self._vhost}/{quote(name, safe='')}", parameters, missing=None)
        return None if found is None else listing.queue(listing.an_object(found))

    def queue_terms(self, name: str) -> QueueTerms | None:
        """What one queue is; None when there is none of that name."""
        found = self._get(f"/queues/{self._vhost}/{quote(name, safe='')}", missing=None)
        return None if found is None else listing.terms(listing.an_object(found))

    def queues(self, *, lasting: bool = False) -> tuple[QueueLook, ...]:
        """All queues of the virtual host. lasting: also what comes in all the time."""
        more = listing.LASTING if lasting else None
        found = self._pages(f"/queues/{self._vhost}", listing.QUEUE_COLUMNS, more)
        return tuple(listing.queue(item) for item in found)

    def queue_page(self, wanted: QueuesAsked) -> QueueListing:
        """A page of the virtual host's queues, in one request. Raises NoSuchPage also."""
        fields = listing.an_object(self._get(f"/queues/{self._vhost}", wanted.parameters()))
        found = tuple(listing.queue(item) for item in listing.objects(fields.get("items"))[:PAGE_SIZE])
        pages, total = listing.count(fields.get("page_count")), listing.count(fields.get("filtered_count"))
        if pages is None or total is None:
            self._not_its_own()
        return QueueListing(found, wanted.page, max(1, pages), total)

    @property
    def _vhost(self) -> str:
        return quote(self._api.vhost, safe="")

    def _pages(self, path: str, columns: str, more: Mapping[str, str] | None = None) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for page in range(1, MAX_PAGES + 1):
            parameters = {"page": str(page), "page_size": str(PAGE_SIZE), "columns": columns, **(more or {})}
            answer = self._get(path, parameters)
            if isinstance(answer, list):  # some give no pages
                return listing.objects(answer)
            fields = listing.an_object(answer)
            found += listing.objects(fields.get("items"))
            pages = listing.count(fields.get("page_count"))
            if pages is None:
                self._not_its_own()
            if page >= pages:
                return found
        raise ManagementError(f"{self._api.url}{path} has more than {MAX_PAGES * PAGE_SIZE} entries")

    def _not_its_own(self) -> NoReturn:
        raise ManagementError(f"{self._api.url} does not answer as a management API does")

    def _get(self, path: str, parameters: Mapping[str, str] | None = None, **missing: None) -> Any:
        """The answer's JSON; `missing` for 404, where it is given."""
        import requests
        import urllib3

        where = f"{self._api.url.rstrip('/')}/api{path}"
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._session.get(
                where, params=parameters, timeout=self._timeout_s, allow_redirects=False, stream=True
            ) as answer:
                if answer.status_code == http.HTTPStatus.NOT_FOUND and missing:
                    return missing["missing"]
                if answer.status_code != http.HTTPStatus.OK:
                    reason = self._reason(answer.raw) if answer.status_code in _WITH_REASON else ""
                    raise _not_ok(self._api, answer.status_code, reason)
                return decode_json(self._read(answer.raw, deadline))
        except requests.Timeout:
            raise self._slow() from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ManagementError(
                f"{self._api.url} cannot be asked: {_cause(error)}", hint="Check `broker.management`."
            ) from None
        except ValueError:
            raise ManagementError(
                f"{self._api.url} answers something else than JSON", hint="Check `broker.management`."
            ) from None

    def _read(self, raw: Any, deadline: float) -> bytes:
        parts, size = [], 0
        while chunk := raw.read1(CHUNK_BYTES):
            parts.append(chunk)
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ManagementError(f"{self._api.url} answers with more than {MAX_BODY_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise self._slow()
        return b"".join(parts)

    def _reason(self, raw: Any) -> str:
        """What the broker says of an answer that is none, "" where it says nothing that is understood."""
        try:
            fields = decode_json(raw.read1(MAX_REASON_BYTES) or b"")
        except ValueError:
            return ""
        said = fields.get("reason") if isinstance(fields, dict) else None
        return short(said) if isinstance(said, str) else ""

    def _slow(self) -> ManagementError:
        return ManagementError(f"{self._api.url} does not answer within {self._timeout_s:g} s")


async def in_thread(ask: Callable[[], T], *, timeout_s: float) -> T:
    """What `ask` returns, from a thread that nobody waits for any longer than `timeout_s`.

    A server that sends a byte now and then may keep a request for ever: its thread is left behind, and does not keep
    the program from ending. Raises ManagementError, also for a timeout.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = ask()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to who waits
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            pass  # the loop has ended, and with it who waited

    threading.Thread(target=run, name="qctl-management", daemon=True).start()
    try:
        return await asyncio.wait_for(outcome, timeout_s)
    except TimeoutError:
        raise ManagementError(f"the management API does not answer within {timeout_s:g} s") from None


def _not_ok(api: Api, status: int, reason: str) -> ManagementError:
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        if reason == _NO_TAG:
            return Refused(
                f"{api.url} refuses user {api.username!r}, who lacks the tags `management` and `monitoring`",
                hint=_GIVE_TAG,
            )
        return Refused(
            f"{api.url} refuses user {api.username!r}{f': {reason}' if reason else ''}",
            hint="Check the password, and the user's rights in the virtual host. The management API takes users with "
            "the tag `management`, and shows all to those with `monitoring`.",
        )
    if status == http.HTTPStatus.BAD_REQUEST and reason.startswith(_NO_PAGE):
        return NoSuchPage(f"{api.url}: {reason}")
    if http.HTTPStatus.MULTIPLE_CHOICES <= status < http.HTTPStatus.BAD_REQUEST:
        return ManagementError(
            f"{api.url} redirects, which is not followed", hint="Name the management API itself in `broker.management`."
        )
    if status == http.HTTPStatus.NOT_FOUND:
        return Refused(
            f"{api.url} answers with HTTP status 404",
            hint=f"Check `broker.management`, and that user {api.username!r} may see virtual host {api.vhost!r}.",
        )
    return ManagementError(f"{api.url} answers with HTTP status {status}")


def _cause(error: BaseException) -> str:
    """The bottom of a chain of wrapped errors: the outer ones are dumps of objects."""
    for _ in range(MAX_WRAPPED):
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    words = error.strerror if isinstance(error, OSError) else ""
    return short(words or str(error) or type(error).__name__)


def hosts(api: Api) -> frozenset[str]:
    """The hosts of which the broker lists a connection. Blocks; raises as Management does, also for a part of them."""
    asked = Management(api)
    try:
        asked.check_sees_all()
        return frozenset(one.host for one in asked.connections() if one.host and one.vhost == api.vhost)
    finally:
        asked.close()


def tags(api: Api) -> frozenset[str]:
    """The consumer tags that the broker lists. Blocks; raises as Management does, also for a part of them."""
    asked = Management(api)
    try:
        asked.check_sees_all()
        return frozenset(one.tag for one in asked.consumers())
    finally:
        asked.close()
