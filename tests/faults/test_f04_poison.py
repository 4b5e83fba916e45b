"""F04: a task that ends the process it runs in, beside innocents, on two hosts."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import Letter, wire

INNOCENTS = 15
TIMEOUT_S = 3.0
#: What the hosts of the memory test may use together, and what its task takes.
MEMORY_BYTES = 600 << 20
CGROUPS = Path("/sys/fs/cgroup")

HANDLERS = """
    import signal

    def mixed(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name)
        rest(task)
        match task.payload.get("how"):
            case "kills":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(0)
            case "hangs":
                time.sleep(3600)
            case "eats":
                hoard = []
                while True:
                    hoard.append(bytearray(os.urandom(1 << 20)) * 8)
        mark("done", name)
"""


@row("F04", "a task kills its process with SIGKILL", timeout_s=240)
def test_a_task_that_kills_is_isolated(scene: Scene) -> None:
    _poison(scene, "kills", "was killed by SIGKILL")


@row("F04", "a task ends its process by os._exit(0)", timeout_s=240)
def test_a_task_that_exits_is_isolated(scene: Scene) -> None:
    _poison(scene, "exits", "ended with 0")


@row("F04", "a task hangs for ever in a thread", timeout_s=400)
def test_a_task_that_hangs_is_isolated(scene: Scene) -> None:
    scene.settles_within_s = 240.0
    _poison(scene, "hangs", "did not end in time")


@row("F04", "a task eats memory until the kernel ends its process; both hosts in a memory cgroup", timeout_s=300)
def test_a_task_that_eats_memory_is_isolated(scene: Scene) -> None:
    with _little_memory() as join:
        _poison(scene, "eats", "was killed by SIGKILL", prefix=join)


def _poison(scene: Scene, how: str, words: str, *, prefix: tuple[str, ...] = ()) -> None:
    # Given two hosts that take tasks side by side
    scene.task_timeout_s = TIMEOUT_S
    mixed = {
        "handler": {"python": "handlers:mixed"},
        "quota": {"api": 0},
        "timeout": f"{TIMEOUT_S:g}s",
        "concurrency": INNOCENTS + 1,
        "retry": {"attempts": 2, "delays": ["1s"]},
    }
    scene.stage("web-1", "web-2", consumers={"mixed": mixed}, handlers=HANDLERS)
    workers = [
        scene.start(host, "--drain-timeout", "1s", consumers=("mixed",), prefix=prefix) for host in ("web-1", "web-2")
    ]

    # When one task comes that ends its process, in the middle of innocents on either
    innocents = scene.enqueue("mixed", INNOCENTS, s=1.0)
    (poison,) = scene.enqueue("mixed", 1, s=0.5, how=how)
    innocents += scene.enqueue("mixed", INNOCENTS, s=1.0)

    # Then it ends as a dead letter, and the innocents do not
    letter = wait_until("the poison is dead", lambda: _look(scene), timeout_s=scene.settles_within_s)
    scene.await_ended(innocents)
    with wire(scene.vhost) as own:
        dead = own.depth("mixed.dead")
    scene.record.figure("dead letters", dead, equals=1)
    scene.record.figure("crashes of the dead letter", letter.headers["qctl-crashes"], equals=3)
    assert letter.headers["qctl-reason"] == "poison"
    assert words in letter.headers["qctl-error"]
    assert poison.encode() in letter.body
    # and the supervisors live, and lost a few processes before it was isolated
    scene.record.figure("supervisors alive", sum(one.process.poll() is None for one in workers), equals=2)
    lost = sum(one.log().count("starting it anew") for one in workers)
    scene.record.figure("processes lost", lost, at_most=3)
    # and each loss, and the one end of the isolated process that they shared, repeats at most what ran in it
    scene.may_duplicate = 6 + (lost + 2) * (INNOCENTS + 1)


def _look(scene: Scene) -> Letter | None:
    """The first dead letter, left where it is."""
    with wire(scene.vhost) as own:
        method, properties, body = own.channel.basic_get("mixed.dead")
        return None if method is None else Letter(body, properties, method.redelivered)


@contextmanager
def _little_memory() -> Iterator[tuple[str, ...]]:
    """A memory cgroup, and the words before a command that runs it in there."""
    version_1 = CGROUPS / "memory"
    parent, limit = (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (CGROUPS, "memory.max")
    group = parent / f"qctl-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / limit).write_text(str(MEMORY_BYTES))
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "--")
    finally:
        # The workers have not been stopped yet: back to where they came from, so that the group can go.
        for pid in (group / "cgroup.procs").read_text().split():
            subprocess.run(["sh", "-c", f"echo {pid} > {parent}/cgroup.procs"], check=False)
        group.rmdir()
