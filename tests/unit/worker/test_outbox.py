"""What a task enqueues while it runs: checked at once, kept in order, within bounds, and nothing once it is over."""

from __future__ import annotations

import json
import pickle
import threading

import pytest

from qctl.broker.message import Message, Properties
from qctl.errors import UnknownName, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.worker import outbox
from qctl.worker.exceptions import TimedOut
from qctl.worker.meter import Meter
from qctl.worker.outbox import Outbox
from qctl.worker.outcome import Ending, Outcome
from qctl.worker.task import Task


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://nowhere.invalid/"},
        "worker": {"max_body": "1KiB"},
        "quotas": {"api": "100/h"},
        "consumers": {
            "lines": {"queue": "work", "handler": {"exec": ["cat"]}, "quota": {"api": 1}},
            "mails": {"handler": {"exec": ["cat"]}, "quota": {}},
        },
        "hosts": {"web-1": None},
    }
    path = tmp_path_factory.mktemp("outbox") / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


@pytest.fixture
def task(inventory: Inventory) -> Task:
    def no_meter() -> Meter:
        raise AssertionError("nobody pays here")

    message = Message(b"{}", Properties())
    make_outbox = lambda: Outbox(inventory)  # noqa: E731
    return Task(message, host="web-1", consumer="lines", start_meter=no_meter, make_outbox=make_outbox)


def test_what_is_enqueued_is_kept_in_order_with_what_must_exist_for_it(task: Task) -> None:
    ids = [
        task.enqueue("lines", {"n": 1}),
        task.enqueue("mails", None, id="mine", delay="3s"),
        task.enqueue("lines", 2),
    ]

    found = task.followups()

    assert [one.properties.message_id for one in found.messages] == ids
    assert ids[1] == "mine"
    assert [(one.exchange, one.routing_key, one.body) for one in found.messages] == [
        ("qctl.tasks", "work", b'{"n":1}'),
        ("qctl.retry", "mails", b"null"),
        ("qctl.tasks", "work", b"2"),
    ]
    assert {"work", "mails", "qctl.retry.5s"} <= {getattr(one, "name", "") for one in found.declarations}


def test_a_task_that_enqueues_nothing_has_nothing(task: Task) -> None:
    assert task.followups().messages == ()


@pytest.mark.parametrize("end", [Task.stop, Task.followups])
def test_once_it_is_over_nothing_more_is_enqueued(task: Task, end: object) -> None:
    task.enqueue("lines", 1)
    end(task)  # type: ignore[operator]

    with pytest.raises(TimedOut, match="nothing more is enqueued"):
        task.enqueue("lines", 2)
    assert len(task.followups().messages) == 1


def test_a_task_that_is_over_before_it_enqueues_anything_is_refused_too(task: Task) -> None:
    task.followups()
    with pytest.raises(TimedOut, match="the task is over; nothing more"):
        task.enqueue("lines", 1)
    assert task.followups().messages == ()


def test_a_mistake_is_said_at_once_and_enqueues_nothing(task: Task) -> None:
    with pytest.raises(UnknownName):
        task.enqueue("line", 1)
    with pytest.raises(UsageError, match="longer than 1KiB"):
        task.enqueue("lines", "x" * 1024)
    assert task.followups().messages == ()


def test_the_number_and_the_size_of_all_are_bounded(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_ENQUEUED", 2)
    task.enqueue("lines", 1)
    task.enqueue("lines", 2)
    with pytest.raises(UsageError, match="a task may enqueue 2 others"):
        task.enqueue("lines", 3)

    monkeypatch.setattr(outbox, "MAX_ENQUEUED", 100)
    monkeypatch.setattr(outbox, "MAX_ENQUEUED_BYTES", 10)
    with pytest.raises(UsageError, match="a task may enqueue 100 others"):
        task.enqueue("lines", "123456789")
    assert [one.body for one in task.followups().messages] == [b"1", b"2"]


def test_threads_of_a_handler_enqueue_into_one_outbox(task: Task) -> None:
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        for _ in range(25):
            task.enqueue("lines", 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(task.followups().messages) == 200


def test_it_travels_between_processes_as_it_is(task: Task) -> None:
    task.enqueue("lines", 1, cost={"api": 2})
    outcome = Outcome(Ending.ACK, followups=task.followups())

    assert pickle.loads(pickle.dumps(outcome)) == outcome  # noqa: S301
