"""Published checkpoints: the table of docs/published.md, and whether one has here the AP that its project published.

    python -m benchmarks.published --list
    python -m benchmarks.published MODEL --coco_root COCO_ROOT --ckpt FILE [--out FOLDER] [--KEY VALUE]

The second command converts FILE, which MODEL's project published, evaluates it on COCO's val split, and prints each AP
beside the published one. benchmarks/published.json holds what is known of each. Any key of the config can follow. Exit
status: 1 where an AP is further than 0.2 from the published one, or can't be measured.
"""

from __future__ import annotations

import argparse
import difflib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import print_table
from src.config import parse_overrides
from src.runtime.errors import UserError, run_command

__all__ = ["Model", "judge", "main", "read_models", "tables"]

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_suffix(".json")
TOLERANCE = 0.2  # AP of 100, both rounded to a tenth
KINDS = {"box": "bbox", "mask": "segm", "keypoints": "keypoints"}  # ours, and pycocotools' names
COLUMNS = ("model", *(f"{k} AP" for k in KINDS), "config", "keys", "compared", "file")


@dataclass(frozen=True)
class Model:
    """A published checkpoint.

    ap: what its project published for COCO's val split, of 100, by "box", "mask" and "keypoints".  config: of configs/,
    by its stem; keys: what this checkpoint has otherwise.  weights: its address.  golden: whether its project's golden
    values for the config are in tests/reference, were compared and not kept, or neither ("kept", "not kept", "").
    """

    name: str
    project: str
    layout: str
    page: str
    ap: Mapping[str, float]
    config: str
    weights: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    golden: str = ""

    @property
    def compared(self) -> str:
        if not self.golden or self.keys:
            return "names and shapes"
        return "golden values" if self.golden == "kept" else "golden values, not kept"

    @property
    def file(self) -> str:
        """The weights' file, with the number of the run before a name that many have."""
        folder, name = self.weights.split("/")[-2:]
        return f"{folder}/{name}" if name.startswith("model_final") else name


def read_models(record: Path = RECORD) -> dict[str, Model]:
    """The models of a record like published.json, by their names."""
    content = json.loads(record.read_text(encoding="utf-8"))
    golden = dict.fromkeys(content["not_kept"], "not kept") | dict.fromkeys(content["golden"], "kept")
    found = {}
    for project in content["projects"]:
        common = {k: project[k] for k in ("project", "layout", "page")}
        for model in project["models"]:
            found[model["name"]] = Model(**common, **model, golden=golden.get(model["config"], ""))
    return found


def tables(models: Mapping[str, Model]) -> None:
    """Prints a table for each project, without columns that are empty there."""
    for project in dict.fromkeys(m.project for m in models.values()):
        own = [m for m in models.values() if m.project == project]
        rows = [
            (
                m.name,
                *(f"{m.ap[k]:.1f}" if k in m.ap else "" for k in KINDS),
                m.config,
                ", ".join(f"{k} {json.dumps(v)}" for k, v in m.keys.items()),
                m.compared,
                m.file,
            )
            for m in own
        ]
        filled = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
        title = f"{project} (layout {own[0].layout}): {own[0].page}"
        print_table(title, [COLUMNS[i] for i in filled], [[row[i] for i in filled] for row in rows])


def judge(model: Model, metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of kind, AP here, published AP, difference and "pass" or "FAIL"; metrics: as eval.py writes them."""
    rows = []
    for kind, published in model.ap.items():
        value = metrics.get(KINDS[kind], {}).get("metrics", {}).get("AP")
        if value is None:
            rows.append((kind, "not measured", f"{published:.1f}", "", "FAIL"))
            continue
        apart = round(100 * value, 1) - published
        passed = abs(apart) < TOLERANCE + 0.05
        rows.append((kind, f"{100 * value:.1f}", f"{published:.1f}", f"{apart:+.1f}", "pass" if passed else "FAIL"))
    return rows


def find(name: str, models: Mapping[str, Model]) -> Model:
    """The model of that name; UserError with the nearest names for another."""
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
        raise UserError(
            f"{name}: no published checkpoint that is known here"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + " (all of them: python -m benchmarks.published --list)"
        )
    return models[name]


def words(keys: Mapping[str, Any]) -> list[str]:
    """Keys as a command's words."""
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in keys.items()]


def call(*command: str | Path) -> None:
    """Runs one of this repository's commands, after printing it; ends this one with its status where that isn't 0."""
    told = [str(c) for c in command]
    print(f"$ python {shlex.join(told)}", flush=True)
    status = subprocess.run([sys.executable, *told], cwd=ROOT).returncode
    if status:
        raise SystemExit(status)


def check(model: Model, coco_root: Path, file: Path, out: Path, keys: Mapping[str, Any]) -> int:
    """Converts, evaluates and compares; 1 where an AP isn't as published.

    coco_root: with val2017/ and annotations/.  file: the published checkpoint.  out: folder for what comes out.
    keys: of the config, as the command line gives them.
    """
    split = coco_root / "annotations/person_keypoints_val2017.json" if "keypoints" in model.ap else coco_root
    for path, what in ((file, "published checkpoint"), (split, "COCO's val split")):
        if not path.exists():
            where = f"; it is published as {model.weights}" if path == file else ""
            raise UserError(f"{path}: no {what}{where}")
    out.mkdir(parents=True, exist_ok=True)
    converted, metrics = out / "converted.ckpt", out / "metrics.json"
    own = converted.with_name("converted.config.yaml")  # written where the file says otherwise than the config
    for former in (converted, metrics, own):
        former.unlink(missing_ok=True)
    config = ROOT / f"configs/{model.config}.yaml"
    options = words({**model.keys, **keys})
    call("-m", "src.convert_checkpoint", "--ckpt_file", file, "--out", converted, "--config_path", config, *options)
    call(
        *("eval.py", "--config_path", own if own.exists() else config, "--checkpoint_path", converted),
        *("--dataset", "coco", "--val_dataset", split, "--results", out / "results.json", "--metrics", metrics),
        *options,
    )
    rows = judge(model, json.loads(metrics.read_text(encoding="utf-8")))
    print_table(f"{model.name} of {model.project}", ("AP", "here", "published", "difference", ""), rows)
    return int(any(row[-1] != "pass" for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", metavar="MODEL", help="its name in the table")
    parser.add_argument("--list", action="store_true", help="print the table")
    parser.add_argument("--coco_root", type=Path, help="folder with val2017/ and annotations/")
    parser.add_argument("--ckpt", type=Path, help="the file that the project published")
    parser.add_argument("--out", type=Path, help="folder for what comes out (default: train_outputs/published/MODEL)")
    parser.add_argument("--record", default=RECORD, type=Path, help=argparse.SUPPRESS)
    parser.epilog = "Any key of the config can follow as --KEY VALUE."
    options, rest = parser.parse_known_args(arguments)
    models = read_models(options.record)
    if options.list:
        tables(models)
        return 0
    if options.model is None:
        raise UserError("name a MODEL of the table that python -m benchmarks.published --list prints")
    model = find(options.model, models)
    if options.coco_root is None or options.ckpt is None:
        raise UserError(f"{model.name}: pass --coco_root and, as --ckpt, the file {model.weights}")
    out = options.out or Path("train_outputs/published") / model.name
    return check(model, options.coco_root.absolute(), options.ckpt.absolute(), out.absolute(), parse_overrides(rest))


if __name__ == "__main__":
    run_command(main)
