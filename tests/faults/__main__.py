"""`make faults`: run the matrix, a broker at a time, and write docs/faults.md. Single rows merge into what is there.

python -m tests.faults [--rows "F06 F08"] [--brokers "local container"]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.catalogue import ALL, FAULTS, LOCAL
from tests.faults.report import write_report
from tests.faults.rows import RECORDS, read_records

REPORT = Path("docs/faults.md")
#: Exit codes of pytest that say no more than that some rows failed, or that none was chosen.
_ORDERLY = (0, 1, 5)


def main() -> int:
    """Run what was asked for; 0 when every row that ran passed and the run itself was whole."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault matrix.")
    parser.add_argument("--rows", default="", help="only these, for example 'F06 F08'; their records are replaced")
    parser.add_argument("--brokers", default=" ".join(ALL), help="only on these; default: %(default)s")
    arguments = parser.parse_args()
    rows, brokers = (text.replace(",", " ").split() for text in (arguments.rows, arguments.brokers))
    unknown = [one for one in rows if one not in FAULTS] + [one for one in brokers if one not in ALL]
    if unknown:
        parser.error(f"there is no {' '.join(unknown)}; rows are F01 to F41, brokers {' '.join(ALL)}")
    # What is run anew is forgotten first: an old record must not stand in for a run that failed to start.
    for record in list(read_records()):
        if record.broker in brokers and (not rows or record.row in rows):
            record.path().unlink()
    # This machine's broker first and alone: most rows are for it, and some measure times. The others side by side.
    codes = {broker: _run(rows, broker) for broker in brokers if broker in LOCAL}
    with ThreadPoolExecutor() as pool:
        others = [broker for broker in brokers if broker not in LOCAL]
        codes |= dict(zip(others, pool.map(lambda broker: _run(rows, broker), others), strict=True))
    crashes = [
        f"pytest ended with {code} on broker {broker}." for broker, code in codes.items() if code not in _ORDERLY
    ]
    records = list(read_records())
    write_report(records, REPORT, crashes=crashes)
    bad = sum(one.state != "passed" for one in records)
    print(f"{len(records) - bad} of {len(records)} passed; the figures are in {REPORT}", file=sys.stderr)
    for words in crashes:
        print(words, file=sys.stderr)
    return 1 if bad or crashes else 0


def _run(rows: list[str], broker: str) -> int:
    """One broker a process: a crash of the test program costs the rows of that broker alone."""
    print(f"running the matrix on {broker}; the log is {RECORDS / broker}.log", file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "tests/faults", "--faults", "--quiet", "-p", "no:xdist", "--tb", "short"]
    with (RECORDS / f"{broker}.log").open("wb") as log:
        done = subprocess.run(
            [*command, "--brokers", broker, "--rows", " ".join(rows)], stdout=log, stderr=log, check=False
        )
    last = (RECORDS / f"{broker}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    print(f"{broker}: {''.join(last)}", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    RECORDS.mkdir(parents=True, exist_ok=True)
    sys.exit(main())
