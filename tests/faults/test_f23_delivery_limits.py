"""F23: tasks given back again and again to a queue whose delivery limit is low, and dead letters looked at."""

from __future__ import annotations

import time

from tests.faults.operators import Operator, acknowledged
from tests.faults.orders import orders
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

PAUSES, LIMIT = 30, 20
#: What waits in a worker each time: as many as it has threads, which are all busy for as long as this takes.
PREFETCH, BUSY_S = 10, 25.0
TASKS = 20
TARGET = {"host": "web-1", "consumer": "theirs"}
LOOKS, DEAD = 100, 5

REJECTS = """
    from qctl import Reject

    def rejects(task):
        raise Reject("never")
"""


@row("F23", "30 pauses and resumes in a row, foreign queue with limit 20, P = 10", timeout_s=300)
def test_what_is_given_back_thirty_times_to_a_queue_with_a_low_limit_lives(scene: Scene) -> None:
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "graveyard",
    }
    someone, given_back = Operator(scene), 0
    with wire(scene.vhost) as own, orders(scene.vhost) as program:
        # Given somebody else's queue, which buries what came back more than twenty times, and a worker whose threads
        # are all busy
        own.channel.queue_declare("theirs", durable=True, arguments=arguments)
        own.channel.queue_declare("graveyard", durable=True, arguments={"x-queue-type": "quorum"})
        theirs = {
            "handler": {"python": "handlers:plain"},
            "quota": {},
            "concurrency": PREFETCH,
            "declare": False,
        }
        scene.stage(consumers={"theirs": theirs})
        worker = scene.start(consumers=("theirs",))
        scene.enqueue("theirs", PREFETCH, s=BUSY_S)
        scene.await_count("started", PREFETCH)
        scene.enqueue("theirs", TASKS)

        # When it is paused and resumed thirty times, and each time has ten more in its hands that it cannot start
        for _ in range(PAUSES):
            answers = program.answers(program.give("pause", TARGET))
            scene.history.write(acknowledged(answers))
            given_back += sum(row["given_back"] for answer in answers for row in answer.said["rows"])
            someone.lifting("web-1/theirs")
            program.answers(program.give("resume", TARGET))
            time.sleep(0.15)  # so that it has them again
        scene.record.figure("pauses", PAUSES)
        # The first pause finds what the threads run.
        scene.record.figure("given back, of 10 each time", given_back, at_least=(PAUSES - 1) * PREFETCH)
        scene.record.figure("tasks started meanwhile", scene.count("started") - PREFETCH, equals=0)

        # Then none of them is buried, and each runs once
        scene.await_ended(timeout_s=120)
        scene.record.figure("buried", own.depth("graveyard"), equals=0)
    assert "broker takes no retries" not in worker.log()


@row("F23", "100 looks at each of 5 dead letters")
def test_dead_letters_that_are_looked_at_a_hundred_times_are_all_there(scene: Scene) -> None:
    # Given five dead letters
    scene.stage(handlers=REJECTS, consumers={"sad": {"handler": {"python": "handlers:rejects"}, "quota": {}}})
    scene.start(consumers=("sad",))
    scene.enqueue("sad", DEAD)
    with wire(scene.vhost) as own:
        wait_until("they are dead", lambda: own.depth("sad.dead") == DEAD)

        # When somebody looks at them a hundred times, and puts them back as any program does
        for _ in range(LOOKS):
            seen = [own.channel.basic_get("sad.dead")[0] for _ in range(DEAD)]
            wait = [one for one in seen if one is not None]
            own.channel.basic_nack(wait[-1].delivery_tag, multiple=True, requeue=True)

        # Then all are there
        wait_until("all are back", lambda: own.depth("sad.dead") == DEAD)
    scene.record.figure("looks", LOOKS)
