"""Connections: what goes wrong is said in the user's words, in bounded time; what is lost is found again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from qctl.broker import connect as connecting
from qctl.broker import session
from qctl.broker.connect import BACKOFF_FIRST_S, BACKOFF_LAST_S, Login, backoff, connect, connect_within, stay_connected
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.errors import BrokerRefused, BrokerUnreachable, Exit, LoginRefused
from qctl.inventory.model import Endpoint
from tests.brokers import LOOPBACK, Vhost
from tests.faults.proxy import Proxy, Way
from tests.wire import connected, login, scenario, until

#: Far above what a bounded wait takes on a busy machine, far below one without a bound.
SOON_S = 10.0


@contextmanager
def listener(*, answer: bytes = b"") -> Iterator[Endpoint]:
    """An address that accepts connections, says `answer` and then nothing, for as long as it is asked."""
    with socket.create_server((LOOPBACK, 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                accepted.append(one)
                if answer:
                    one.sendall(answer)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield Endpoint(LOOPBACK, server.getsockname()[1], False, "/")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in accepted:
                one.close()


def closed_port() -> Endpoint:
    """An address where nothing listens."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return Endpoint(LOOPBACK, server.getsockname()[1], False, "/")


def nobody(address: Endpoint) -> Login:
    return Login((address,), "user", "a secret word")


@scenario
async def test_an_open_connection_knows_whom_it_talks_to(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        # then its version is the broker's
        assert connection.server_version == vhost.broker.version
        assert connection.is_open
        assert not connection.blocked
        assert connection.silent_s() < SOON_S
        # and the broker shows its name
        listed = await asyncio.to_thread(vhost.broker.ctl, "list_connections", "vhost", "client_properties")
        assert any(vhost.name in one and '"connection_name","test"' in one for one in listed.splitlines())


@scenario
async def test_what_comes_after_too_long_a_silence_ends_the_connection_and_never_the_silence(
    monkeypatch: pytest.MonkeyPatch, vhost: Vhost
) -> None:
    # given nobody who looks at the clock meanwhile, as in a process that was stopped
    monkeypatch.setattr(session, "WATCH_S", 2 * SOON_S)
    async with connected(vhost) as connection:
        channel = await connection.channel()
        connection.raw.heard_at_s -= connection.patience_s

        # when the broker sends something
        with pytest.raises(ChannelLost, match="may have given our deliveries to others"):
            await channel.call("basic_qos", prefetch_count=1)

        # then nothing of it counts, and in that very instant nothing is open any more
        assert connection.silent_s() >= connection.patience_s
        assert not connection.is_open
        assert not channel.is_open
        # and it ends in order
        await asyncio.wait_for(asyncio.shield(channel.closed), SOON_S)


@scenario
async def test_a_connection_that_is_dropped_has_no_open_channel_from_that_instant_on(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        channel = await connection.channel()
        assert channel.is_open

        connection.abort("a test")

        assert not channel.is_open


@scenario
async def test_a_wrong_password_is_refused_and_never_shown(vhost: Vhost) -> None:
    # when somebody logs in with a wrong password
    with pytest.raises(BrokerRefused) as refused:
        await connect(login(vhost, password="a wrong word"), name="test")

    # then the message says who was refused, where, and what to check
    assert refused.value.exit_code is Exit.REFUSED
    assert repr(vhost.username) in refused.value.message
    assert str(vhost.broker.amqp_port) in refused.value.message
    assert "QCTL_PASSWORD" in refused.value.hint
    assert "a wrong word" not in refused.value.message + refused.value.hint
    assert "a wrong word" not in repr(login(vhost, password="a wrong word"))


@scenario
async def test_a_virtual_host_that_is_not_there_is_refused(vhost: Vhost) -> None:
    address = replace(login(vhost).addresses[0], vhost="no-such-vhost")
    wanted = replace(login(vhost), addresses=(address,))
    with pytest.raises(BrokerRefused, match="virtual host 'no-such-vhost'") as refused:
        await connect(wanted, name="test")
    assert "broker.amqp" in refused.value.hint


@scenario
async def test_a_virtual_host_that_the_user_may_not_enter_is_refused(local_vhost: Vhost) -> None:
    # given a user without any permission
    local_vhost.broker.api("PUT", "/users/outsider", {"password": "outside", "tags": ""})
    try:
        with pytest.raises(BrokerRefused, match="refused user 'outsider' access to virtual host"):
            await connect(login(local_vhost, username="outsider", password="outside"), name="test")
    finally:
        local_vhost.broker.api("DELETE", "/users/outsider")


@scenario
async def test_where_nothing_listens_the_address_is_named(local_vhost: Vhost) -> None:
    address = closed_port()

    # when a connection is tried
    start = time.monotonic()
    with pytest.raises(BrokerUnreachable) as failed:
        await connect(nobody(address), name="test")

    # then it fails at once, with address and next step
    assert time.monotonic() - start < SOON_S
    assert failed.value.exit_code is Exit.UNREACHABLE
    assert str(address) in failed.value.message
    assert "qctl broker up" in failed.value.hint


@scenario
async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(BrokerUnreachable, match=r"broker\.invalid"):
        await connect(nobody(Endpoint("broker.invalid", 5672, False, "/")), name="test")


@scenario
async def test_tls_to_a_plain_port_is_unreachable_and_says_so(local_vhost: Vhost) -> None:
    address = replace(login(local_vhost).addresses[0], tls=True)
    start = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=f"amqps://.*:{address.port}"):
        await connect(replace(login(local_vhost), addresses=(address,)), name="test")
    assert time.monotonic() - start < 3 * SOON_S


@scenario
async def test_tls_files_that_cannot_be_used_are_refused(local_vhost: Vhost) -> None:
    address = replace(login(local_vhost).addresses[0], tls=True)
    with pytest.raises(BrokerRefused, match="TLS files") as refused:
        await connect(replace(login(local_vhost), addresses=(address,), ca_file="/no/such/ca.pem"), name="test")
    assert "broker.tls" in refused.value.hint


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silence", "another protocol"])
@scenario
async def test_what_accepts_but_is_no_broker_is_unreachable_in_time(answer: bytes) -> None:
    # given something that accepts connections and does not speak AMQP
    with listener(answer=answer) as address:
        # when it is tried for a second
        start = time.monotonic()
        with pytest.raises(BrokerUnreachable) as failed:
            await connect_within(nobody(address), name="test", timeout_s=1.0)

        # then that is how long it takes, and the address is named
        assert time.monotonic() - start < SOON_S
        assert str(address) in failed.value.message
        assert failed.value.hint


@scenario
async def test_one_attempt_at_something_silent_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "CONNECT_TIMEOUT_S", 0.3)
    with listener() as address:
        start = time.monotonic()
        with pytest.raises(BrokerUnreachable, match=f"^{address} does not answer within 0.3 s$"):
            await connect(nobody(address), name="test")
        assert time.monotonic() - start < SOON_S


@scenario
async def test_of_several_addresses_one_that_answers_is_enough(local_vhost: Vhost) -> None:
    # given an address where nothing listens beside the broker's
    both = replace(login(local_vhost), addresses=(closed_port(), *login(local_vhost).addresses))

    # then whichever is tried first, it connects
    for _ in range(6):
        connection = await connect(both, name="test")
        assert connection.address.port == local_vhost.broker.amqp_port
        await connection.close()


@scenario
async def test_when_no_address_answers_each_is_named() -> None:
    addresses = (closed_port(), closed_port())
    with pytest.raises(BrokerUnreachable) as failed:
        await connect(Login(addresses, "user", "secret"), name="test")
    assert all(str(address) in failed.value.message for address in addresses)


@scenario
async def test_a_broker_that_comes_up_while_it_is_tried_is_found(local_vhost: Vhost) -> None:
    # given an address where nothing listens yet
    address = closed_port()
    wanted = replace(login(local_vhost), addresses=(replace(address, vhost=local_vhost.name),))
    trying = asyncio.ensure_future(connect_within(wanted, name="test", timeout_s=SOON_S))
    await asyncio.sleep(2 * BACKOFF_FIRST_S)
    assert not trying.done()

    # when the broker appears there
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(LOOPBACK, local_vhost.broker.amqp_port)
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    server = await asyncio.start_server(forward, LOOPBACK, address.port)

    # then the connection opens
    connection = await trying
    assert connection.is_open
    await connection.close()
    server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


@scenario
async def test_a_broker_that_is_not_heard_any_more_is_given_up(local_vhost: Vhost) -> None:
    # given a way to the broker on which nothing comes back any more
    with Proxy.to(local_vhost.broker.amqp_port) as way:
        through = replace(login(local_vhost).addresses[0], port=way.port)
        connection = await connect(replace(login(local_vhost), addresses=(through,)), name="test")
        way.hold(Way.DOWN)

        # when two heartbeats are over, here of a second each
        connection.heartbeat_s = 1
        lost = await asyncio.wait_for(asyncio.shield(connection.closed), SOON_S)

        # then the connection is dropped, though nobody closed it
        assert "nothing was heard from the broker for 2 s" in str(lost)
        assert not connection.is_open


@scenario
async def test_a_refused_login_is_tried_at_one_address_only(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a cluster of three addresses
    wrong = login(local_vhost, password="a wrong word")
    cluster = replace(wrong, addresses=wrong.addresses * 3)
    tried: list[Endpoint] = []
    once = connecting._connect_once

    async def counted(login: Login, address: Endpoint, *more: Any) -> Connection:
        tried.append(address)
        return await once(login, address, *more)

    monkeypatch.setattr(connecting, "_connect_once", counted)

    # then a wrong password is not tried at the others
    with pytest.raises(LoginRefused):
        await connect(cluster, name="test")
    assert len(tried) == 1


@pytest.mark.parametrize("password", ["a wrong word", None], ids=["refused", "cut off"])
@scenario
async def test_a_name_with_two_addresses_is_refused_once_and_reached_by_either(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    # given a name of two addresses, the first of which cuts off whoever has a good password
    arrivals: list[asyncio.StreamWriter] = []
    real = login(local_vhost).addresses[0]

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrivals.append(writer)
        if password is None:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(real.host, real.port)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(first, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    ports = (port, real.port if password is None else port)

    def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOOPBACK, port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    # then a refusal by the first is not asked for again at the second, and a broken first one is not the last word
    if password is None:
        connection = await connect(login(local_vhost), name="test")
        assert connection.is_open
        await connection.close()
    else:
        with pytest.raises(LoginRefused):
            await connect(login(local_vhost, password=password), name="test")
    assert len(arrivals) == 1
    server.close()


async def _unanswered(connection: Connection, monkeypatch: pytest.MonkeyPatch, *, consumes: bool = False) -> Channel:
    """A channel that asked for something and heard nothing."""
    channel = await connection.channel()
    channel.consumes = consumes
    monkeypatch.setattr(channel.raw, "queue_declare", lambda **_: None)
    start = time.monotonic()
    with pytest.raises(ChannelLost, match="did not answer queue_declare"):
        await channel.call("queue_declare", queue="q", durable=True)
    assert time.monotonic() - start < SOON_S
    assert not channel.is_open
    return channel


@scenario
async def test_a_request_without_an_answer_costs_its_channel_alone(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a queue that does not answer
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 0.3)
    async with connected(local_vhost) as connection:
        channel = await _unanswered(connection, monkeypatch)

        # then nothing more is believed of its channel, and the connection serves on
        with pytest.raises(ChannelLost):
            await channel.call("queue_declare", queue="q", durable=True)
        assert connection.is_open
        assert (await (await connection.channel()).call("queue_declare", queue="r", durable=True)).method.queue == "r"
        await until("the broker has closed it after all", lambda: not connection.given_up)


@scenario
async def test_what_a_subscribed_channel_holds_does_not_wait_for_an_answer(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 0.3)
    async with connected(local_vhost) as connection:
        await _unanswered(connection, monkeypatch, consumes=True)
        assert not connection.is_open
        with pytest.raises(ChannelLost):
            await connection.channel()


@scenario
async def test_many_requests_without_an_answer_cost_the_connection(
    local_vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "REPLY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(session, "MAX_GIVEN_UP", 2)
    monkeypatch.setattr("pika.channel.Channel.close", lambda *_: None)
    async with connected(local_vhost) as connection:
        for _ in range(2):
            await _unanswered(connection, monkeypatch)
            assert connection.is_open
        await _unanswered(connection, monkeypatch)
        assert not connection.is_open


@scenario
async def test_a_request_that_is_refused_closes_its_channel_alone(local_vhost: Vhost) -> None:
    async with connected(local_vhost) as connection:
        channel, other = await connection.channel(), await connection.channel()

        # when a queue is asked for that does not exist
        with pytest.raises(ChannelLost) as lost:
            await channel.call("queue_declare", queue="no-such-queue", passive=True)

        # then the broker's code and words are there, and the other channel serves on
        assert lost.value.code == 404
        assert "no-such-queue" in lost.value.text
        assert not channel.is_open
        assert (await other.call("queue_declare", queue="q", durable=True)).method.queue == "q"


@scenario
async def test_a_connection_that_an_operator_closes_says_why(vhost: Vhost) -> None:
    async with connected(vhost) as connection:
        channel = await connection.channel()

        # when an operator closes it
        await asyncio.to_thread(vhost.ctl, "close_all_connections", "going home")

        # then connection and channel tell the reason
        lost = await asyncio.wait_for(asyncio.shield(connection.closed), SOON_S)
        assert lost.code == 320
        assert "going home" in lost.text
        assert (await asyncio.wait_for(asyncio.shield(channel.closed), SOON_S)).code == 320
        assert not connection.is_open


@scenario
async def test_who_stays_connected_comes_back_after_each_loss(local_vhost: Vhost) -> None:
    # given somebody who stays connected
    opened: list[Connection] = []
    reasons: list[str] = []

    async def dial() -> Connection:
        return await connect(login(local_vhost), name="staying")

    async def use(connection: Connection) -> None:
        opened.append(connection)
        await asyncio.shield(connection.closed)

    staying = asyncio.ensure_future(stay_connected(dial, use, what="test", on_lost=reasons.append))
    for round_number in (1, 2):
        await until("connected", lambda n=round_number: len(opened) == n)

        # when its connections are closed under it
        await asyncio.to_thread(local_vhost.ctl, "close_all_connections", f"round {round_number}")

    # then it is back each time, and each loss was told
    await until("connected again", lambda: len(opened) == 3)
    assert opened[2].is_open
    assert [f"round {n}" in reason for n, reason in enumerate(reasons, start=1)] == [True, True]

    # and once cancelled it closes its connection
    staying.cancel()
    await asyncio.wait({staying})
    assert not opened[2].is_open


@scenario
async def test_who_stays_connected_tries_again_after_any_refusal(local_vhost: Vhost) -> None:
    # given a login that is wrong twice, and a first use that finds its channel lost
    attempts: list[str] = []
    served = asyncio.Event()

    async def dial() -> Connection:
        attempts.append("dial")
        wrong = {"password": "wrong"} if len(attempts) <= 2 else {}
        return await connect(login(local_vhost, **wrong), name="staying")

    async def use(_: Connection) -> None:
        if len(attempts) == 3:
            raise ChannelLost(406, "no")
        served.set()
        await asyncio.Future()

    # then it serves in the end
    staying = asyncio.ensure_future(stay_connected(dial, use, what="test"))
    await served.wait()
    assert len(attempts) == 4
    staying.cancel()
    await asyncio.wait({staying})


def test_pauses_double_to_a_limit_with_jitter() -> None:
    # when many pauses are drawn
    pauses = [pause_s for _, pause_s in zip(range(20), backoff(), strict=False)]

    # then they grow from the first to the last bound, and stay there
    for number, pause_s in enumerate(pauses):
        step_s = min(BACKOFF_FIRST_S * 2**number, BACKOFF_LAST_S)
        assert step_s / 2 <= pause_s <= step_s
    assert len(set(pauses)) == len(pauses)


@scenario
async def test_closing_is_orderly_and_may_be_said_twice(local_vhost: Vhost) -> None:
    connection = await connect(login(local_vhost), name="test")
    channel = await connection.channel()

    # when both are closed, twice
    await channel.close()
    await channel.close()
    await connection.close()
    await connection.close()

    # then both are
    assert not channel.is_open
    assert not connection.is_open
    assert connection.closed.result().code == 200
