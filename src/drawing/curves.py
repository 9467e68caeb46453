"""A training's losses and APs as a curve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from src.runtime.errors import UserError
from src.runtime.files import read_regular
from src.runtime.newer import zip_equal

__all__ = ["CurveError", "plot_loss_curve", "read_loss_log"]


class CurveError(UserError):
    """A loss log that can't be read, or a picture that can't be written; the message names the file."""


def read_loss_log(path: str | Path) -> list[dict]:
    """loss_{rank}.log as a dictionary a line: epoch, step, and each loss by name. Raises CurveError.

    A last line that training is still writing, or was killed in, is left out.
    """
    try:
        text = read_regular(path).decode()
    except OSError as e:
        raise CurveError(f"{path}: can't read the loss log: {e.strerror}") from None
    except UnicodeDecodeError:
        raise CurveError(f"{path}: not text, so no loss log") from None
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        head = re.match(r"epoch: (\d+) step: (\d+), ", line)
        try:
            losses = dict(part.split(": ") for part in line[head.end() :].split(", ")) if head else {}
            values = {name: float(value) for name, value in losses.items()}
        except ValueError:
            values = {}
        if head and values:
            rows.append({"epoch": int(head[1]), "step": int(head[2]), **values})
        elif head or (rows and line.strip()):
            raise CurveError(f"{path}, line {number}: damaged; remove the line: {line[:60]!r}")
    if not rows:
        raise CurveError(f"{path}: no line of losses (epoch: 1 step: 1, total_loss: ...)")
    return rows


def plot_loss_curve(
    losses: str | Path | Sequence[dict],
    out: str | Path,
    ap: Mapping[float, Mapping[str, float]] | None = None,
    validation: Mapping[int, float | None] | None = None,
) -> None:
    """Total and component losses over the steps, log scale, smoothed over their scatter, as a PNG at `out`.

    losses: a loss_{rank}.log, or dictionaries as read_loss_log returns; a step is counted within its epoch. ap: epochs
    done (1.0: after the first) to metrics by name ({"bbox AP": 0.31}), drawn below. validation: total loss on the
    validation split, by epoch. Raises CurveError.
    """
    rows = list(losses) if not isinstance(losses, (str, Path)) else read_loss_log(losses)
    if not rows:
        raise CurveError(f"{out}: no losses to draw")
    steps, epoch_ends = running_steps(rows)
    total = {"total_loss": 0, "rpn_loss": 1, "rcnn_loss": 1}
    names = sorted((n for n in rows[0] if n.endswith("_loss")), key=lambda n: total.get(n, 2))
    # the stages' sums say nothing beside their parts
    names = [n for n in names if n not in ("rpn_loss", "rcnn_loss") or len(names) <= 3]
    figure = Figure(figsize=(9, 7.5 if ap else 5), dpi=120, layout="tight")
    axes = figure.subplots(2 if ap else 1, 1, squeeze=False, height_ratios=[2.2, 1] if ap else [1])
    upper = axes[0, 0]
    shades = ["#222222", *(matplotlib.colormaps["tab10"](i)[:3] for i in range(10))]
    for name, shade in zip(names, shades):
        values = np.array([r.get(name, np.nan) for r in rows], float)
        values[values <= 0] = np.nan  # no place on a log scale
        strong = name == "total_loss"
        upper.plot(steps, values, color=shade, alpha=0.18, linewidth=0.7)
        upper.plot(
            steps, smooth(values), color=shade, linewidth=2.2 if strong else 1.4, label=name.removesuffix("_loss")
        )
    upper.set(yscale="log", xlabel="step", ylabel="loss (log scale)", xlim=(0, max(steps[-1], 1)))
    shown = np.concatenate([smooth(np.array([r.get(n, np.nan) for r in rows], float)) for n in names])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown):
        # single steps without a positive box or mask would stretch the scale to nothing
        upper.set_ylim(shown.min() / 2, shown.max() * 2)
    points = [(epoch_ends[e - 1], v) for e, v in sorted((validation or {}).items()) if v and e <= len(epoch_ends)]
    if points:
        upper.plot(*zip_equal(*points), color=shades[0], marker="o", linestyle="--", label="total, validation")
    upper.grid(True, which="major", alpha=0.3)
    upper.legend(ncols=3, fontsize=9, framealpha=0.9, loc="upper right")
    if len(epoch_ends) > 1:
        above = upper.secondary_xaxis("top")
        every = max(1, round(len(epoch_ends) / 12))
        above.set_xticks(
            epoch_ends[every - 1 :: every], [str(i + 1) for i in range(len(epoch_ends))][every - 1 :: every]
        )
        above.set_xlabel("epochs done")
    if ap:
        lower = axes[1, 0]
        epochs = sorted(ap)
        for kind in sorted({k for e in epochs for k in ap[e]}):
            points = [(e, ap[e][kind]) for e in epochs if kind in ap[e]]
            lower.plot(*zip_equal(*points), marker="o", label=kind)
        lower.set(xlabel="epochs done", ylabel="AP", ylim=(0, 1), xlim=(0, max(len(epoch_ends), epochs[-1])))
        lower.grid(True, alpha=0.3)
        lower.legend(fontsize=9, loc="upper left")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as e:
        raise CurveError(f"{out}: can't write the picture: {e.strerror}") from None


def running_steps(rows: Sequence[dict]) -> tuple[np.ndarray, list[float]]:
    """Steps since the start (rows,), and the step at the end of each whole epoch, from steps counted within epochs."""
    steps, ends, before, last = [], [], 0, (rows[0].get("epoch", 1), 0)
    for i, row in enumerate(rows):
        epoch, step = row.get("epoch", 1), row.get("step", i + 1)
        if epoch != last[0]:
            ends.append(before + last[1])
            # a log whose steps run through isn't counted twice
            before = before + last[1] if step <= last[1] else 0
        last = (epoch, step)
        steps.append(before + step)
    # a log of a run that goes on, or was stopped, ends within an epoch
    if not ends or steps[-1] - ends[-1] >= max(np.diff([0, *ends])):
        ends.append(steps[-1])
    return np.array(steps, float), [float(end) for end in ends]


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over about a fortieth of the points, on either side; points that aren't finite are left out."""
    reach = max(1, len(values) // 40)
    kernel = np.ones(2 * reach + 1)
    good = np.isfinite(values)
    if not good.any():
        return values
    count = np.convolve(good, kernel, "full")[reach : reach + len(values)]
    total = np.convolve(np.where(good, values, 0), kernel, "full")[reach : reach + len(values)]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
