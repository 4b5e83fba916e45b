"""F33: queues that nobody bound, and queues that take no more: what was said to be enqueued is, and nothing else."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress

import pika.exceptions
import pytest

import qctl
from qctl.errors import BrokerBlocked, Exit, QctlError
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

#: A queue refuses some time after it is as long as this.
LONGEST = 5
CHILDREN = 30
HANDLERS = f"""
    def parent(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name)
        for number in range({CHILDREN}):
            task.enqueue("plain", {{"task": f"{{name}}-{{number}}"}})
        mark("done", name)
"""


def limit(scene: Scene) -> None:
    """From now on the queue `plain` refuses what is more than a few."""
    policy = json.dumps({"max-length": LONGEST})
    scene.vhost.ctl("set_policy", "short", "^plain$", policy, "--apply-to", "queues")


def fill(scene: Scene) -> None:
    """Put tasks into the queue `plain` until it refuses one: it notices how long it is a little late."""
    scene.enqueue("plain", 1)
    limit(scene)
    with wire(scene.vhost) as own:
        for number in range(10_000):
            name = f"filler-{number}"
            scene.history.note("attempted", [name])
            try:
                own.task("plain", {"task": name}, message_id=name)
            except pika.exceptions.NackError:
                return
            scene.history.note("confirmed", [name])
    raise AssertionError("the queue refuses nothing")


def depth(scene: Scene, queue: str) -> int:
    with wire(scene.vhost) as own:
        return own.depth(queue)


@row("F33", "a queue refuses while a command enqueues; then there is room again", selected=True)
def test_what_was_refused_is_offered_again_until_it_is_in(scene: Scene) -> None:
    # Given a queue without a worker, which takes a few tasks and no more
    scene.stage()
    fill(scene)

    # When more are enqueued, and a worker comes only after that
    running = scene.enqueue_meanwhile("plain", 300)
    with wire(scene.vhost) as own:
        wait_until("the command is there", lambda: _commands(scene))
        scene.record.figure("in before there is room", own.depth("plain"), at_most=2 * LONGEST)
    scene.start(consumers=("plain",))
    done = running.finish()

    # Then the command has them all in, each once
    scene.record.figure("exit code", done.code, equals=0)
    scene.record.figure("said to be confirmed", done.confirmed, equals=300)


@row("F33", "a queue refuses for good while a command enqueues")
def test_a_command_that_is_refused_for_good_says_how_many_are_in(scene: Scene) -> None:
    scene.stage()
    fill(scene)
    before = depth(scene, "plain")

    done = scene.enqueue_meanwhile("plain", 300).finish()

    # Then it says "try again", and its count is what has come into the queue
    scene.record.figure("exit code", done.code, equals=int(Exit.TRY_AGAIN))
    scene.record.figure("said and not there", done.confirmed - (depth(scene, "plain") - before), equals=0)
    scene.record.figure("gave up after, s", done.seconds, at_most=65)
    scene.start(consumers=("plain",))


@row("F33", "the queue is unbound while a command enqueues", selected=True)
def test_an_unroutable_task_ends_the_command_with_the_true_count(scene: Scene) -> None:
    # Given a command that waits for more lines, and has five in
    scene.stage()
    names = [f"plain-{number}" for number in range(8)]
    lines = [json.dumps({"task": name}).encode() + b"\n" for name in names]
    scene.history.note("attempted", names)
    command = [*scene.fleet.command, "-o", "json", "enqueue", "plain", "--file", "-"]
    where = {"env": scene.fleet.environment, "cwd": scene.directory, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **where) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(lines[:5]))
        process.stdin.flush()
        wait_until("five are in", lambda: _there(scene) == 5)

        # When somebody unbinds its queue, and three more come
        with wire(scene.vhost) as own:
            own.channel.queue_unbind("plain", "qctl.tasks", "plain")
        stdout, stderr = process.communicate(b"".join(lines[5:]), timeout=60)

    # Then it fails, and says what is true
    said = json.loads(stdout)
    scene.record.figure("exit code", process.returncode, equals=int(Exit.FAILED))
    scene.record.figure("said to be confirmed", said["confirmed"], equals=5)
    assert b"no queue took the task" in stderr
    assert f"continue with --skip {said['skip']}" in stderr.decode()

    # and where it says, one can go on
    skip = ["--skip", str(said["skip"])]
    again = subprocess.run([*command, *skip], input=b"".join(lines), check=True, **where)
    assert json.loads(again.stdout)["confirmed"] == 3
    scene.history.note("confirmed", names)
    scene.start(consumers=("plain",))


def _commands(scene: Scene) -> bool:
    """Whether a `qctl enqueue` is connected."""
    return "qctl enqueue" in scene.vhost.broker.ctl("list_connections", "client_properties")


def _there(scene: Scene) -> int:
    with suppress(pika.exceptions.ChannelClosedByBroker):
        return depth(scene, "plain")
    return 0


@row("F33", "the queue of an application's tasks refuses, and is unbound", selected=True)
def test_a_client_raises_for_what_is_not_in(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an application whose queue is soon full
    scene.stage()
    for name, value in scene.vhost.environment().items():
        monkeypatch.setenv(name, value)
    names = [f"plain-{number}" for number in range(60)]
    scene.history.note("attempted", names)
    refused, in_doubt = set(), set()
    with qctl.Client(scene.directory / "inventory.yaml", timeout_s=1.0) as client:
        for name in names:
            try:
                client.enqueue("plain", {"task": name})
                scene.history.note("confirmed", [name])
            except QctlError as error:
                assert isinstance(error, BrokerBlocked)
                (refused if "it is not enqueued" in error.message else in_doubt).add(name)
            if name == names[0]:
                limit(scene)
            if len(refused) == 2:
                break

        # When there is room again and the queue is unbound, then the client binds it and goes on
        scene.start(consumers=("plain",))
        with wire(scene.vhost) as own:
            own.channel.queue_unbind("plain", "qctl.tasks", "plain")
        client.enqueue("plain", {"task": names[-1]})
        scene.history.note("confirmed", [names[-1]])

    # Then none of what was said not to be in has run
    scene.await_ended()
    scene.record.figure("refused", len(refused), equals=2)
    scene.record.figure("in doubt", len(in_doubt))
    scene.record.figure("refused and run all the same", len(refused & scene.history.tasks("done")), equals=0)


@row("F33", "the queue that a task enqueues for refuses; its worker is killed meanwhile", selected=True)
def test_what_a_task_enqueued_is_not_lost_with_its_worker(scene: Scene) -> None:
    # Given a task whose children do not all go in, so that it is held unacknowledged
    consumers = {
        "parent": {"handler": {"python": "handlers:parent"}, "quota": {}, "concurrency": 1},
        "plain": {"handler": {"python": "handlers:plain"}, "quota": {}, "concurrency": 4},
    }
    hosts = {"web-1": {"consumers": {"parent": {}}}, "web-2": {"consumers": {"plain": {}}}}
    scene.stage("web-1", "web-2", consumers=consumers, handlers=HANDLERS, hosts=hosts)
    fill(scene)
    worker = scene.start(consumers=("parent",))
    (parent,) = scene.enqueue("parent", 1)
    children = [f"{parent}-{number}" for number in range(CHILDREN)]
    scene.history.note("attempted", children)
    worker.await_log("held: broker takes no retries: qctl.tasks plain")

    # When its worker is killed, and there is room once it is back
    worker.kill()
    scene.start("web-2", consumers=("plain",))
    scene.start(consumers=("parent",))

    # Then it runs again, and every child is there
    scene.history.note("confirmed", children)
    scene.may_duplicate = 1 + CHILDREN
    scene.await_ended()
