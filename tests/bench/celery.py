"""The same work on Celery 5 and on qctl: `python -m tests.bench.celery [--seconds 60]`. Installs Celery from the index.

Two hosts may make 20,000 and 100,000 calls an hour. Celery: two workers with that `rate_limit`, prefork 4, late
acknowledgements. qctl: the same limits, `window: paced`, concurrency 4, with the default burst and with one of 8. The
same broker, the same call of an HTTP API that only counts; its log says how many calls there were in the time after a
warm-up. Everything is ended by its process's id.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from tests import brokers
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import start_consuming
from tests.judge.config import Config
from tests.judge.rule import Kind, Rule
from tests.judge.said import Style
from tests.judge.server import Judge
from tests.judge.verdict import NS_PER_S, over, sure_rate

LIMITS = {"web-1": 20_000, "web-2": 100_000}
HOUR_NS = 3600 * NS_PER_S
SLOTS = 4
LATENCY_MS = (0, 10)
WARM_UP_S = 10.0
BURST = 8
FARM = """
    import os
    import requests
    from celery import Celery

    app = Celery("farm", broker=os.environ["FARM_BROKER"])
    app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)
    session = requests.Session()

    @app.task(rate_limit=os.environ.get("FARM_RATE"))
    def call():
        session.get(os.environ["FARM_URL"]).raise_for_status()
"""


def _rule(limit: int, burst: int) -> Rule:
    return Rule(Kind.PACED, limit, HOUR_NS, burst=burst)


@contextmanager
def _apis(directory: Path) -> Iterator[Mapping[str, Judge]]:
    """An API for each host, so that it is known who called."""
    with ExitStack() as stack:
        yield {
            host: stack.enter_context(
                Judge(Config(_rule(limit, 1), latency_ms=LATENCY_MS, enforces=False, style=Style.NONE), directory, host)
            )
            for host, limit in LIMITS.items()
        }


def _measure(apis: Mapping[str, Judge], seconds: float, burst: int) -> dict[str, tuple[int, float, int]]:
    """For each host: calls in the time after the warm-up, their mean latency, and how many were over in all."""
    wait_until("both hosts call", lambda: all(api.log() for api in apis.values()), 60)
    time.sleep(WARM_UP_S)
    since_ns = time.monotonic_ns()
    until_ns = since_ns + round(seconds * NS_PER_S)
    time.sleep(seconds + 0.5)
    found = {}
    for host, api in apis.items():
        calls = api.log()
        inside = [call for call in calls if since_ns <= call.at_ns < until_ns]
        took_ns = [call.answered_ns - call.arrived_ns for call in inside if call.answered_ns is not None]
        beyond = over(calls, _rule(LIMITS[host], burst))
        found[host] = (len(inside), sum(took_ns) / max(1, len(took_ns)), beyond)
    return found


def celery(broker: brokers.Broker, directory: Path, python: Path, seconds: float) -> dict[str, tuple[int, float, int]]:
    """Two of Celery's workers at work."""
    (directory / "farm.py").write_text(textwrap.dedent(FARM), encoding="utf-8")
    with brokers.fresh_vhost(broker) as vhost, _apis(directory) as apis, ExitStack() as stack:
        credentials = f"{quote(vhost.username)}:{quote(vhost.password)}@"
        address = vhost.amqp_url.replace("amqp://", f"amqp://{credentials}")
        environment = {**os.environ, "FARM_BROKER": address, "FARM_URL": ""}
        more = round(sum(LIMITS.values()) / 3600 * (seconds + WARM_UP_S + 60))
        subprocess.run(
            [python, "-c", f"import farm\nfor _ in range({more}): farm.call.delay()"],
            cwd=directory,
            env=environment,
            check=True,
            timeout=300,
        )
        for host, limit in LIMITS.items():
            log = stack.enter_context((directory / f"{host}.log").open("wb"))
            worker = subprocess.Popen(
                [python, "-m", "celery", "-A", "farm", "worker", "-n", f"{host}@farm", "-P", "prefork",
                 "-c", str(SLOTS), "--loglevel", "WARNING"],
                cwd=directory,
                env={**environment, "FARM_RATE": f"{limit}/h", "FARM_URL": apis[host].url, "C_FORCE_ROOT": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, worker)
        return _measure(apis, seconds, 1)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)  # a session of its own: it and its children
        worker.wait()


def qctl(broker: brokers.Broker, directory: Path, seconds: float, burst: int) -> dict[str, tuple[int, float, int]]:
    """Two hosts of qctl at work."""
    with brokers.fresh_vhost(broker) as vhost, _apis(directory) as apis:
        quota = {"window": "paced", "burst": burst} if burst > 1 else {"window": "paced"}
        consumer = {"quota": {"api": 1}, "concurrency": SLOTS, "handler": {"http": {"base_url": apis["web-1"].url}}}
        hosts = {
            host: {
                "quotas": {"api": {"limit": f"{limit}/h", **quota}},
                "consumers": {"call": {"handler": {"http": {"base_url": apis[host].url}}}},
            }
            for host, limit in LIMITS.items()
        }
        sections = {"quotas": {"api": {"limit": "20000/h", **quota}}, "consumers": {"call": consumer}, "hosts": hosts}
        with Fleet(vhost, directory, **sections) as fleet:
            more = round(sum(LIMITS.values()) / 3600 * (seconds + WARM_UP_S + 60))
            fleet.enqueue("call", [{"path": "x"}] * more)
            for host in LIMITS:
                start_consuming(fleet, host, "call")
            found = _measure(apis, seconds, burst)
            for worker in fleet.workers:
                worker.stop()
            return found


def _row(name: str, found: Mapping[str, tuple[int, float, int]], seconds: float, burst: int) -> str:
    words = []
    for host, (calls, latency_ns, beyond) in found.items():
        rule = _rule(LIMITS[host], burst)
        allowed = rule.units * seconds / 3600
        sure = sure_rate(rule, latency_ns) * seconds * NS_PER_S
        words.append(f"{calls / seconds:6.2f}/s {calls / allowed:6.1%} ({calls / sure:6.1%} of sure, {beyond} over)")
    return f"{name:18}" + "   ".join(words)


def main(arguments: Sequence[str]) -> int:
    """Print the share of the allowance that each used."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.celery")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=("celery", "qctl"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch) / "node") as node:
        broker, names = brokers.local_broker(node), iter(range(9))

        def directory() -> Path:
            made = Path(scratch) / str(next(names))
            made.mkdir()
            return made

        rows: list[tuple[str, int, Callable[[], dict[str, tuple[int, float, int]]]]] = []
        if chosen.only != "qctl":
            venv = Path(scratch) / "venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            pip = [venv / "bin/python", "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
            if subprocess.run([*pip, "celery>=5,<6", "requests"], check=False).returncode:
                print("Celery cannot be installed here; nothing measured", file=sys.stderr)
                return 0
            python = venv / "bin/python"
            version = subprocess.run([python, "-m", "celery", "--version"], capture_output=True, text=True, check=True)
            name = f"Celery {version.stdout.split()[0]}"
            rows.append((name, 1, lambda: celery(broker, directory(), python, chosen.seconds)))
        if chosen.only != "celery":
            rows += [
                ("qctl, paced", 1, lambda: qctl(broker, directory(), chosen.seconds, 1)),
                (f"qctl, burst {BURST}", BURST, lambda: qctl(broker, directory(), chosen.seconds, BURST)),
            ]
        print(f"{chosen.seconds:g} s after {WARM_UP_S:g} s of warm-up; share of 20,000/h and of 100,000/h")
        for name, burst, run in rows:
            print(_row(name, run(), chosen.seconds, burst), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
