"""docs/faults.md, made from the records: what passed, what failed, and what was not run. It flatters nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.faults.catalogue import BROKERS, FAULTS, Fault
from tests.faults.rows import Figure, Record

#: What a record's state is called in the report; one that still runs when the run is over was cut off.
VERDICTS = {"passed": "pass", "failed": "**FAIL**", "running": "**CRASHED**"}
NOT_RUN = "not run"
#: The counts of the checker.
COUNTS = ("attempted", "acknowledged", "ok", "lost", "duplicated", "unexpected", "recovered")
#: Figures that every row has; they get a line of their own, which leaves out what is 0 and must be.
COMMON = (
    *COUNTS,
    "calls over the limit in any window of any host",
    "longest a delivery was out, s",
    "left in queues",
    "threads or fds off from before",
    "workers that did not end with 0",
    "tracebacks in the logs",
)

HEAD = """\
# The fault matrix

Made by `make faults`; do not edit. Each row injects its fault for real, into real workers on a real broker, and is
judged by what the code under test cannot touch: overspending by the log of the API that is called, loss and duplication
by append-only histories and by what is left in the queues. [testing.md](testing.md) says how that works. A row that was
not run, or whose run was cut off, stands here as such.

In every row: lost 0, overspend 0 in every window, unexpected 0, no delivery out longer than the task's timeout and
60 s, threads and file descriptors back to within 2, true exit codes.

k = tasks at once in a process, W = processes, P = prefetch, n = cost. Test scale: a quota of 200 per 10 s, a heartbeat
of 10 s.
"""


def write_report(records: Iterable[Record], path: Path, *, crashes: Sequence[str] = ()) -> None:
    """Write the whole report. crashes: what went wrong with the run itself, in words."""
    by_row: dict[str, list[Record]] = {}
    for one in records:
        by_row.setdefault(one.row, []).append(one)
    parts = [HEAD]
    if crashes:
        parts.append("".join(f"The last run was not whole: {words}\n" for words in crashes))
    parts += [_versions(by_row), _summary(by_row), *(_details(FAULTS[name], by_row[name]) for name in sorted(by_row))]
    path.write_text("\n".join(parts), encoding="utf-8")


def verdict(fault: Fault, records: Iterable[Record], broker: str) -> str:
    """How a row stands on a broker: passed only when all of its tests did."""
    states = [one.state for one in records if one.broker == broker]
    if not states:
        return NOT_RUN if broker in fault.brokers else ""
    return next((VERDICTS[state] for state in ("running", "failed") if state in states), VERDICTS["passed"])


def _versions(by_row: Mapping[str, list[Record]]) -> str:
    found = sorted(
        {(one.broker, one.version) for records in by_row.values() for one in records if one.version},
        key=lambda pair: list(BROKERS).index(pair[0]),
    )
    dates = sorted(one.at for records in by_row.values() for one in records)
    commits = sorted({one.commit for records in by_row.values() for one in records if one.commit})
    lines = [f"* `{kind}`: RabbitMQ {version}, {BROKERS[kind]}\n" for kind, version in found]
    if dates:
        which = f", commit {', '.join(commits)} (`+`: and changes)" if commits else ""
        lines.append(f"* run between {dates[0]} and {dates[-1]} UTC{which}\n")
    return "".join(lines)


def _summary(by_row: Mapping[str, list[Record]]) -> str:
    lines = [
        "| row | fault | passes when | " + " | ".join(BROKERS) + " |\n",
        "|---|---|---|" + "---|" * len(BROKERS) + "\n",
    ]
    for fault in FAULTS.values():
        verdicts = [verdict(fault, by_row.get(fault.id, ()), broker) for broker in BROKERS]
        lines.append(f"| {fault.id} | {_cell(fault.fault)} | {_cell(fault.passes_when)} | {' | '.join(verdicts)} |\n")
    return "".join(lines)


def _details(fault: Fault, records: Sequence[Record]) -> str:
    lines = [f"## {fault.id}: {fault.fault}\n\n"]
    for one in sorted(records, key=lambda one: (one.injected, one.test, list(BROKERS).index(one.broker))):
        where = f"{one.broker} {one.version}".strip() if one.version else "no broker"
        when = " ".join(words for words in (one.at, one.commit) if words)
        lines.append(f"* {where}: **{VERDICTS[one.state].strip('*')}** ({one.seconds:.0f} s, {when}); {one.injected}\n")
        own = [figure for figure in one.figures if figure.name not in COMMON]
        common = [figure for figure in one.figures if figure.name in COMMON]
        lines += [f"  * {_figure(figure)}\n" for figure in own]
        if common:
            shown = ", ".join(_figure(figure) for figure in common if figure.name in COUNTS)
            others = [
                _figure(figure) for figure in common if figure.name not in COUNTS and (figure.value or not figure.kept)
            ]
            lines.append(f"  * {'; '.join([shown, *others])}\n")
        lines += [f"  * {words}\n" for words in one.notes]
        if one.state != "passed":
            lines.append(f"  ```text\n{_indented(one.error or 'the run ended in the middle of it')}  ```\n")
    return "".join(lines)


def _figure(figure: Figure) -> str:
    shown = f"{figure.name} {figure.value:g}"
    if figure.bound:
        shown += f" ({figure.bound})"
    return f"**{shown}**" if figure.kept is False else shown


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.strip().splitlines()[-12:])
