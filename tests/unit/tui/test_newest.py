"""From any thread into the loop: the newest wins, nothing piles up, and nobody waits."""

from __future__ import annotations

import asyncio
import threading

from qctl.tui.newest import Newest


def test_a_loop_that_is_busy_takes_the_newest_of_a_thousand_once() -> None:
    # given a thread that puts faster than the loop takes
    async def main() -> list[int]:
        taken: list[int] = []
        slot = Newest(asyncio.get_running_loop(), taken.append)
        thread = threading.Thread(target=lambda: [slot.put(number) for number in range(1_000)])
        thread.start()
        thread.join()  # the loop stands still meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        slot.put(1_000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return taken

    assert asyncio.run(main()) == [999, 1_000]


def test_a_loop_that_is_over_is_no_trouble() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    Newest(loop, lambda _: None).put(1)
