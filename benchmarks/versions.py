"""Tests passed by Python and MindSpore: the table of docs/versions.md, from benchmarks/versions.json.

    MINDSPORE=2.10.0 PYTHON=python3.10 bash scripts/run_tests.sh --fast
    python -m benchmarks.versions [--keep FOLDER]

The first command runs a cell's tests and leaves a junit file in build/matrix/, whose suite names both versions. --keep
puts the numbers of a folder's junit files into the record, in place of their cells' former ones. Exit status: 1 where a
test failed in one of the cells.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.common import print_table

__all__ = ["main"]

RECORD = Path(__file__).with_suffix(".json")
# what there are wheels of: MindSpore, and for which minor versions of Python 3
WHEELS = {
    "2.7.0": range(9, 12),
    "2.7.1": range(9, 12),
    "2.7.2": range(9, 13),
    "2.8.0": range(9, 13),
    "2.9.0": range(9, 13),
    "2.10.0": range(10, 13),
}
PYTHONS = range(9, 13)
OWN = ("3.11", "2.8.0")  # .venv's
COLUMNS = ("Python", "MindSpore", "passed", "failed", "skipped", "seconds", "command")
NAME = re.compile(r"Python ([\d.]+), MindSpore ([\d.]+): (.*)", re.S)


def read_run(path: Path) -> dict:
    """What a junit file that scripts/run_tests.sh wrote says: versions, pytest's arguments, counts, who failed."""
    suite = next(ElementTree.parse(path).iter("testsuite"))
    found = NAME.fullmatch(suite.get("name", ""))
    if not found:
        raise SystemExit(f"error: {path}: not written by scripts/run_tests.sh; move it away")
    failed, skipped = [], collections.Counter()
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        reason = case.find("skipped")
        if reason is not None:
            skipped[reason.get("message", "")] += 1
    return {
        "python": found[1],
        "mindspore": found[2],
        "arguments": "" if found[3] == "all" else found[3],
        "started": suite.get("timestamp", "")[:16],
        "seconds": round(float(suite.get("time", 0))),
        "passed": int(suite.get("tests", 0)) - len(failed) - sum(skipped.values()),
        "failed": sorted(failed),
        "skipped": dict(sorted(skipped.items())),
    }


def command(run: dict) -> str:
    cell = run["python"], run["mindspore"]
    named = "" if cell == OWN else f"MINDSPORE={cell[1]} PYTHON=python{cell[0]} "
    return f"`{named}bash scripts/run_tests.sh {run['arguments']}".rstrip() + "`"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="of junit files: build/matrix")
    parser.add_argument("--record", default=RECORD, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    runs = json.loads(options.record.read_text()) if options.record.is_file() else []
    kept = {(r["python"], r["mindspore"]): r for r in runs}
    if options.keep:
        for path in sorted(options.keep.glob("*.xml")):
            run = read_run(path)
            kept[run["python"], run["mindspore"]] = run
    rows, ordered = [], []
    for mindspore, minors in WHEELS.items():
        for minor in PYTHONS:
            cell = f"3.{minor}", mindspore
            run = kept.get(cell)
            if run:
                ordered.append(run)
                counts = run["passed"], len(run["failed"]), sum(run["skipped"].values()), run["seconds"]
                rows.append([*cell, *counts, command(run)])
            else:
                rows.append([*cell, "not run" if minor in minors else "no wheel", "", "", "", ""])
    if options.keep:
        options.record.write_text(json.dumps(ordered, indent=1) + "\n")
    print_table("Tests by Python and MindSpore", COLUMNS, rows)
    return int(any(r["failed"] for r in ordered))


if __name__ == "__main__":
    raise SystemExit(main())
