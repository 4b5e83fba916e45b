"""What a row plays on: real workers, an API that judges, histories; and, in one place, what must hold in every row.

A test stages hosts, enqueues, injects its fault and notes its own figures. When it returns, `conclude` is called for
it: it waits until every confirmed task has ended, looks at the threads and file descriptors of what survived, stops the
workers, empties every queue, and judges. Loss and duplication are judged by the histories and by what is left in the
queues, overspending by the API's own log; never by what a worker says.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from qctl.broker.local import LocalNode
from qctl.demo.api_process import ApiServer
from qctl.demo.judge import Call, Upstream, most_in_any_window
from tests.brokers import LOOPBACK, Vhost
from tests.faults import history as histories
from tests.faults.history import History, check
from tests.faults.proxy import Proxy
from tests.faults.rows import Record
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import await_consuming, wire

LIMIT, WINDOW_S = 200, 10.0
#: k: tasks at once in a process.
CONCURRENCY = 4
TIMEOUT_S = 30.0
#: No delivery may be out longer than its task may run and this.
OUT_MARGIN_S = 60.0
#: Threads and file descriptors may differ by this much from before the fault.
RESOURCE_SLACK = 2
#: Resources go back within this; a leak never does.
RESOURCES_WITHIN_S = 10.0
#: A recovery is measured over this long: short enough to date it, long enough for a rate.
RATE_OVER_S = 1.0
#: Empty delay queues hold a message for at most a rung; rows use short ones.
MAX_LEFT = 100_000

#: The module `handlers`. `call` makes paid calls of the API, `plain` none, `again` fails the first time; all first
#: sleep what the payload says.
_HANDLERS = """
    import json, os, time
    from qctl import Retry, Task

    URLS = {urls!r}
    _FD = os.open({history!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def mark(event, task, host=""):
        line = {{"at_ns": time.monotonic_ns(), "event": event, "task": task, "pid": os.getpid(), "host": host}}
        os.write(_FD, json.dumps(line).encode() + b"\\n")

    def rest(task):
        if not os.path.exists({hurry!r}):
            time.sleep(task.payload.get("s", 0))

    def call(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name, task.host)
        rest(task)
        for index in range(task.payload.get("calls", 1)):
            task.http.get(f"{{URLS[task.host]}}task/{{name}}/{{index}}").raise_for_status()
            mark("called", name)
        mark("done", name)

    def plain(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name, task.host)
        rest(task)
        mark("done", name)

    def again(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name, task.host)
        rest(task)
        if task.attempt == 1:
            mark("failed", name)
            raise Retry("1s")
        mark("done", name)
"""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process has in its hands."""

    threads: int
    fds: int


@dataclass(frozen=True, slots=True)
class Enqueued:
    """How a `qctl enqueue` ended: its exit code, what it said, and the tasks that it said were confirmed."""

    code: int
    confirmed: int
    skip: int
    maybe_twice: int
    stderr: str
    seconds: float


class Enqueuing:
    """A `qctl enqueue` that runs while the test goes on."""

    def __init__(self, scene: Scene, process: subprocess.Popen[bytes], names: Sequence[str]) -> None:
        self.process = process
        self.names = names
        self._scene = scene
        self._since_s = time.monotonic()

    def finish(self, timeout_s: float = 120.0) -> Enqueued:
        """Wait for its end, and note as confirmed exactly what it says: all lines before the one to go on with."""
        stdout, stderr = self.process.communicate(timeout=timeout_s)
        seconds = time.monotonic() - self._since_s
        said = json.loads(stdout) if stdout.strip() else {"confirmed": 0, "skip": 0, "maybe_twice": 0}
        # The lines before `skip` are all confirmed; `confirmed` counts the later ones too, without naming them.
        self._scene.history.note("confirmed", self.names[: said["skip"]])
        return Enqueued(
            self.process.returncode,
            said["confirmed"],
            said["skip"],
            said["maybe_twice"],
            stderr.decode("utf-8", "replace"),
            seconds,
        )


class Scene:
    """A stage for one test. A context manager; everything it started has ended after it."""

    def __init__(
        self, vhost: Vhost, directory: Path, record: Record, *, thorough: bool, node: LocalNode | None = None
    ) -> None:
        """thorough: the full matrix runs, and not the short selection. node: the broker, when it is the row's alone."""
        self.vhost = vhost
        self.directory = directory
        self.record = record
        self.thorough = thorough
        self._node = node
        self.history = History(directory / "history.jsonl")
        #: starts beyond one a task that the row allows
        self.may_duplicate = 0
        #: starts that a task should have, by how its name begins: attempts, where all but the last one fail
        self.runs: dict[str, int] = {"again": 2}
        #: messages that the row means to leave in queues
        self.leaves = 0
        #: how long the confirmed tasks may take to end after the test has done its part
        self.settles_within_s = 60.0
        self.task_timeout_s = TIMEOUT_S
        self.apis: list[ApiServer] = []
        self._fleet: Fleet | None = None
        self._before: dict[int, Resources] = {}
        self._enqueuings: list[Enqueuing] = []
        self._names = 0
        self._hurry = directory / "hurry"
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._enqueuings:
            if one.process.poll() is None:
                one.process.kill()
                one.process.communicate()
        self._stack.close()

    # The stage

    @property
    def node(self) -> LocalNode:
        """The broker's node, in a row that has one of its own (`own_scene`)."""
        assert self._node is not None, "the broker belongs to other rows too; ask for own_scene"
        return self._node

    @property
    def fleet(self) -> Fleet:
        """The hosts that were staged."""
        assert self._fleet is not None, "nothing is staged yet"
        return self._fleet

    @property
    def api(self) -> ApiServer:
        """The API that judges."""
        return self.apis[0]

    def judge_api(
        self,
        *hosts: str,
        limit: int = LIMIT,
        window_s: float = WINDOW_S,
        latency_ms: int = 10,
        limits: Mapping[str, int] | None = None,
    ) -> ApiServer:
        """Start the API that judges, a port and a limit a host; the end of the row reads its log.

        limits: of the hosts that have another than `limit`.
        """
        directory = self.directory / f"api-{len(self.apis)}"
        directory.mkdir()
        upstreams = tuple(Upstream(host, (limits or {}).get(host, limit), window_s) for host in hosts)
        api = self._stack.enter_context(ApiServer(upstreams, directory=directory, latency_ms=latency_ms))
        self.apis.append(api)
        return api

    def stage(
        self,
        *hosts: str,
        concurrency: int = CONCURRENCY,
        limit: int = LIMIT,
        window_s: float = WINDOW_S,
        handlers: str = "",
        urls: Mapping[str, str] | None = None,
        again: bool = False,
        consumers: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> Fleet:
        """An inventory with the consumers `calls` (one paid call a task) and `plain` (none), and the API they call.

        handlers: more source for the module `handlers`; `mark(EVENT, TASK)` and `rest(TASK)` are there. urls: host ->
        where it calls, when not straight at the API. again: a third consumer of that name, whose tasks fail the first
        time. consumers: instead of these. sections: further ones of the inventory, `worker=...` for example.
        """
        hosts = hosts or ("web-1",)
        api = self.apis[0] if self.apis else self.judge_api(*hosts, limit=limit, window_s=window_s)
        found = {host: api.url(host) for host in hosts} if urls is None else dict(urls)
        source = textwrap.dedent(_HANDLERS).format(urls=found, history=str(self.history.path), hurry=str(self._hurry))
        if consumers is None:
            timeout = {"concurrency": concurrency, "timeout": f"{self.task_timeout_s:g}s"}
            consumers = {
                "calls": {"handler": {"python": "handlers:call"}, "quota": {"api": 1}, **timeout},
                "plain": {"handler": {"python": "handlers:plain"}, "quota": {}, **timeout},
            }
            if again:
                consumers["again"] = {"handler": {"python": "handlers:again"}, "quota": {}, **timeout}
        inventory = {
            "quotas": {"api": f"{limit}/{window_s:g}s"},
            "consumers": consumers,
            "hosts": dict.fromkeys(hosts),
            **sections,
        }
        self._fleet = self._stack.enter_context(
            Fleet(self.vhost, self.directory, source + textwrap.dedent(handlers), **inventory)
        )
        return self._fleet

    def start(
        self,
        host: str = "web-1",
        *arguments: str,
        processes: int = 1,
        consumers: Iterable[str] = ("calls", "plain"),
        amqp: str | None = None,
        prefix: Sequence[str] = (),
        timeout_s: float = 30.0,
    ) -> Worker:
        """Start a host's worker; wait until each of these consumers has said in every process that it consumes.

        amqp: where this host finds the broker, when not straight at it. prefix: what runs the command, `ip netns exec`
        for example.
        """
        log = self.directory / f"{host}.log"
        before = len(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else 0
        fleet = self.fleet
        if amqp is not None or prefix:
            fleet = copy.copy(fleet)
            fleet.command = [*prefix, *self._command(host, amqp)]
        worker = Worker(fleet, host, ["--processes", str(processes), *arguments])
        self.fleet.workers.append(worker)
        await_consuming(worker, *consumers, processes=processes, after=before, timeout_s=timeout_s)
        return worker

    def _command(self, host: str, amqp: str | None) -> list[str]:
        """`qctl` with an inventory that is the same but for the broker's address."""
        if amqp is None:
            return self.fleet.command
        document = json.loads((self.directory / "inventory.yaml").read_text(encoding="utf-8"))
        document["broker"]["amqp"] = amqp
        path = self.directory / f"inventory-{host}.yaml"
        path.write_text(json.dumps(document), encoding="utf-8")
        return [*self.fleet.command[:-1], str(path)]

    def through(self, way: Proxy) -> str:
        """The broker's address by way of a proxy."""
        return self.vhost.amqp_url.replace(f"{LOOPBACK}:{self.vhost.broker.amqp_port}/", f"{way.host}:{way.port}/")

    def keep(self, context: Any) -> Any:
        """Enter a context manager that ends with the row, and return what it gives."""
        return self._stack.enter_context(context)

    # Tasks

    def enqueue(self, consumer: str, count: int, **payload: Any) -> list[str]:
        """Have `qctl enqueue` put so many tasks into a queue, all confirmed; their names.

        payload: what every task carries beside its name: `s`, how long it sleeps, and `calls`, how many it makes.
        """
        running = self.enqueue_meanwhile(consumer, count, **payload)
        done = running.finish()
        assert done.code == 0, done.stderr
        assert done.confirmed == done.skip == count, done
        return list(running.names)

    def enqueue_meanwhile(self, consumer: str, count: int, *arguments: str, **payload: Any) -> Enqueuing:
        """The same while the test goes on; ask it to `finish`."""
        names = [f"{consumer}-{number}" for number in range(self._names, self._names + count)]
        self._names += count
        self.history.note("attempted", names)
        lines = self.directory / f"{names[0]}.jsonl"
        lines.write_text("".join(json.dumps({"task": name, **payload}) + "\n" for name in names), encoding="utf-8")
        process = subprocess.Popen(
            [*self.fleet.command, "-o", "json", "enqueue", consumer, "--file", str(lines), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.fleet.environment,
            cwd=self.directory,
        )
        running = Enqueuing(self, process, names)
        self._enqueuings.append(running)
        return running

    def count(self, event: str) -> int:
        """How many lines of this event the history has."""
        return sum(one.event == event for one in self.history.events())

    def await_count(self, event: str, count: int, timeout_s: float = 60.0) -> None:
        """Wait until the history has so many of this event."""
        wait_until(f"{count} times {event!r}", lambda: self.count(event) >= count, timeout_s)

    def await_ended(self, tasks: Iterable[str] | None = None, timeout_s: float = 60.0) -> None:
        """Wait until these tasks are done or in a dead-letter queue; by default all that are confirmed but `leaves`."""
        wanted = set(self.history.tasks("confirmed") if tasks is None else tasks)

        def ended() -> bool:
            missing = wanted - self.history.tasks("done")
            return not missing or len(missing) - self.leaves <= self._dead_letters()

        wait_until("every task ended", ended, timeout_s)

    def hurry(self) -> None:
        """No task sleeps any more: what is still queued is done at once. `conclude` does it by itself."""
        self._hurry.touch()

    # Rates and resources

    def stamps(self, event: str, prefix: str = "") -> list[int]:
        """When this event happened, of the tasks whose name begins like this; ns of the monotonic clock."""
        return [one.at_ns for one in self.history.events() if one.event == event and one.task.startswith(prefix)]

    def rate_over(self, seconds: float, event: str = "done", prefix: str = "") -> float:
        """Watch for a while: events a second."""
        since_ns = time.monotonic_ns()
        time.sleep(seconds)
        return histories.rate(self.stamps(event, prefix), since_ns, since_ns + round(seconds * 1e9))

    def await_recovery_s(
        self, *, since_ns: int, rate_before: float, event: str = "done", prefix: str = "", timeout_s: float = 60.0
    ) -> float:
        """Wait until 95 % of the former rate is back; seconds from `since_ns` to the first instant it was."""
        at_ns = wait_until(
            f"95 % of {rate_before:.0f} {event} a second",
            lambda: histories.recovered_ns(
                self.stamps(event, prefix), after_ns=since_ns, rate_before=rate_before, over_s=RATE_OVER_S
            ),
            timeout_s,
        )
        return (int(at_ns) - since_ns) / 1e9

    def steady(self) -> None:
        """Remember what every process has in its hands now; call it when all of them have worked, before the fault."""
        self._before = {pid: resources(pid) for pid in self.pids()}

    def pids(self) -> list[int]:
        """The supervisors and worker processes that live."""
        found = []
        for worker in self.fleet.workers:
            if worker.process.poll() is None:
                found += [worker.process.pid, *worker.pids()]
        return found

    # The end

    def conclude(self) -> None:
        """What must hold in every row. Notes its figures; the bounds are judged when the record is."""
        record, history = self.record, self.history
        if self._fleet is not None:
            self._settle()
            self._resources()
            self._exits()
            self._empty_queues()
        counts = check(history.events(), runs=self.runs)
        record.figure("attempted", counts.attempted)
        record.figure("acknowledged", counts.acknowledged)
        record.figure("ok", counts.ok)
        record.figure("lost", counts.lost, equals=0)
        record.figure("duplicated", counts.duplicated, at_most=self.may_duplicate)
        record.figure("unexpected", counts.unexpected, equals=0)
        record.figure("recovered", counts.recovered)
        if any(one.event == "paused" for one in history.events()):
            broken = histories.starts_while_paused(history.events())
            record.figure("starts after an acknowledged pause", len(broken), equals=0)
        if self.apis:
            over = [_over(api.calls(), upstream) for api in self.apis for upstream in api.upstreams]
            record.figure("calls over the limit in any window of any host", max(over), equals=0)
        longest_s = histories.longest_out_s(history.events(), time.monotonic_ns())
        record.figure("longest a delivery was out, s", longest_s, at_most=self.task_timeout_s + OUT_MARGIN_S)

    def _settle(self) -> None:
        self.hurry()
        try:
            self.await_ended(timeout_s=self.settles_within_s)
        except AssertionError:
            missing = self.history.tasks("confirmed") - self.history.tasks("done")
            # Judged below by what the queues hold: late is not lost.
            self.record.figure(f"tasks not ended after {self.settles_within_s:g} s", len(missing), equals=0)

    def _resources(self) -> None:
        before, now = self._before, {pid: resources(pid) for pid in self.pids()}
        if not before or not now:
            return
        deadline_s = time.monotonic() + RESOURCES_WITHIN_S
        while (worst := _grown(before, now)) > RESOURCE_SLACK and time.monotonic() < deadline_s:
            time.sleep(0.2)
            now = {pid: resources(pid) for pid in self.pids()}
        self.record.figure("threads or fds off from before", worst, at_most=RESOURCE_SLACK)

    def _exits(self) -> None:
        codes = {worker.host: worker.stop() for worker in self.fleet.workers if worker.process.poll() is None}
        for host, code in codes.items():
            if code:
                self.record.note(f"The worker of {host} ended with {code}.")
        if codes:
            wrong = sum(code != 0 for code in codes.values())
            self.record.figure("workers that did not end with 0", wrong, equals=0)
        logs = {worker.log_path for worker in self.fleet.workers}
        tracebacks = sum(path.read_text(encoding="utf-8", errors="replace").count("Traceback") for path in logs)
        self.record.figure("tracebacks in the logs", tracebacks, equals=0)

    def _empty_queues(self) -> None:
        """Take everything out of every queue: dead letters are an end, all else is left over."""
        left = 0
        with wire(self.vhost) as own:
            for name in self._queue_names():
                event = "dead" if name.endswith(".dead") else "left"
                for _ in range(MAX_LEFT):
                    letter = own.look(name)
                    if letter is None:
                        break
                    left += event == "left"
                    self.history.note(event, [_task_of(letter.body)])
        self.record.figure("left in queues", left, equals=self.leaves)

    def _queue_names(self) -> list[str]:
        """Every queue that tasks can be in: not the logs, and not the hosts' own, which nobody else may look into."""
        rows = self.vhost.broker.api("GET", f"/queues/{quote(self.vhost.name)}?columns=name,arguments") or []
        streams = {row["name"] for row in rows if row.get("arguments", {}).get("x-queue-type") == "stream"}
        return sorted({row["name"] for row in rows if not row["name"].startswith("qctl.host.")} - streams)

    def _dead_letters(self) -> int:
        with wire(self.vhost) as own:
            return sum(own.depth(name) for name in self._queue_names() if name.endswith(".dead"))


def _over(calls: Iterable[Call], upstream: Upstream) -> int:
    most = most_in_any_window([call.at_ns for call in calls if call.host == upstream.host], upstream.window_ns)
    return max(0, most - upstream.limit_units)


def resources(pid: int) -> Resources:
    """Threads and open file descriptors of a process; none of a dead one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))
        return Resources(threads, len(list(Path(f"/proc/{pid}/fd").iterdir())))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return Resources(0, 0)


def _grown(before: Mapping[int, Resources], now: Mapping[int, Resources]) -> int:
    """By how much the worst process is off. One that is new is compared with the largest there was."""
    most = Resources(max(one.threads for one in before.values()), max(one.fds for one in before.values()))
    worst = 0
    for pid, one in now.items():
        was = before.get(pid)
        threads = abs(one.threads - was.threads) if was else one.threads - most.threads
        worst = max(worst, threads, one.fds - (was or most).fds)
    return worst


def _task_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["task"])
    except (ValueError, KeyError, TypeError):
        return f"stray:{body[:40]!r}"


def _stat(pid: int) -> list[str]:
    """The fields of a process's state, from the third on."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def age_s(pid: int) -> float:
    """Seconds since a process was started; 0 for one that is gone."""
    try:
        born_s = int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s


@contextmanager
def ended_at_last(undo: Callable[[], object]) -> Iterator[None]:
    """Whatever happens in the block, undo the fault."""
    try:
        yield
    finally:
        undo()
