"""`qctl pause` and `resume` against hosts that answer as a test says: what is proven, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.broker import topology
from qctl.broker.login import login_for
from qctl.broker.management import api_of
from qctl.broker.message import PERSISTENT, Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Connection
from qctl.control.event import Hello, Verb
from qctl.control.host_answer import ProcessState
from qctl.control.reading import ConsumerReading, Goodbye, HostReading, Reading
from qctl.control.verdict import Standing
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, Exit, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import pausing
from qctl.ops.pausing import Pausing, Report, check_operator
from qctl.ops.targets import Words, select
from tests.brokers import Vhost, fresh_vhost
from tests.integration.scripted_host import Process, ScriptedHost, keeps_silent, scripted
from tests.integration.test_enqueue_outages import alarm
from tests.integration.test_topology import user
from tests.wire import connected, scenario, until

#: Enough for a machine that is busy; what is known ends sooner.
PATIENT_S, SHORT_S = 20.0, 0.4


@pytest.fixture
def local_vhost(local_broker: Any) -> Iterator[Vhost]:
    with fresh_vhost(local_broker) as fresh:
        yield fresh


@pytest.fixture
def inventory(local_vhost: Vhost, tmp_path: Path) -> Inventory:
    path = tmp_path / "inventory.yaml"
    consumer = {"handler": {"exec": ["cat"]}, "quota": {}}
    document = {
        "version": 1,
        "broker": local_vhost.inventory_broker(),
        "quotas": {},
        "consumers": {"timeline": consumer, "mails": consumer},
        "hosts": {"web-1": None, "web-2": None},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


def two(**changed: Any) -> ScriptedHost:
    return ScriptedHost("web-1", [Process(0, 10), Process(1, 11)], **changed)


def working(inventory: Inventory, *targets: str, verb: Verb = Verb.PAUSE, **words: Any) -> Pausing:
    selection = select(inventory, Words(targets, **words))
    return Pausing(pausing.order(verb, selection, reason="release", until_s=None))


async def run(
    inventory: Inventory,
    *targets: str,
    verb: Verb = Verb.PAUSE,
    timeout_s: float = PATIENT_S,
    api: bool = False,
    wait_s: float | None = None,
    **words: Any,
) -> Report:
    login = login_for(inventory.broker, inventory.path, prefer_environment=False)
    asked = api_of(inventory.broker, inventory.path, login) if api else None
    work = working(inventory, *targets, verb=verb, **words)
    return await work.run(login, asked, connect_timeout_s=PATIENT_S, timeout_s=timeout_s, wait_s=wait_s)


def standings(report: Report) -> dict[str, Standing]:
    return {row.tag.removeprefix("qctl/"): row.standing for row in report.rows}


async def log_of_hosts(connection: Connection, *bodies: bytes) -> None:
    """Write to the telemetry log as supervisors do."""
    await topology.ensure(connection, topology.telemetry())
    publisher = await Publisher.open(connection)
    for body in bodies:
        properties = Properties(user_id=connection.username, delivery_mode=PERSISTENT)
        await publisher.publish(Outgoing("", topology.TELEMETRY_LOG, body, properties))


async def publish_reading(connection: Connection, reading: Reading) -> None:
    """As a worker process does, once a second."""
    publisher = await Publisher.open(connection)
    properties = Properties(user_id=connection.username)
    await publisher.publish(Outgoing(topology.TELEMETRY, f"host.{reading.host}", reading.body(), properties))


@scenario
async def test_given_two_processes_that_answer_then_it_ends_at_once_with_their_rows(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    async with scripted(local_vhost, host):
        started_s = time.monotonic()
        report = await run(inventory, "web-1/timeline", api=True)
        took_s = time.monotonic() - started_s
    assert standings(report) == {"web-1/timeline/0": Standing.PROVEN, "web-1/timeline/1": Standing.PROVEN}
    assert (report.exit_code, report.notes, report.user) == (Exit.DONE, (), local_vhost.username)
    assert [(row.state, row.given_back) for row in report.rows] == [("paused", 3), ("paused", 3)]
    assert took_s < PATIENT_S / 2
    assert (host.heard[0].reason, host.heard[0].claimed_by) == ("release", report.order.claimed_by)


@scenario
async def test_given_a_process_that_is_stopped_then_a_part_is_proven(local_vhost: Vhost, inventory: Inventory) -> None:
    host = two()
    host.processes[1].script = keeps_silent
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", timeout_s=SHORT_S)
    assert standings(report) == {"web-1/timeline/0": Standing.PROVEN, "web-1/timeline/1": Standing.UNPROVEN}
    assert report.exit_code == Exit.PARTLY
    assert report.confirmed_at_s is not None
    assert report.rows[1].may_start_until_s == pytest.approx(report.confirmed_at_s + 20)


@scenario
async def test_given_that_nobody_answers_then_nothing_is_proven(local_vhost: Vhost, inventory: Inventory) -> None:
    host = two(answers_questions=False)
    for process in host.processes:
        process.script = keeps_silent
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", timeout_s=SHORT_S)
    assert report.exit_code == Exit.FAILED
    assert standings(report) == {"web-1/timeline/*": Standing.UNPROVEN}


@scenario
async def test_given_a_process_that_dies_unanswered_then_its_supervisor_tells(
    local_vhost: Vhost, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qctl.control.asking.ASK_AGAIN_S", 0.1)
    host = two()
    host.processes[1].script = keeps_silent

    def bury() -> None:
        if host.questions == 3:
            host.processes[1].state = ProcessState.ENDED

    host.on_question = bury
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline")
    assert standings(report) == {"web-1/timeline/0": Standing.PROVEN, "web-1/timeline/1": Standing.DOWN}
    assert report.exit_code == Exit.DONE


@scenario
async def test_given_a_host_that_was_never_there_then_it_is_down_and_that_is_enough(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    async with scripted(local_vhost, two()):
        report = await run(inventory, "*/timeline", api=True)
    assert standings(report)["web-2/timeline/*"] is Standing.DOWN
    assert report.exit_code == Exit.DONE


@scenario
async def test_given_processes_that_are_starting_then_they_are_not_waited_for(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host, other = two(), ScriptedHost("web-2", [Process(0, 20)])
    for process in (*host.processes, *other.processes):
        process.script, process.state = keeps_silent, ProcessState.STARTING
    async with scripted(local_vhost, host, other):
        started_s = time.monotonic()
        report = await run(inventory, "*/timeline", api=True)
    assert standings(report)["web-1/timeline/0"] is Standing.DOWN
    assert report.exit_code == Exit.DONE
    assert time.monotonic() - started_s < PATIENT_S / 2


@scenario
async def test_given_a_host_that_spoke_within_the_minute_then_it_is_down_only_after_a_goodbye(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # given a host that wrote to the telemetry log a moment ago, and has no supervisor
    async with connected(local_vhost) as connection:
        await log_of_hosts(connection, HostReading(time.time(), "web-2", "machine", 1).body())
        first = await run(inventory, "web-2/timeline", timeout_s=SHORT_S)

        # when it says goodbye
        await log_of_hosts(connection, Goodbye(time.time(), "web-2").body())
        second = await run(inventory, "web-2/timeline", timeout_s=PATIENT_S)

    # then only now it is down
    assert (standings(first), first.exit_code) == ({"web-2/timeline/*": Standing.UNPROVEN}, Exit.FAILED)
    assert (standings(second), second.exit_code) == ({"web-2/timeline/*": Standing.DOWN}, Exit.DONE)


@scenario
async def test_given_nobody_who_lists_connections_then_only_a_host_that_never_said_hello_is_down(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # Given two hosts of which nothing is heard, and one that said hello once
    hello = Hello(nonce="n", host="web-1", index=0, ledger="l", machine="machine", pid=1)
    async with connected(local_vhost) as connection:
        await topology.ensure(connection, topology.control_log())
        properties = Properties(message_id="n", user_id=connection.username, delivery_mode=PERSISTENT)
        publisher = await Publisher.open(connection)
        assert await publisher.publish(Outgoing(topology.HELLO, "", hello.body(), properties)) is Published.CONFIRMED
        report = await run(inventory, consumer="timeline", timeout_s=2.0)

    # then it may be there all the same
    assert standings(report) == {"web-1/timeline/*": Standing.UNPROVEN, "web-2/timeline/*": Standing.DOWN}


@scenario
async def test_given_answers_that_are_forged_then_they_prove_nothing(local_vhost: Vhost, inventory: Inventory) -> None:
    host = two()
    host.processes[0].signed = False
    host.processes[1].script = lambda command: {"state": "consuming"}
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", timeout_s=SHORT_S)
    assert set(standings(report).values()) == {Standing.UNPROVEN}
    assert "consuming" in report.rows[1].words


@scenario
async def test_given_another_user_who_answers_for_a_process_then_it_proves_nothing_and_the_process_is_believed(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # Given a host whose process is stopped, and somebody who writes its answer
    host, forger = two(), two()
    host.processes[0].script = host.processes[1].script = keeps_silent
    with user(local_vhost, configure=".*") as other:
        async with scripted(local_vhost, forger, supervised=False, **other), scripted(local_vhost, host):
            report = await run(inventory, "web-1/timeline", timeout_s=SHORT_S)
            assert len(forger.heard) == 1
            assert set(standings(report).values()) == {Standing.UNPROVEN}

            # when the process answers after all, later than the forger
            host.processes = two().processes
            report = await run(inventory, "web-1/timeline")
            assert set(standings(report).values()) == {Standing.PROVEN}


@scenario
async def test_given_processes_of_another_user_then_they_are_believed_as_their_supervisor_names_them(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # Given a supervisor that was started as one user, and processes that have another one since
    supervisor, processes = two(), two()
    for process in supervisor.processes:
        process.script = keeps_silent
    with user(local_vhost, configure=".*") as other:
        async with scripted(local_vhost, processes, supervised=False, **other), scripted(local_vhost, supervisor):
            # when it does not say so, then nothing is proven, and the row tells why
            report = await run(inventory, "web-1/timeline", timeout_s=SHORT_S)
            assert set(standings(report).values()) == {Standing.UNPROVEN}
            assert report.rows[0].words == f"process 10 answered as {other['username']}, not as its supervisor says"

            # and when it does, all is
            for process in supervisor.processes:
                process.user = other["username"]
            report = await run(inventory, "web-1/timeline")
    assert set(standings(report).values()) == {Standing.PROVEN}


@scenario
async def test_given_a_process_that_is_cut_off_then_wait_does_not_say_that_nothing_runs(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # Given a process that has lost the broker, with whatever it had begun
    host = two()
    host.processes[1].script, host.processes[1].state = keeps_silent, ProcessState.DISCONNECTED
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", wait_s=SHORT_S)
        alone = await run(inventory, "web-1/timeline")
    # Then the pause is complete, and what it waited for is not known
    assert standings(report)["web-1/timeline/1"] is Standing.DOWN
    assert report.notes == ("it is not known whether tasks of qctl/web-1/timeline/1 still run",)
    assert (report.exit_code, alone.exit_code) == (Exit.PARTLY, Exit.DONE)


@scenario
async def test_given_a_pause_that_ends_before_it_is_given_or_proven_then_it_says_so_at_once(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    host.processes[1].script = keeps_silent
    login = login_for(inventory.broker, inventory.path, prefer_environment=False)
    selection = select(inventory, Words(("web-1/timeline",)))
    async with scripted(local_vhost, host):
        # when the time of one is over before it is given
        over = pausing.order(Verb.PAUSE, selection, reason=None, until_s=time.time() - 0.001)
        with pytest.raises(UsageError, match=r"^not given: its time is over"):
            await Pausing(over).run(login, None, connect_timeout_s=PATIENT_S, timeout_s=PATIENT_S)
        assert host.heard == []

        # and when that of another is while a process has not answered
        short = pausing.order(Verb.PAUSE, selection, reason=None, until_s=time.time() + 1.5)
        started_s = time.monotonic()
        report = await Pausing(short).run(login, None, connect_timeout_s=PATIENT_S, timeout_s=PATIENT_S)
    assert time.monotonic() - started_s < PATIENT_S / 2
    assert report.notes == (pausing.TIME_OVER,)
    assert report.exit_code == Exit.PARTLY


@scenario
async def test_given_processes_that_refuse_then_that_is_the_exit_code(local_vhost: Vhost, inventory: Inventory) -> None:
    host = two()
    for process in host.processes:
        process.refused = "user qctl is not an operator"
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline")
    assert report.exit_code == Exit.REFUSED
    assert {row.words for row in report.rows} == {"user qctl is not an operator"}


@scenario
async def test_given_a_host_that_is_not_in_the_inventory_then_a_pattern_reaches_it(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    async with scripted(local_vhost, two(), ScriptedHost("db-1", [Process(0, 5)])):
        report = await run(inventory, consumer="timeline")
    assert standings(report)["db-1/timeline/0"] is Standing.PROVEN


@scenario
async def test_given_two_targets_then_each_is_an_event_and_both_are_waited_for(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two(subjects=(("timeline", "timeline"), ("mails", "mails")))
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", "web-1/mails")
    assert len(report.confirmed) == len(host.heard) == 2
    assert len(report.rows) == 4
    assert report.exit_code == Exit.DONE


@scenario
async def test_given_a_resume_then_the_rows_say_what_each_does_now(local_vhost: Vhost, inventory: Inventory) -> None:
    left = {"id": "a", "target": "web-1", "by": "deploy", "reason": "release", "until": None}
    host = two()
    host.processes[0].script = lambda command: {"state": "paused", "remains": [left]}
    host.processes[1].script = lambda command: {"state": "held", "why": "quota twitter"}
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", verb=Verb.RESUME)
    assert report.exit_code == Exit.DONE
    assert [(row.state, row.words) for row in report.rows] == [
        ("paused", "still paused: web-1 by deploy (release)"),
        ("held", "quota twitter"),
    ]


@scenario
async def test_given_a_consumer_that_the_broker_lists_on_then_it_is_noted_and_no_failure(
    local_vhost: Vhost, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a host that says it has cancelled, while the broker's list has the tag
    monkeypatch.setattr("qctl.broker.management.tags", lambda api: {"qctl/web-1/timeline/1", "qctl/web-2/timeline/0"})
    async with scripted(local_vhost, two()):
        report = await run(inventory, "web-1/timeline", api=True, timeout_s=SHORT_S)
    assert report.exit_code == Exit.DONE
    assert report.notes == ("the broker still lists qctl/web-1/timeline/1; its list may lag behind",)


@scenario
async def test_given_a_silent_host_with_a_connection_then_the_list_of_connections_is_waited_for(
    local_vhost: Vhost, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a broker that lists a connection of a host of which nothing is heard, and is slow to say so
    def listed(_api: Any) -> frozenset[str]:
        time.sleep(SHORT_S)
        return frozenset({"web-2"})

    monkeypatch.setattr("qctl.broker.management.hosts", listed)
    report = await run(inventory, "web-2/timeline", api=True, timeout_s=4 * SHORT_S)
    assert standings(report) == {"web-2/timeline/*": Standing.UNPROVEN}
    assert "lists a connection" in report.rows[0].words


@scenario
async def test_given_a_management_api_that_is_gone_then_the_proof_stands_without_it(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    gone = replace(inventory, broker=replace(inventory.broker, management="http://127.0.0.1:1"))
    async with scripted(local_vhost, two()):
        report = await run(gone, "web-1/timeline", api=True)
    assert report.exit_code == Exit.DONE
    assert len(report.notes) == 1
    assert "not checked with the broker's list of consumers" in report.notes[0]


@scenario
async def test_given_tasks_that_run_then_wait_ends_when_a_reading_has_none_or_the_process_is_gone(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    # given two processes that stop at once, each with a task that runs on
    host = two()
    for process in host.processes:
        process.script = lambda command: {"state": "paused", "running": 1}
    async with scripted(local_vhost, host) as connection:
        work = working(inventory, "web-1/timeline")
        login = login_for(inventory.broker, inventory.path, prefer_environment=False)
        task = asyncio.ensure_future(
            work.run(login, None, connect_timeout_s=PATIENT_S, timeout_s=PATIENT_S, wait_s=PATIENT_S)
        )
        await until("the tasks are waited for", lambda: "2 running tasks" in work._waits_for)

        # when one says that its task is over, and the other's process dies
        consumer = ConsumerReading("timeline", "timeline", "paused", running=0)
        reading = Reading(time.time() + 1, "web-1", 0, 10, "machine", 0.0, 10.0, (consumer,))
        await publish_reading(connection, reading)
        await until("one is over", lambda: "1 running tasks" in work._waits_for)
        assert not task.done()
        host.processes[1].state = ProcessState.ENDED
        report = await task

    # then nothing runs any more
    assert [row.running for row in report.rows] == [0, 0]
    assert (report.exit_code, report.notes) == (Exit.DONE, ())


@scenario
async def test_given_a_task_that_runs_on_then_wait_ends_in_time_and_the_exit_code_says_so(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    host.processes[0].script = lambda command: {"state": "paused", "running": 1}
    async with scripted(local_vhost, host):
        report = await run(inventory, "web-1/timeline", wait_s=SHORT_S)
    assert report.exit_code == Exit.PARTLY
    assert report.notes == ("1 task still runs after 0.4 s: qctl/web-1/timeline/0",)


@scenario
async def test_given_an_alarm_then_nothing_is_given_not_even_when_it_ends(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    async with scripted(local_vhost, host):
        blocked = pytest.raises(BrokerBlocked, match=r"^not given: the broker takes no events")
        with alarm(local_vhost.broker), blocked as caught:
            await run(inventory, "web-1/timeline")
        assert caught.value.exit_code == 75
        # when the alarm is over and another command is given
        report = await run(inventory, "web-1/mails", timeout_s=SHORT_S)
    # then that is the only one that came
    assert [command.id for command in host.heard] == [report.confirmed[0].id]


@scenario
async def test_given_a_broker_that_is_lost_half_way_then_it_says_that_the_command_holds(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    host.processes[1].script = keeps_silent
    async with scripted(local_vhost, host):
        work = working(inventory, "web-1/timeline")
        login = login_for(inventory.broker, inventory.path, prefer_environment=False)
        task = asyncio.ensure_future(work.run(login, None, connect_timeout_s=PATIENT_S, timeout_s=PATIENT_S))
        await until("one has answered", lambda: any(row.state == "paused" for row in work.report.rows))
        asking = work._asking
        assert asking is not None
        asking.connection.abort("cut by the test")
        with pytest.raises(BrokerUnreachable, match=r"^the command was confirmed and holds") as caught:
            await task
    assert caught.value.exit_code == 4
    assert standings(work.report)["web-1/timeline/0"] is Standing.PROVEN


@scenario
async def test_given_a_user_who_may_not_publish_commands_then_nothing_is_given(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    api, vhost = local_vhost.broker.api, local_vhost
    await run(inventory, "web-1/timeline", timeout_s=SHORT_S)  # everything is declared
    api("PUT", "/users/guest-of-test", {"password": "secret", "tags": ""})
    try:
        rights = {"configure": r"qctl\..*", "write": r"qctl\.replies.*", "read": ".*"}
        api("PUT", f"/permissions/{vhost.name}/guest-of-test", rights)
        login = replace(
            login_for(inventory.broker, inventory.path, prefer_environment=False),
            username="guest-of-test",
            password="secret",
        )
        with pytest.raises(BrokerRefused, match=r"^not given") as caught:
            await working(inventory, "web-1").run(login, None, connect_timeout_s=PATIENT_S, timeout_s=SHORT_S)
    finally:
        api("DELETE", "/users/guest-of-test")
    assert caught.value.exit_code == 5


def test_who_is_not_an_operator_is_told_before_anything_is_given(inventory: Inventory) -> None:
    with pytest.raises(BrokerRefused, match="'mallory' is not an operator"):
        check_operator(replace(inventory, operators=("oncall",)), "mallory")
    check_operator(replace(inventory, operators=("oncall",)), "oncall")
    check_operator(inventory, "anybody")
    private = replace(inventory, operators=("oncall",), broker=replace(inventory.broker, local=True))
    with pytest.raises(BrokerRefused) as caught:
        check_operator(private, "qctl")
    assert "QCTL_USERNAME" not in caught.value.hint
    assert "`broker: local` has the user 'qctl' alone" in caught.value.hint


async def qctl(inventory: Inventory, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """The command as a shell runs it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qctl", "-i", str(inventory.path), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@scenario
async def test_the_whole_command_prints_its_document_and_ends_with_its_code(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    host = two()
    async with scripted(local_vhost, host):
        code, out, err = await qctl(inventory, "pause", "web-1/timeline", "--for", "10m", "-o", "json")
        host.processes[1].script = keeps_silent
        part, _, words = await qctl(inventory, "pause", "web-1/timeline", "--timeout", "300ms")
    document = json.loads(out)
    assert code == document["exit_code"] == 0
    assert [item["tag"] for item in document["items"]] == ["qctl/web-1/timeline/0", "qctl/web-1/timeline/1"]
    assert {item["proof"] for item in document["items"]} == {"proven"}
    assert document["events"] == [{"id": host.heard[0].id, "target": {"host": "web-1", "consumer": "timeline"}}]
    assert document["until"] is not None
    assert "2 proven" in err
    assert part == 3
    assert "1 proven, 1 NOT proven" in words


@scenario
async def test_an_interrupt_says_whether_the_command_holds(local_vhost: Vhost, inventory: Inventory) -> None:
    host = two()
    host.processes[1].script = keeps_silent
    async with scripted(local_vhost, host):
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "qctl",
                "-i",
                str(inventory.path),
                "pause",
                "web-1/timeline",
                "--timeout",
                "1h",
                "-ojson",
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await until("the supervisor has answered and is asked again", lambda: host.questions > 1)
        process.terminate()
        out, err = await process.communicate()
    assert process.returncode == 130
    assert b"interrupted; the command was confirmed and holds" in err
    document = json.loads(out)
    assert document["exit_code"] == 130
    assert [item["tag"] for item in document["items"]] == ["qctl/web-1/timeline/0", "qctl/web-1/timeline/1"]
