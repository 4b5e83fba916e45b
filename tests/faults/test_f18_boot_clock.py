"""F18: the machine's boot id changes, and its boot clock starts anew."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from tests.faults.rows import row
from tests.faults.scene import LIMIT, WINDOW_S, Scene
from tests.fleet import wait_until

#: How far back the boot clock is, in seconds, in a time namespace; the machine must have run for as long.
BACK_S = 60


def other_boot(boot_id: Path, back_s: int) -> list[str]:
    """What runs a command as after a reboot: another boot id, in a mount namespace, and an earlier boot clock."""
    boot_id.write_text(f"{uuid.uuid4()}\n")
    script = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "--mount", "--time", f"--boottime=-{back_s}", "sh", "-c", script, "sh"]


@row(
    "F18",
    "kill -9 of the host near the edge of its quota, and started under another boot id and an earlier clock",
)
def test_after_a_reboot_nothing_is_overspent_and_nothing_freezes(scene: Scene, tmp_path: Path) -> None:
    # Given a host that has spent much of its quota
    scene.stage()
    worker = scene.start()
    scene.enqueue("calls", 2 * LIMIT, s=0)
    scene.await_count("called", LIMIT // 2)
    worker.kill()
    died_ns = time.monotonic_ns()
    scene.may_duplicate = 4

    # When the machine has another boot id, and its boot clock is earlier than before
    again = scene.start(prefix=other_boot(tmp_path / "boot_id", BACK_S), consumers=("plain",))
    at_ns = time.monotonic_ns()
    wait_until("a window's worth of calls", lambda: _since(scene, died_ns) >= LIMIT, 60)
    calls = sorted(call.at_ns for call in scene.api.calls() if call.at_ns > died_ns)

    # Then what was spent counts from the boot on, for a window and a linger at most, and then all of it is free
    scene.record.figure(
        "first reboot: whole quota free after, windows", (calls[-1] - at_ns) / (WINDOW_S * 1e9), at_most=2.5
    )
    again.kill()
    scene.may_duplicate += 4
    # and once more, back to the first clock, which is later
    scene.start(consumers=("plain",))


def _since(scene: Scene, since_ns: int) -> int:
    return sum(call.at_ns > since_ns for call in scene.api.calls())
