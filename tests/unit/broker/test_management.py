"""The management API as it should be and as it should not: an HTTP server of the test's own."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from qctl.broker import management
from qctl.broker.listing import ListedConnection, ListedConsumer, QueuesAsked
from qctl.broker.management import Api, Management, ManagementError, NoSuchPage, Refused, in_thread
from tests.bare_http import Reply, answering, drip, hang, serving


@contextmanager
def asked(url: str, **changed: object) -> Iterator[Management]:
    api = replace(Api(url, "ümlaut", "geheim€", vhost="a/b"), **changed)  # type: ignore[arg-type]
    found = Management(api, timeout_s=0.5)
    try:
        yield found
    finally:
        found.close()


def test_a_queue_is_read_with_its_rates() -> None:
    heads: list[str] = []

    def reply(connection: socket.socket, head: str) -> None:
        heads.append(head)
        stats = {"publish_details": {"rate": 12.5}, "deliver_get_details": {"rate": 3}, "ack_details": {"rate": "NaN"}}
        fields = {"name": "time line", "messages": 7, "messages_ready": 5, "messages_unacknowledged": 2}
        answering({**fields, "consumers": 1, "message_stats": stats})(connection, head)

    with serving(reply) as url, asked(url) as api:
        found = api.queue("time line")
    assert found is not None
    assert (found.messages, found.ready, found.unacked, found.consumers) == (7, 5, 2, 1)
    assert (found.in_per_s, found.out_per_s) == (12.5, None)
    assert heads[0].startswith("GET /api/queues/a%2Fb/time%20line ")
    credentials = base64.b64encode("ümlaut:geheim€".encode()).decode()
    assert f"Authorization: Basic {credentials}" in heads[0]


@pytest.mark.parametrize(
    "fields",
    [{}, {"messages": "undefined", "message_stats": []}, {"messages": -1, "message_stats": {"publish_details": []}}],
)
def test_what_the_broker_does_not_say_is_not_zero(fields: dict[str, object]) -> None:
    with serving(answering({"name": "q", **fields})) as url, asked(url) as api:
        found = api.queue("q")
    assert found is not None
    assert (found.messages, found.in_per_s) == (None, None)


def test_a_queue_that_is_not_there_is_none() -> None:
    with serving(answering({"error": "Object Not Found"}, "404 Not Found")) as url, asked(url) as api:
        assert api.queue("q") is None


def test_pages_are_put_together() -> None:
    def reply(connection: socket.socket, head: str) -> None:
        page = 2 if "page=2" in head else 1
        properties = {"connection_name": f"qctl web-{page}/0 consuming", "qctl_host": f"web-{page}"}
        items = [{"vhost": "a/b", "client_properties": properties}, {"name": "other", "client_properties": []}]
        answering({"page_count": 2, "items": items})(connection, head)

    with serving(reply) as url, asked(url) as api:
        found = api.connections()
    assert found[0] == ListedConnection("qctl web-1/0 consuming", "a/b", "web-1", "", None)
    assert [one.host for one in found] == ["web-1", "", "web-2", ""]


@pytest.mark.parametrize(
    ("given", "page_count", "shown", "pages"), [(0, 0, 0, 1), (3, 1, 3, 1), (management.PAGE_SIZE + 9, 2, 500, 2)]
)
def test_a_page_of_queues_is_no_longer_than_was_asked(given: int, page_count: int, shown: int, pages: int) -> None:
    items = [{"name": str(number)} for number in range(given)]
    document = {"items": items, "page_count": page_count, "filtered_count": given}
    with serving(answering(document)) as url, asked(url) as api:
        page = api.queue_page(QueuesAsked())
    assert (len(page.queues), page.pages, page.total) == (shown, pages, given)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (
            answering({"reason": "Not management user"}, "401 X"),
            Refused,
            "lacks the tags `management` and `monitoring`",
        ),
        (answering({"reason": "Login failed"}, "401 X"), Refused, "refuses user 'ümlaut': Login failed"),
        (answering({"reason": "a\nb\x1b[2J" + "x" * 5_000}, "401 X"), Refused, "refuses user 'ümlaut'"),
        (answering({"reason": ["x"]}, "403 X"), Refused, "refuses user 'ümlaut'"),
        (answering({"reason": "Page out of range, page: 2"}, "400 X"), NoSuchPage, "Page out of range"),
        (answering({"reason": "Pagination parameters are invalid"}, "400 X"), ManagementError, "HTTP status 400"),
        (answering({}, "404 X"), Refused, "HTTP status 404"),
    ],
)
def test_a_refusal_says_why(reply: Reply, kind: type[ManagementError], words: str) -> None:
    with serving(reply) as url, asked(url) as api, pytest.raises(ManagementError) as caught:
        api.queue_page(QueuesAsked(page=2))
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1_000


def test_consumers_are_those_of_the_vhost() -> None:
    consumers = [
        {"queue": {"name": "q", "vhost": "a/b"}, "consumer_tag": "qctl/web-1/q/0", "active": True},
        {"queue": []},
    ]
    with serving(answering(consumers)) as url, asked(url) as api:
        assert api.consumers() == (ListedConsumer("q", "qctl/web-1/q/0", True), ListedConsumer("", "", True))


def cut(connection: socket.socket, _head: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[1, 2")


def flood(connection: socket.socket, _head: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
    while True:
        connection.sendall(b" " * 65_536)


def endless_pages(connection: socket.socket, _head: str) -> None:
    answering({"page_count": 10**9, "items": []})(connection, _head)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answering({}, "401 Unauthorized"), "refuses user 'ümlaut'"),
        (answering({}, "403 Forbidden"), "refuses user"),
        (answering({}, "404 Not Found"), "HTTP status 404"),
        (answering({}, "500 Internal Server Error"), "HTTP status 500"),
        (answering({}, "503 Service Unavailable"), "HTTP status 503"),
        (answering({}, "301 Moved", "Location: http://127.0.0.1:1/\r\n"), "redirects, which is not followed"),
        (answering(b"<html>"), "something else than JSON"),
        (answering(b"\xff\xfe"), "something else than JSON"),
        (answering(b"[" * 100_000), "something else than JSON"),
        (answering(b""), "something else than JSON"),
        (answering(7), "not an object"),
        (answering({"items": [1], "page_count": 1}), "not an object"),
        (answering({"items": {}, "page_count": 1}), "not a list"),
        (answering({"items": []}), "does not answer as a management API does"),
        (hang, "does not answer within 0.5 s"),
        (drip, "does not answer within 0.5 s"),
        (cut, "cannot be asked"),
        (flood, "more than 1 MiB"),
        (endless_pages, "more than 20000 entries"),
        (lambda connection, _: connection.sendall(b"garbage\r\n\r\n"), "cannot be asked"),
        (lambda connection, _: None, "cannot be asked"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_answer_is_an_error_in_one_sentence_and_in_time(
    reply: Reply, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "MAX_BODY_BYTES", 1 << 20)
    with serving(reply) as url, asked(url) as api:
        started_s = time.monotonic()
        with pytest.raises(ManagementError) as caught:
            api.connections()
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "geheim" not in caught.value.message + caught.value.hint
    assert time.monotonic() - started_s < 3


def test_nobody_there_is_said_with_the_systems_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with asked(url) as api, pytest.raises(ManagementError, match="refused"):
        api.consumers()


def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # given variables that would send the request, and the credentials in it, elsewhere
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    with serving(answering([])) as url, asked(url) as api:
        assert api.consumers() == ()


def test_a_password_is_in_no_repr() -> None:
    assert "geheim" not in repr(Api("http://x", "u", "geheim"))


def test_a_thread_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    async def ask() -> float:
        started_s = time.monotonic()
        with pytest.raises(ManagementError, match=r"within 0\.2 s"):
            await in_thread(release.wait, timeout_s=0.2)
        return time.monotonic() - started_s

    assert asyncio.run(ask()) < 2
    release.set()


def test_what_a_thread_raises_reaches_who_waits() -> None:
    def fail() -> None:
        raise ManagementError("no")

    with pytest.raises(ManagementError, match=r"^no$"):
        asyncio.run(in_thread(fail, timeout_s=2))


@pytest.mark.parametrize(
    ("tags", "sees_all"),
    [
        (["management"], False),
        (["policymaker", "management"], False),
        ([], False),
        ("", False),
        (None, False),
        ([7], False),
        (["management", "monitoring"], True),
        ("policymaker, administrator", True),
    ],
)
def test_hosts_are_only_told_to_who_sees_every_connection(tags: object, sees_all: bool) -> None:
    # given a user, and a list of connections that has a host's
    def reply(connection: socket.socket, head: str) -> None:
        mine = {"name": "a", "vhost": "a/b", "client_properties": {"qctl_host": "web-1"}}
        document = {"name": "me", "tags": tags} if head.startswith("GET /api/whoami ") else [mine]
        answering(document)(connection, head)

    with serving(reply) as url:
        api = Api(url, "me", "secret", vhost="a/b")
        if sees_all:
            assert management.hosts(api) == {"web-1"}
        else:
            with pytest.raises(ManagementError, match="'me', who lacks the tag `monitoring`, only its own"):
                management.hosts(api)
