"""Tests passed by Python and MindSpore: a table of what scripts/run_tests.sh kept in build/matrix.

python -m benchmarks.versions [FOLDER]

A cell is made anew by MINDSPORE=2.10.0 PYTHON=python3.10 bash scripts/run_tests.sh [PYTEST ARGUMENT]...
Exit status: 1 where a test failed in one of them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.common import print_table

__all__ = ["main"]

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
COLUMNS = ("Python", "MindSpore", "tests", "passed", "failed", "skipped", "seconds")
NAME = re.compile(r"Python ([\d.]+), MindSpore ([\d.]+): (.*)", re.S)


def read_run(path: Path) -> tuple[tuple[str, str], list]:
    """The versions of a junit file that scripts/run_tests.sh wrote, and the rest of its row."""
    suite = next(ElementTree.parse(path).iter("testsuite"))
    found = NAME.fullmatch(suite.get("name", ""))
    if not found:
        raise SystemExit(f"error: {path}: not written by scripts/run_tests.sh; move it away")
    total, failures, errors, skipped = (int(suite.get(n, 0)) for n in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    counts = [total - failed - skipped, failed, skipped, round(float(suite.get("time", 0)))]
    return (found[1], found[2]), [found[3], *counts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="build/matrix", type=Path, help="default: %(default)s")
    runs = dict(read_run(p) for p in sorted(parser.parse_args(arguments).folder.glob("*.xml")))
    rows = []
    for mindspore, minors in WHEELS.items():
        for minor in PYTHONS:
            cell = f"3.{minor}", mindspore
            absent = "not run" if minor in minors else "no wheel"
            rows.append([*cell, *runs.get(cell, [absent, "", "", "", ""])])
    print_table("Tests by Python and MindSpore", COLUMNS, rows)
    return int(any(r[2] for r in runs.values()))


if __name__ == "__main__":
    raise SystemExit(main())
