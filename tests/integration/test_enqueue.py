"""`qctl enqueue`: what it says is confirmed is there, as it was given; whatever goes wrong, it says what is true."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.brokers import Vhost
from tests.wire import depth, stranger, take_all

RUN_TIMEOUT_S = 60.0
CONSUMERS = {
    "work": {"quota": {"api": 1}},
    "either": {"quota": {"api": 1}, "directed": True},
    "brief": {"quota": {}, "persistent": False},
    "theirs": {"quota": {}, "declare": False},
}


class Shop:
    """A folder with an inventory, and the command run in it."""

    def __init__(self, directory: Path, broker: dict[str, Any]) -> None:
        self.directory = directory
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        inventory = {
            "version": 1,
            "broker": broker,
            "quotas": {"api": "1000/h", "mail": "10/d"},
            "consumers": {name: {"handler": {"exec": ["cat"]}, **more} for name, more in CONSUMERS.items()},
            "hosts": {"web-1": None, "web-2": None},
        }
        (directory / "inventory.yaml").write_text(json.dumps(inventory), encoding="utf-8")

    def run(self, *args: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """`qctl enqueue ARGS` to its end."""
        return commands.run(
            ["enqueue", *args],
            cwd=self.directory,
            env={**self.environment, **environment},
            input=stdin,
            timeout=RUN_TIMEOUT_S,
        )

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "qctl", "enqueue", *args]

    @contextmanager
    def stream(self, *args: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
        """`qctl enqueue ARGS --file -`, its stdin held open."""
        process = subprocess.Popen(
            self.command(*args, "--file", "-"),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **{"stderr": subprocess.PIPE, **more},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def file(self, *lines: str | bytes, name: str = "tasks.jsonl", end: bytes = b"\n") -> str:
        raw = [line.encode() if isinstance(line, str) else line for line in lines]
        (self.directory / name).write_bytes(b"".join(line + end for line in raw))
        return name


@pytest.fixture
def shop(local_vhost: Vhost, tmp_path: Path) -> Shop:
    """A shop whose broker is there."""
    return Shop(tmp_path, local_vhost.inventory_broker())


@pytest.fixture
def lonely(tmp_path: Path) -> Shop:
    """A shop whose broker must not be contacted: the attempt alone would show, and take its time."""
    return Shop(tmp_path, {"amqp": "amqp://192.0.2.1:5672/", "username": "u", "password": {"value": "p"}})


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """What was said on stderr, of which no run says a traceback."""
    text = done.stderr.decode()
    assert "Traceback" not in text
    return text


def feed(process: subprocess.Popen[bytes], *lines: str) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(line + "\n" for line in lines).encode())
    process.stdin.flush()


def end_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


def finish(process: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
    """The end of a stream's process; closes its stdin."""
    out, err = process.communicate(timeout=RUN_TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def await_true(what: str, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def numbered(numbers: Iterable[int]) -> list[str]:
    return [f'{{"n": {number}}}' for number in numbers]


class TestWhatArrives:
    def test_arguments_are_tasks_as_they_were_given(self, shop: Shop, local_vhost: Vhost) -> None:
        # when two values are enqueued, one with blanks of its own
        before_s = int(time.time())
        done = shop.run("work", '{"a" :  1} ', '"ü"')

        # then the command says so, and nothing else
        assert (done.returncode, done.stdout, said(done)) == (0, b"work: confirmed 2\n", "")
        # and they are in the queue byte for byte, each a persistent message with an id of its own
        first, second = take_all(local_vhost, "work")
        assert (first.body, second.body) == (b'{"a" :  1} ', '"ü"'.encode())
        assert first.properties.content_type == "application/json"
        assert first.properties.delivery_mode == 2
        assert before_s <= first.properties.timestamp <= time.time()
        assert not first.properties.headers
        assert first.properties.type is None
        assert uuid.UUID(first.properties.message_id) != uuid.UUID(second.properties.message_id)

    def test_options_are_in_the_message(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("work", "1", "--cost", "api=3", "--type", "mail", "--id", "job-17")
        assert done.returncode == 0, said(done)
        (found,) = take_all(local_vhost, "work")
        assert found.properties.headers == {"qctl-cost": {"api": 3}}
        assert (found.properties.type, found.properties.message_id) == ("mail", "job-17")

    def test_a_task_for_one_host_is_in_that_hosts_queue(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("either", "1", "--host", "web-2", "-o", "name")
        assert (done.returncode, done.stdout) == (0, b"either@web-2\n"), said(done)
        assert depth(local_vhost, "either@web-2") == 1
        assert depth(local_vhost, "either") == 0

    def test_a_delayed_task_waits_on_its_rung_and_comes_to_the_queue(self, shop: Shop, local_vhost: Vhost) -> None:
        # when a task is enqueued for later
        done = shop.run("work", "1", "--delay", "800ms")

        # then it comes to its queue, having waited in the room of the next longer delay
        assert done.returncode == 0, said(done)
        await_true("the task is there", lambda: depth(local_vhost, "work"))
        (found,) = take_all(local_vhost, "work")
        assert found.properties.headers["qctl-delay"] == "1s"
        assert found.properties.headers["x-first-death-queue"] == "qctl.retry.1s"

    def test_work_that_may_be_lost_is_not_persistent(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("brief", "1")
        assert done.returncode == 0, said(done)
        (found,) = take_all(local_vhost, "brief")
        assert found.properties.delivery_mode == 1

    def test_a_queue_of_somebody_else_is_used_as_it_is(self, shop: Shop, local_vhost: Vhost) -> None:
        with stranger(local_vhost) as channel:
            channel.queue_declare("theirs", durable=True, arguments={"x-max-length": 10})
        assert shop.run("theirs", "1").returncode == 0
        assert depth(local_vhost, "theirs") == 1


class TestLines:
    def test_a_file_of_lines(self, shop: Shop, local_vhost: Vhost) -> None:
        # given lines as files have them: blank ones, ends as on Windows, none at the end
        (shop.directory / "tasks.jsonl").write_bytes(b'{"n": 1}\n\n  \n "two" \r\n\r\n[3]')

        # when they are enqueued
        done = shop.run("work", "--file", "tasks.jsonl")

        # then each line is a task, untouched but for its end
        assert (done.returncode, done.stdout, said(done)) == (0, b"work: confirmed 3\n", "")
        assert [found.body for found in take_all(local_vhost, "work")] == [b'{"n": 1}', b' "two" ', b"[3]"]

    def test_stdin(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("work", "--file", "-", stdin="\n".join(numbered(range(2000))).encode())
        assert done.stdout == b"work: confirmed 2000\n", said(done)
        found = take_all(local_vhost, "work")
        assert [one.body.decode() for one in found] == numbered(range(2000))
        assert len({one.properties.message_id for one in found}) == 2000

    def test_an_empty_stream_is_no_error(self, shop: Shop) -> None:
        done = shop.run("work", "--file", "-", stdin=b"\n\n")
        assert (done.returncode, done.stdout) == (0, b"work: confirmed 0\n"), said(done)

    def test_skipped_lines_are_left_out_whatever_is_in_them(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("work", "--file", shop.file("nope", "", "3", "4"), "--skip", "2")
        assert done.stdout == b"work: confirmed 2\n", said(done)
        assert [found.body for found in take_all(local_vhost, "work")] == [b"3", b"4"]

    def test_a_bad_line_stops_it_and_the_skip_it_names_completes_exactly(self, shop: Shop, local_vhost: Vhost) -> None:
        # given a long file with a mistake
        lines = [*numbered(range(1500)), '{"n": 1500', *numbered(range(1501, 1600))]
        path = shop.file(*lines)

        # when it is enqueued
        done = shop.run("work", "--file", path)

        # then it is partly done, the line is named, and all before it is there
        assert done.returncode == 3
        assert re.search(rf"\b{path}:1501: not JSON: Expecting ',' delimiter at column 11; ", said(done))
        assert "confirmed 1500; continue with --skip 1500\n" in said(done)
        assert done.stdout == b""
        assert depth(local_vhost, "work") == 1500

        # when the line is mended and the rest is enqueued
        lines[1500] += "}"
        again = shop.run("work", "--file", shop.file(*lines), "--skip", "1500")

        # then every line is there exactly once
        assert again.stdout == b"work: confirmed 100\n", said(again)
        assert [found.body.decode() for found in take_all(local_vhost, "work")] == numbered(range(1600))

    def test_a_bad_line_of_stdin_is_named_too(self, shop: Shop) -> None:
        done = shop.run("work", "--file", "-", stdin=b"1\n\n\xff\n4\n")
        assert done.returncode == 3
        assert "<stdin>:3: not UTF-8 at byte 1; confirmed 1; continue with --skip 1" in said(done)

    def test_a_line_over_the_cap_is_a_bad_line(self, shop: Shop) -> None:
        done = shop.run("work", "--file", shop.file("1", '"' + "x" * (1 << 20) + '"'))
        assert done.returncode == 3
        assert "tasks.jsonl:2: longer than 1MiB (`worker.max_body`); confirmed 1; continue with --skip 1" in said(done)


class TestOutput:
    def test_as_json_the_numbers_are_a_document(self, shop: Shop) -> None:
        done = shop.run("work", "--file", shop.file("1", "", "3", ""), "-o", "json")
        document = json.loads(done.stdout)
        assert document.pop("seconds") > 0
        assert document == {"v": 1, "queue": "work", "confirmed": 2, "skip": 3, "maybe_twice": 0}
        assert said(done) == ""

    def test_as_json_lines_it_is_one(self, shop: Shop) -> None:
        done = shop.run("-o", "jsonl", "work", "1")
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["confirmed"] == 1

    def test_a_stream_that_ends_badly_has_its_numbers_as_json_too(self, shop: Shop) -> None:
        done = shop.run("work", "--file", shop.file("1", "2", "nope"), "-o", "json")
        assert done.returncode == 3
        assert json.loads(done.stdout)["skip"] == 2
        assert "--skip 2" in said(done)

    def test_progress_is_for_a_terminal_and_stdout_for_data(self, shop: Shop) -> None:
        # given a slow stream whose stderr is a terminal
        leader, follower = pty.openpty()
        with shop.stream("work", stderr=follower) as process:
            os.close(follower)
            feed(process, "1", "2")

            # when it has been watched for a while
            shown = ""
            while "work: confirmed 2" not in shown:
                shown += os.read(leader, 1000).decode()

            # then progress is drawn in place, and wiped at the end
            done = finish(process)
            shown += rest_of(leader)
        assert shown.endswith("\r\x1b[2K")
        assert "\n" not in shown
        # and stdout has the result alone
        assert (done.returncode, done.stdout) == (0, b"work: confirmed 2\n")

    def test_quiet_draws_nothing(self, shop: Shop, local_vhost: Vhost) -> None:
        leader, follower = pty.openpty()
        with shop.stream("work", "-q", stderr=follower) as process:
            os.close(follower)
            feed(process, "1")
            await_true("it is there", lambda: exists_with(local_vhost, "work", 1))
            time.sleep(0.5)  # twice the time after which it would be drawn
            done = finish(process)
        assert done.returncode == 0
        assert rest_of(leader) == ""


def rest_of(leader: int) -> str:
    """What a terminal still has to show, now that nobody writes to it any more; closes it."""
    shown = b""
    try:
        while True:
            shown += os.read(leader, 1000)
    except OSError:  # its other end is closed
        os.close(leader)
    return shown.decode()


def exists_with(vhost: Vhost, queue: str, count: int) -> bool:
    """Whether the queue is there and has that many messages."""
    if vhost.queue(queue) is None:
        return False
    return depth(vhost, queue) == count


class TestUsage:
    """Nothing is contacted for what can be seen to be wrong."""

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["wrok", "1"], ["no consumer 'wrok'", "work"]),
            (["either", "1", "--host", "web1"], ["no host 'web1'", "web-1"]),
            (["work", "1", "--host", "web-1"], ["work cannot be sent to web-1", "directed: true"]),
            (["work", "1", "--cost", "apo=1"], ["no quota 'apo'", "api"]),
            (["work", "1", "--cost", "api"], ["QUOTA=N"]),
            (["work", "1", "--cost", "api=-1"], ["QUOTA=N"]),
            (["work", "1", "--cost", f"api={10**12 + 1}"], ["from 0 to 10^12"]),
            (["work", "1", "--cost", "api=1001"], ["a cost of 1001 in api", "1000 at most"]),
            (["work", "1", "--cost", "api=2", "--cost", "api=3"], ["--cost names quota api twice"]),
            (["work", "1", "--delay", "soon"], ["expected a duration"]),
            (["work", "1", "--delay", "2d"], ["longer than the longest, 1d"]),
            (["work", "1", "--id", "x" * 256], ["the id must be UTF-8 text of 1 to 255 bytes"]),
            (["work", "1", "--type", ""], ["the type must be UTF-8 text of 1 to 255 bytes"]),
            (["work", "1", "2", "--id", "one"], ["--id names a single task"]),
            (["work"], ["nothing to enqueue", "--file"]),
            (["work", "1", "--file", "-"], ["not both"]),
            (["work", "1", "--skip", "1"], ["--skip goes with --file"]),
            (["work", "--file", "-", "--skip", "-1"], ["--skip"]),
            (["work", "--file", "no-such-file"], ["no-such-file", "does not exist"]),
            (["work", "--file", "."], ["is a directory"]),
            (["work", "1", "{'a': 1}"], ["value 2 is not JSON", "Expecting property name"]),
            (["work", "text"], ["value 1 is not JSON", """'"text"'"""]),
            (["work", "NaN"], ["value 1 is not JSON: NaN"]),
            (["work", "[1e999]"], ["value 1 is not JSON: 1e999 is too large"]),
            (["work", "[" * 10_000], ["nested too deeply"]),
            (["work", os.fsdecode(b'"\xff"')], ["value 1 is not UTF-8 at byte 2"]),
        ],
        ids=lambda value: " ".join(value)[:30].replace("\udcff", "?") if isinstance(value, list) else "",
    )
    def test_what_cannot_be_is_refused_before_anything_is_contacted(
        self, lonely: Shop, args: list[str], words: list[str]
    ) -> None:
        # given a broker whose address nobody answers, and whose attempt alone would take ten seconds
        done = lonely.run(*args)

        # then it is a matter of usage, said in words
        assert done.returncode == 2, said(done)
        assert all(word in said(done) for word in words), said(done)
        assert "192.0.2.1" not in said(done)
        assert done.stdout == b""

    def test_without_a_stdin_there_is_nothing_to_read(self, lonely: Shop) -> None:
        done = subprocess.run(
            ["sh", "-c", '"$@" <&-', "sh", *lonely.command("work", "--file", "-")],
            cwd=lonely.directory,
            env=lonely.environment,
            capture_output=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 2
        assert "there is no stdin" in said(done)


class TestBroker:
    def test_unreachable_is_said_within_the_time_given_with_address_and_next_step(self, tmp_path: Path) -> None:
        # given an address where nothing listens
        shop = Shop(tmp_path, {"amqp": "amqp://127.0.0.1:1/", "username": "u", "password": {"value": "hush"}})

        # when a task is enqueued
        start_s = time.monotonic()
        done = shop.run("work", "1", "--connect-timeout", "1s")

        # then it is tried for that long, and the message helps
        assert done.returncode == 4
        assert time.monotonic() - start_s < 10.0
        assert "amqp://127.0.0.1:1/" in said(done)
        assert "qctl broker up" in said(done)
        assert "hush" not in said(done)
        assert len(said(done).splitlines()) == 2

    def test_a_stream_to_an_unreachable_broker_says_how_to_go_on(self, tmp_path: Path) -> None:
        shop = Shop(tmp_path, {"amqp": "amqp://127.0.0.1:1/", "username": "u", "password": {"value": "p"}})
        done = shop.run("work", "--file", shop.file("1", "2", "3"), "--skip", "1", "--connect-timeout", "250ms")
        assert done.returncode == 4
        assert "confirmed 0; continue with --skip 1" in said(done)

    def test_a_login_that_is_refused(self, shop: Shop, local_vhost: Vhost) -> None:
        done = shop.run("work", "1", QCTL_USERNAME=local_vhost.username, QCTL_PASSWORD="wrong")
        assert done.returncode == 5
        assert "refused the login" in said(done)
        assert "wrong" not in said(done)

    def test_a_user_who_may_not_publish(self, shop: Shop, local_vhost: Vhost) -> None:
        # given a user who may declare everything and publish nothing
        broker = local_vhost.broker
        broker.api("PUT", "/users/reader", {"password": "reading", "tags": ""})
        try:
            allowed = {"configure": ".*", "write": "^(?!qctl[.]tasks$)", "read": ".*"}
            broker.api("PUT", f"/permissions/{local_vhost.name}/reader", allowed)

            # when that user enqueues
            start_s = time.monotonic()
            done = shop.run("work", "--file", shop.file("1"), QCTL_USERNAME="reader", QCTL_PASSWORD="reading")
        finally:
            broker.api("DELETE", "/users/reader")

        # then it is refused at once, and not tried for a minute
        assert done.returncode == 5
        assert time.monotonic() - start_s < 20.0
        assert "the broker refuses the tasks: ACCESS_REFUSED" in said(done)
        assert "confirmed 0; continue with --skip 0" in said(done)

    def test_a_queue_with_other_arguments(self, shop: Shop, local_vhost: Vhost) -> None:
        with stranger(local_vhost) as channel:
            channel.queue_declare("work", durable=True, arguments={"x-queue-type": "quorum"})
        done = shop.run("work", "1")
        assert done.returncode == 5
        assert "queue work exists with other arguments" in said(done)
        assert depth(local_vhost, "work") == 0

    def test_a_queue_of_somebody_else_that_is_missing(self, shop: Shop) -> None:
        done = shop.run("theirs", "1")
        assert done.returncode == 5
        assert "queue theirs does not exist" in said(done)

    def test_tasks_that_no_queue_takes_any_more(self, shop: Shop, local_vhost: Vhost) -> None:
        # given a slow stream
        with shop.stream("work") as process:
            feed(process, *numbered(range(20)))
            await_true("all are there", lambda: exists_with(local_vhost, "work", 20))

            # when its queue is unbound in the middle
            with stranger(local_vhost) as channel:
                channel.queue_unbind("work", "qctl.tasks", "work")
            feed(process, *numbered(range(20, 25)))

            # then it ends at once, its stdin still open, with a true count
            assert process.wait(RUN_TIMEOUT_S) == 1
            done = finish(process)
        assert "no queue took the task: work is not bound to qctl.tasks" in said(done)
        assert "confirmed 20; continue with --skip 20" in said(done)
        assert depth(local_vhost, "work") == 20

    def test_a_full_queue_is_waited_for(self, shop: Shop, local_vhost: Vhost) -> None:
        # given a queue of somebody else that takes ten
        with stranger(local_vhost) as channel:
            full = {"x-max-length": 10, "x-overflow": "reject-publish"}
            channel.queue_declare("theirs", durable=True, arguments=full)

        # when fifty are enqueued, and somebody takes them out meanwhile
        bodies: list[bytes] = []
        with shop.stream("theirs") as process:
            feed(process, *numbered(range(50)))
            end_input(process)
            assert process.stderr is not None
            line = process.stderr.readline().decode()  # it waits from now on
            with stranger(local_vhost) as channel:
                while process.poll() is None or depth(local_vhost, "theirs"):
                    method, _, body = channel.basic_get("theirs", auto_ack=True)
                    bodies += [body] if method else []
            done = finish(process)

        # then all arrive, each once
        assert (done.returncode, done.stdout) == (0, b"theirs: confirmed 50\n"), said(done)
        assert sorted(bodies) == sorted(line.encode() for line in numbered(range(50)))
        assert "queue full, trying again" in line, said(done)


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_stream_says_exactly_what_is_there(
        self, shop: Shop, local_vhost: Vhost, number: signal.Signals
    ) -> None:
        # given a slow stream
        with shop.stream("work") as process:
            feed(process, *numbered(range(50)))
            await_true("all are there", lambda: exists_with(local_vhost, "work", 50))

            # when it is interrupted while it waits for more
            process.send_signal(number)
            assert process.wait(RUN_TIMEOUT_S) == 130
            done = finish(process)

        # then the count it says is the count that is there
        assert said(done) == "qctl: error: interrupted; confirmed 50; continue with --skip 50\n"
        assert depth(local_vhost, "work") == 50

    def test_an_interrupt_in_full_flight_counts_true_and_going_on_loses_nothing(
        self, shop: Shop, local_vhost: Vhost
    ) -> None:
        # given a long file under way
        count = 30_000
        path = shop.file(*numbered(range(count)))
        process = subprocess.Popen(
            shop.command("work", "--file", path, "-o", "json"),
            cwd=shop.directory,
            env=shop.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await_true("some are there", lambda: local_vhost.queue("work") is not None and depth(local_vhost, "work") > 500)

        # when it is interrupted
        process.send_signal(signal.SIGINT)
        done = finish(process)
        assert done.returncode == 130
        report = json.loads(done.stdout)

        # then at least what it counts is there, and at most what it says may be twice beside
        there = depth(local_vhost, "work")
        assert 0 < report["confirmed"] < count
        assert report["confirmed"] <= there <= report["skip"] + report["maybe_twice"]

        # and going on as it says brings every line, none of them lost
        again = shop.run("work", "--file", path, "--skip", str(report["skip"]))
        assert again.returncode == 0, said(again)
        bodies = [found.body.decode() for found in take_all(local_vhost, "work")]
        assert set(bodies) == set(numbered(range(count)))
        assert len(bodies) - count <= report["maybe_twice"]


def test_memory_does_not_grow_with_the_stream(shop: Shop, local_vhost: Vhost) -> None:
    # given a queue that keeps the last thousand only, so that the broker is not what is measured
    with stranger(local_vhost) as channel:
        channel.queue_declare("theirs", durable=True, arguments={"x-max-length": 1000})

    def most_kib(count: int) -> int:
        """The largest resident size of a run with that many lines."""
        with shop.stream("theirs") as process:
            assert process.stdin is not None
            for start in range(0, count, 1000):
                process.stdin.write(b"".join(b'{"n": %d}\n' % number for number in range(start, start + 1000)))
            end_input(process)
            assert process.stdout is not None
            out = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert (process.returncode, out) == (0, b"theirs: confirmed %d\n" % count)
            return int(usage.ru_maxrss)

    # when a hundred times as many lines are enqueued
    few, many = most_kib(3_000), most_kib(100_000)

    # then that takes hardly more memory
    assert many - few < 16 << 10, f"{few} KiB for 3,000 lines, {many} KiB for 100,000"
