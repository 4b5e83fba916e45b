"""The examples of docs/tasks.md do what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from qctl.testing import FakeApi, run_task

PAGE = Path(__file__).parents[3] / "docs/tasks.md"


def files() -> dict[str, str]:
    """The Python blocks that say which file they are."""
    blocks = re.findall(
        r"^```python\n# (\S+\.py)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return dict(blocks)


def test_the_tests_of_the_page_pass_on_the_handler_of_the_page(tmp_path: Path) -> None:
    # given the page's files, as they stand
    found = files()
    assert found.keys() == {"myapp/calls.py", "myapp/tasks.py", "myapp/queue.py", "test_tasks.py"}
    for name, text in found.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    # when its tests run, as a reader would run them
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_tasks.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    # then all of them pass
    assert f"{found['test_tasks.py'].count('def test_')} passed" in done.stdout, done.stdout


def test_the_calls_of_the_page_are_paid_in_both_forms() -> None:
    # given the handlers of the page, plain and async
    handlers: dict[str, Any] = {}
    exec(files()["myapp/calls.py"], handlers)  # noqa: S102
    api = FakeApi()
    api.get("https://api.twitter.com/1.1/users/17", json={})

    # when each runs, then each makes its call and pays for it
    for name in ("user", "user_async"):
        result = run_task(handlers[name], quota={"twitter": 1}, api=api)
        assert (result.outcome, result.spent, len(result.calls)) == ("ack", {"twitter": 1}, 1)
