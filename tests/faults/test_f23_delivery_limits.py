"""F23: tasks given back again and again to a queue whose delivery limit is low, and dead letters looked at."""

from __future__ import annotations

from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

HOLDS, LIMIT = 30, 20
#: What waits in a worker each time; more than the holds, since each lets one task through.
PREFETCH = 40
TASKS = PREFETCH + HOLDS
LOOKS, DEAD = 100, 5

REJECTS = """
    from qctl import Reject

    def rejects(task):
        raise Reject("never")
"""


@row("F23", "30 holds and returns in a row, foreign queue with limit 20, P = 40", selected=False, timeout_s=300)
def test_what_is_given_back_thirty_times_to_a_queue_with_a_low_limit_lives(scene: Scene) -> None:
    scene.record.note("`pause` is to come: a quota of one call a second holds the consumer, and lets one task through")
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "graveyard",
    }
    with wire(scene.vhost) as own:
        # Given somebody else's queue, which buries what came back more than twenty times
        own.channel.queue_declare("theirs", durable=True, arguments=arguments)
        own.channel.queue_declare("graveyard", durable=True, arguments={"x-queue-type": "quorum"})
        theirs = {
            "handler": {"python": "handlers:call"},
            "quota": {"api": 1},
            "concurrency": PREFETCH,
            "declare": False,
        }
        scene.stage(limit=1, window_s=1.0, consumers={"theirs": theirs}, worker={"hold_after": "50ms"})
        names = scene.enqueue("theirs", TASKS)

        # When a worker takes forty of its tasks and gives them back, thirty times
        worker = scene.start(consumers=("theirs",))
        wait_until("so many holds", lambda: worker.log().count("web-1/theirs held: ") >= HOLDS, timeout_s=150)
        scene.record.figure("holds", worker.log().count("web-1/theirs held: "), at_least=HOLDS)

        # Then none of them is buried, and each runs once
        scene.settles_within_s = 120.0
        scene.await_ended(names, timeout_s=120)
        scene.record.figure("buried", own.depth("graveyard"), equals=0)
    assert "broker takes no retries" not in worker.log()


@row("F23", "100 looks at each of 5 dead letters", selected=True)
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
