"""F30: a consumer is paused, and then everything else goes wrong. The histories say whether a task of it started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from statistics import quantiles

from tests.faults.operators import Operator, acknowledged, monotonic_ns, operator, tag_lines
from tests.faults.orders import Orders, orders, seconds_of
from tests.faults.rows import row
from tests.faults.scene import Scene, ended_at_last
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import wire

PROCESSES = 2
TASK_S = 0.05
#: Far more than is done before a pause; what is left must not start.
TASKS = 3000
#: How long nothing may start after a fault, watched while the others work.
WATCH_S = 1.5
ACK_P99_S = 2.0
#: What the broker gives up a silent connection after, and more.
STOPPED_S = 60.0
HEARTBEAT_S = 10.0


def _busy(scene: Scene, **sections: object) -> Worker:
    """Two processes, busy with tasks of `plain`."""
    scene.stage(**sections)
    worker = scene.start(processes=PROCESSES)
    scene.await_ended(scene.enqueue("calls", 40, s=TASK_S))  # so that every thread of theirs is there
    scene.enqueue("plain", TASKS, s=TASK_S)
    wait_until("every thread at work", lambda: len(scene.stamps("started", "plain")) >= 40)
    return worker


def _consumers(scene: Scene, queue: str) -> int:
    """Consumers of a queue, as it says itself."""
    with wire(scene.vhost) as own:
        return int(own.channel.queue_declare(queue, passive=True).method.consumer_count)


def _is_back(scene: Scene) -> bool:
    """Whether every process consumes what is not paused."""
    return _consumers(scene, "calls") == PROCESSES


def _works(scene: Scene) -> None:
    """What is not paused works: every process consumes it, and its tasks are done; what is paused has no consumer."""
    wait_until("the other consumer everywhere", lambda: _is_back(scene))
    scene.await_ended(scene.enqueue("calls", 8))
    time.sleep(WATCH_S)
    assert _consumers(scene, "plain") == 0
    with wire(scene.vhost) as own:
        assert own.depth("plain"), "there is nothing left that could start"


def _restart(scene: Scene, worker: Worker) -> Worker:
    """kill -9 of all of a host, and start it again."""
    worker.kill()
    return scene.start(processes=PROCESSES, consumers=("calls",))


def _kill_one(worker: Worker) -> None:
    victim = worker.pids()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until("another process in its place", lambda: len(worker.pids()) == PROCESSES and victim not in worker.pids())


@row(
    "F30",
    "a pause, then kill -9 of a process, close_all_connections, kill -9 of the group and a restart",
    selected=True,
)
def test_a_pause_outlives_what_dies(scene: Scene) -> None:
    # Given a busy consumer that is paused
    worker = _busy(scene)
    someone = Operator(scene)
    done = someone.pause("web-1/plain", "--wait", "--reason", "the upstream asked for it")
    scene.record.figure("tags that proved it", done.proofs().count("proven"), equals=PROCESSES)
    scene.steady()

    # When what runs it dies, in part and as a whole, then it stays paused each time
    if scene.thorough:
        _kill_one(worker)
        _works(scene)
        scene.vhost.ctl("close_all_connections", "closed by a test")
        _works(scene)
    worker = _restart(scene, worker)
    _works(scene)

    # And once it is resumed its tasks are done, each of them once
    someone.resume("web-1/plain")
    scene.hurry()
    scene.await_ended()
    scene.record.figure("slowest `qctl pause`, s", done.seconds)


@row("F30", "a pause, then the broker is stopped and started")
def test_a_pause_outlives_a_broker_that_stops(scene: Scene) -> None:
    _busy(scene)
    someone = Operator(scene)
    someone.pause("web-1/plain", "--wait")
    scene.steady()

    broker = scene.vhost.broker
    broker.stop_app()
    with ended_at_last(broker.start_app):
        time.sleep(3.0)

    _works(scene)
    someone.resume("web-1/plain")
    scene.hurry()
    scene.await_ended()


@row("F30", "a pause of a host that is down: stopped in order, and killed a moment ago")
def test_a_host_that_is_down_obeys_when_it_starts(scene: Scene) -> None:
    someone = Operator(scene)
    worker = _busy(scene)

    # Given a host that said goodbye, when its consumer is paused, then that is said, and it is so when it starts
    assert worker.stop() == 0
    done = someone.pause("web-1/plain")
    scene.record.figure("rows that say down, of a host that was stopped", done.proofs().count("down"), at_least=1)
    assert set(done.proofs()) == {"down"}, done.rows
    worker = scene.start(processes=PROCESSES, consumers=("calls",))
    _works(scene)
    someone.resume("web-1/plain")
    wait_until("it works again", lambda: _consumers(scene, "plain") == PROCESSES)
    before = scene.count("started")
    scene.await_count("started", before + 20)

    # Given one that was killed a moment ago, then whatever is said is true
    worker.kill()
    done = someone.run("pause", "web-1/plain", "--yes")
    someone.note(done)
    scene.record.note(f"Killed a moment ago: exit {done.code}, {' '.join(done.proofs())}.")
    assert done.code in (0, 1, 3), done
    assert "proven" not in done.proofs(), done.rows
    scene.start(processes=PROCESSES, consumers=("calls",))
    _works(scene)
    scene.may_duplicate = PROCESSES * 4
    someone.resume("web-1/plain")
    scene.hurry()
    scene.await_ended()


@row("F30", "a pause given twice, then one resume")
def test_one_resume_lifts_what_was_given_twice(scene: Scene) -> None:
    worker = _busy(scene)
    someone = Operator(scene)
    someone.pause("web-1/plain", "--reason", "first")
    again = someone.pause("web-1/plain", "--reason", "second")
    assert again.proofs() == ["proven"] * PROCESSES, again.rows
    _restart(scene, worker)
    _works(scene)

    someone.resume("web-1/plain")
    wait_until("it works again", lambda: _consumers(scene, "plain") == PROCESSES)
    scene.may_duplicate = PROCESSES * 4  # the second pause does not wait for what runs
    scene.hurry()
    scene.await_ended()


@row("F30", "two operators pause at once; a third user is no operator")
def test_two_operators_at_once_are_both_obeyed_and_a_stranger_is_not(scene: Scene) -> None:
    # Given two operators, and somebody whom the broker lets publish and the inventory does not name
    first, second, stranger = (scene.keep(operator(scene, name)) for name in ("ada", "bob", "mallory"))
    _busy(scene, operators=[first.name, second.name])

    # When the stranger pauses, then he is refused, and nothing happens
    refused = stranger.run("pause", "web-1/plain", "--yes")
    scene.record.figure("exit code of who is no operator", refused.code, equals=5)
    started = scene.count("started")
    scene.await_count("started", started + 20)

    # When two operators pause at once, then both are told that it is proven
    running = [one.begin("pause", "web-1/plain", "--yes", "--reason", one.name) for one in (first, second)]
    both = [one.finish(process) for one, process in zip((first, second), running, strict=True)]
    for done in both:
        assert done.code == 0, (done.rows, done.stderr)
        first.note(done)
    scene.record.figure(
        "pauses that both proved", sum(done.proofs() == ["proven"] * PROCESSES for done in both), equals=2
    )
    with orders(scene.vhost) as own:
        users = [one.user for one in own.log() if one.verb == "pause"]
    scene.record.figure("events of the two in the log", len({first.name, second.name} & set(users)), equals=2)

    # And a resume of one of them lifts what both paused
    _works(scene)
    first.resume("web-1/plain")
    scene.hurry()
    scene.await_ended()


@row("F30", "names that nothing has: host, consumer, queue, tag")
def test_an_unknown_target_is_refused_and_nothing_is_published(scene: Scene) -> None:
    _busy(scene)
    someone = Operator(scene)
    with orders(scene.vhost) as own:
        wait_until("the log", lambda: len(own.log()) >= PROCESSES)
        targets: list[Sequence[str]] = [
            ("web-1/plian",),
            ("web-9/plain",),
            ("web-9",),
            ("*/plian",),
            ("--consumer", "plian"),
            ("--queue", "plian"),
            ("--tag", "qctl/web-1/plian/0"),
            ("--group", "large"),
            ("web-1/",),
            ("",),
            (),
        ]
        wrong = []
        for target in targets:
            done = someone.run("pause", *target, "--yes")
            if done.code != 2:
                wrong.append(f"{target}: exit {done.code}: {done.stderr}")
        scene.record.figure("unknown targets", len(targets))
        scene.record.figure("of them not refused with exit code 2", len(wrong), equals=0)
        assert not wrong
        nearest = someone.run("pause", "web-1/plian", "--yes").stderr
        scene.record.figure("the nearest name is said", "plain" in nearest, equals=1)
        given = [one for one in own.log() if one.exchange == "qctl.control"]
        scene.record.figure("events published", len(given), equals=0)
    scene.hurry()
    scene.await_ended()


@row("F30", "a pause, then the beginning of the control log is cut off by a policy", timeout_s=400)
def test_a_log_that_was_cut_off_never_means_that_nothing_is_paused(scene: Scene) -> None:
    # Given a log in short segments, and a pause in the first of them
    limits = {"stream-max-segment-size-bytes": 50_000}
    _policy(scene, limits)
    worker = _busy(scene)
    someone = Operator(scene)
    someone.pause("web-1/plain", "--wait")

    # When its beginning is cut off while the host follows it, and all connections break
    _policy(scene, {**limits, "max-length-bytes": 200_000})
    before = len(worker.log())
    with orders(scene.vhost) as own:
        _fill(own)
        wait_until("the beginning is gone", lambda: not any(one.verb == "pause" for one in own.log()))
    scene.vhost.ctl("close_all_connections", "closed by a test")

    # Then it goes on from what it knows, with the pause kept; or, when it cannot, it is down
    wait_until("it is back, or why not", lambda: _is_back(scene) or "was cut off" in worker.log()[before:])
    is_back = _is_back(scene)
    scene.record.note(f"Cut off while it was followed: {'it went on from what it knew' if is_back else 'it was down'}.")
    if is_back:
        _works(scene)
    assert _consumers(scene, "plain") == 0

    # When more is cut off while it is down, so that what it knew last is gone too
    assert worker.stop() == 0
    with orders(scene.vhost) as own:
        _fill(own)
    before = len(worker.log())
    worker = scene.start(processes=PROCESSES, consumers=())
    wait_until("why it is down", lambda: "was cut off" in worker.log()[before:])
    started = scene.count("started")
    time.sleep(2 * WATCH_S)
    assert not tag_lines(scene, "qctl/.*")
    scene.record.figure("starts while nobody knows what holds", scene.count("started") - started, equals=0)

    # And when the stream is deleted it is declared anew with nothing in it, and who knew of the pause still does
    scene.vhost.broker.api("DELETE", f"/policies/{scene.vhost.name}/short")
    with wire(scene.vhost) as other:
        other.channel.queue_delete("qctl.control.log")
    _works(scene)
    someone.resume("web-1/plain")
    scene.hurry()
    scene.await_ended()


def _policy(scene: Scene, limits: dict[str, int]) -> None:
    policy = {"pattern": "^qctl[.]control[.]log$", "definition": limits, "apply-to": "queues"}
    scene.vhost.broker.api("PUT", f"/policies/{scene.vhost.name}/short", policy)


def _fill(own: Orders) -> None:
    """Two megabytes of what nobody understands."""
    for _ in range(100):
        own.send(b"x" * 20_000, exchange="qctl.hello", key="", reply_to="")


@row("F30", "a pause while one of two processes is stopped by a signal for 60 s", timeout_s=400)
def test_what_a_stopped_process_may_do_is_said_and_no_more_is_done(scene: Scene) -> None:
    # Given a process that is stopped, with tasks in its hands
    worker = _busy(scene)
    someone = Operator(scene)
    scene.steady()
    victim = worker.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    with ended_at_last(lambda: os.kill(victim, signal.SIGCONT)):
        stopped_s = time.monotonic()

        # When its consumer is paused, then it is said that this one has not proven it, and until when it may start some
        done = someone.pause("web-1/plain", code=3, pids=worker.pids())
        assert done.proofs() == ["proven", "unproven"], done.rows
        (unproven,) = [one for one in done.rows if one["proof"] == "unproven"]
        until_s = (monotonic_ns(seconds_of(unproven["may_start_until"])) - done.ended_ns) / 1e9
        scene.record.figure("may start until, s after the command's end", until_s, at_most=2 * HEARTBEAT_S + 1)
        time.sleep(max(0.0, STOPPED_S - (time.monotonic() - stopped_s)))

    # And when it wakes up it starts nothing, and a later pause is proven
    _works(scene)
    later = someone.pause("web-1/plain")
    assert later.proofs() == ["proven"] * PROCESSES, later.rows
    someone.resume("web-1/plain")
    scene.may_duplicate = 4
    scene.hurry()
    scene.await_ended()
    scene.record.figure(
        "channels closed for an unknown delivery (406)", worker.log().count("406 PRECONDITION"), equals=0
    )


@row("F30", "timed pauses that end while the worker is being started again, and while it is down")
def test_a_timed_pause_ends_by_itself_whatever_becomes_of_the_worker(scene: Scene) -> None:
    someone = Operator(scene)
    worker = _busy(scene)

    # Given a timed pause, when the host is killed and started meanwhile, then it holds until its end and no longer
    at_ns = _timed(someone, "12s")
    worker = _restart(scene, worker)
    assert time.monotonic_ns() < at_ns, "the worker was back too late to tell"
    first = wait_until("a start", lambda: [at for at in scene.stamps("started", "plain") if at > at_ns])[0]
    scene.record.figure("first start after the end of a pause, s", (first - at_ns) / 1e9, at_most=2)

    # Given one that ends while the host is down, then it is over when it starts
    at_ns = _timed(someone, "4s")
    assert worker.stop() == 0
    wait_until("its end", lambda: time.monotonic_ns() > at_ns)
    scene.start(processes=PROCESSES)
    scene.may_duplicate = PROCESSES * 4
    scene.hurry()
    scene.await_ended()


def _timed(someone: Operator, how_long: str) -> int:
    """Pause for a while; the instant at which it ends by itself."""
    done = someone.pause("web-1/plain", "--for", how_long)
    at_ns = monotonic_ns(seconds_of(done.document["until"]))
    someone.lifting("web-1/plain", at_ns)
    return at_ns


@row("F30", "a hold that ends under a pause; a resume during a hold", timeout_s=400)
def test_a_hold_and_a_pause_leave_each_other_alone(scene: Scene) -> None:
    # Given a consumer that is held since its quota is spent
    limit, window_s = 20, 10.0
    scene.stage(limit=limit, window_s=window_s)
    someone = Operator(scene)
    worker = scene.start()
    names = scene.enqueue("calls", 3 * limit)
    worker.await_log("calls held")

    # When it is paused, and the quota returns, then it stays paused
    done = someone.pause("web-1/calls")
    assert done.proofs() == ["proven"], done.rows
    called = scene.count("called")
    time.sleep(window_s + 2.0)
    scene.record.figure("calls after its quota returned", scene.count("called") - called, equals=0)
    assert _consumers(scene, "calls") == 0

    # When it is resumed it works, until it is held again; and a pause and a resume during the hold leave it held
    held = worker.log().count("web-1/calls held")
    someone.resume("web-1/calls")
    wait_until("held again", lambda: worker.log().count("web-1/calls held") > held)
    someone.pause("web-1/calls")
    called = scene.count("called")
    someone.resume("web-1/calls")
    listed = _consumers(scene, "calls")
    assert scene.count("called") == called, "the hold was over too soon to tell"
    scene.record.figure("consumers while it is held, after a resume", listed, equals=0)
    scene.await_ended(names, timeout_s=60)


@row("F30", "100 pauses and resumes of a busy consumer of two processes: how soon each is acknowledged")
def test_pauses_are_acknowledged_soon_and_nothing_starts_after(scene: Scene) -> None:
    rounds = 100
    _busy(scene)
    someone = Operator(scene)
    taken_s = []
    with orders(scene.vhost) as own:
        scene.steady()
        for _ in range(rounds):
            given = own.give("pause", {"host": "web-1", "consumer": "plain"})
            answers = own.answers(given, PROCESSES)
            scene.history.write(acknowledged(answers))
            taken_s.append((max(one.heard_ns for one in answers) - given.confirmed_ns) / 1e9)
            time.sleep(0.02)
            someone.lifting("web-1/plain")
            own.answers(own.give("resume", {"host": "web-1", "consumer": "plain"}), PROCESSES)
            time.sleep(0.03)
    percentiles = quantiles(taken_s, n=100, method="inclusive")
    scene.record.figure("pauses", rounds)
    scene.record.figure("acknowledged by both processes, p50, s", percentiles[49])
    scene.record.figure("acknowledged by both processes, p99, s", percentiles[98], at_most=ACK_P99_S)
    scene.hurry()
    scene.await_ended()
