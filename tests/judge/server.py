"""Start and end the judging API, and read its log: `with Judge(config, directory) as judge: judge.url; judge.log()`."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tests.judge.config import Config
from tests.judge.verdict import Call, read

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
_ROOT = Path(__file__).parents[2]


class Judge:
    """A context manager around one API process. directory: where its log goes; it must exist."""

    def __init__(self, config: Config, directory: Path, name: str = "api") -> None:
        self.log_path = directory / f"{name}.jsonl"
        self.config = replace(config, log=str(self.log_path))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Judge:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "tests.judge.api", self.config.to_json()],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            heard = ready.select(START_TIMEOUT_S)
        line = process.stdout.readline() if heard else b""
        if not line:
            self._end()
            raise AssertionError(f"the judging API did not start; it ended with {process.returncode}")
        self.port = json.loads(line)["port"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._end()
        assert error is not None or code == 0, f"the judging API failed with {code}: its log acquits nobody"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/`."""
        return f"http://127.0.0.1:{self.port}/"

    def log(self) -> tuple[Call, ...]:
        """All calls so far, in the order in which they were counted."""
        return read(self.log_path.read_text(encoding="utf-8").splitlines(keepends=True))

    def _end(self) -> int:
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.returncode
