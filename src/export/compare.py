"""What an export is compared with: a reference input, and pairs of detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.config import Config
from src.runtime.newer import zip_equal

__all__ = ["BOX", "MATCHED", "SCORE", "SEED", "Agreement", "compare_detections", "reference_input", "together"]

SEED = 0
BOX, SCORE = 0.5, 1e-3  # pixels of the original; probability
MATCHED = 0.99  # a pair of boxes at a threshold may fall either way in float32


@dataclass
class Agreement:
    """Of two lists of detections: how many match within `box` pixels and `score`, of how many of the longer list, and
    the largest differences of those that do; max_errors: of what branches give, by the branch's name.
    """

    box: float
    score: float
    matched: int
    total: int
    max_box_error: float
    max_score_error: float
    max_errors: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.matched >= MATCHED * self.total

    def __str__(self) -> str:
        text = f"{self.matched} of {self.total} detections within {self.box:g} px and {self.score:g} in score"
        if not self.matched:
            return text
        text += f", largest differences {self.max_box_error:.2g} px, {self.max_score_error:.2g} in score"
        return text + "".join(f", {error:.2g} in {name}" for name, error in self.max_errors.items())


def together(parts: Sequence[Agreement]) -> Agreement:
    """One agreement of several, of the same `box` and `score`."""
    worst = np.max([[a.max_box_error, a.max_score_error, *a.max_errors.values()] for a in parts], 0)
    matched, total = (sum(getattr(a, k) for a in parts) for k in ("matched", "total"))
    return _agreement(parts[0].box, parts[0].score, matched, total, worst, tuple(parts[0].max_errors))


def _agreement(
    box: float, score: float, matched: int, total: int, worst: np.ndarray, branches: Sequence[str]
) -> Agreement:
    first, second, *more = (float(v) for v in worst)
    return Agreement(box, score, matched, total, first, second, dict(zip_equal(branches, more)))


def reference_input(config: Config, batch_size: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """A batch as the exported graph takes it: image (N, 3, H, W) smooth noise of unit scale, zero outside the picture,
    and image_shape (N, 4), where each picture takes another part of the canvas and was resized by other factors.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    h, w = config.img_height, config.img_width
    image = np.zeros((batch_size, 3, h, w), np.float32)
    shape = np.zeros((batch_size, 4), np.float32)
    for i in range(batch_size):
        coarse = random.normal(0.0, 1.0, (3, -(-h // 16), -(-w // 16)))
        noise = coarse.repeat(16, 1).repeat(16, 2)[:, :h, :w] + random.normal(0.0, 0.3, (3, h, w))
        rows, columns = (h, w - 16 * (i + 1)) if i % 2 == 0 else (h - 16 * i, w)
        image[i, :, :rows, :columns] = noise[:, :rows, :columns]
        shape[i] = rows, columns, round(rows * (1.5 + 0.25 * i)), round(columns * (1.5 + 0.25 * i))
    return image, shape


def compare_detections(
    ours: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    box: float = BOX,
    score: float = SCORE,
    branches: Sequence[str] = (),
) -> Agreement:
    """Detections (boxes (N, D, 4), scores, labels, valid (N, D), and what `branches` give, (N, D, ...) each) of two
    programs.

    One to one, nearest boxes first, within `box` pixels and `score`, and of one label. The differences are those of
    matched pairs. What follows the four and isn't among `branches` isn't looked at.
    """
    matched = total = 0
    worst = np.zeros(2 + len(branches))
    for i in range(len(ours[0])):
        a, b = ([x[i][np.asarray(side[3][i], bool)] for x in side] for side in (ours, wanted))
        total += max(len(a[0]), len(b[0]))
        distance = np.abs(a[0][:, None].astype(np.float64) - b[0][None]).max(-1, initial=0)
        allowed = (distance <= box) & (a[2][:, None] == b[2][None]) & (np.abs(a[1][:, None] - b[1][None]) <= score)
        rows, columns = np.nonzero(allowed)
        free_a, free_b = set(range(len(a[0]))), set(range(len(b[0])))
        for k in np.argsort(distance[rows, columns], kind="stable"):
            r, c = int(rows[k]), int(columns[k])
            if r in free_a and c in free_b:
                free_a.remove(r)
                free_b.remove(c)
                matched += 1
                more = [np.abs(a[4 + k][r] - b[4 + k][c]).max() for k in range(len(branches))]
                worst = np.maximum(worst, [distance[r, c], abs(float(a[1][r]) - float(b[1][c])), *more])
    return _agreement(box, score, matched, total, worst, branches)
