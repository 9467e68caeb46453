"""Test-time augmentation: pictures at several sizes and mirrored, and what all of these views find as one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config, at_scales
from src.models.box_coder import take_rows
from src.models.build import at_canvas
from src.models.rcnn import RCNN
from src.ops.nms import BatchedNMS
from src.runtime.newer import zip_equal

__all__ = ["Views"]

Scale = tuple[np.ndarray, np.ndarray]  # images (B, 3, H, W) on a canvas, and the (height, width) of each there, (B, 2)


class Views:
    """A detector at the config's `test_scales`, and mirrored with `test_flip`, as Detectron2's GeneralizedRCNNWithTTA:
    boxes of all views are merged by NMS, the best max_per_img stay, and their masks are the means of the probabilities
    that each view's mask head has for them.

    One view alone is the detector as it is, on that canvas. With test_canvas: picture it is on the canvas of whatever
    pictures come. The weights are the detector's own; a graph is compiled for each canvas.
    """

    def __init__(self, config: Config, detector: RCNN):
        self.config, self.detector = config, detector
        self.by_canvas: dict[tuple[int, ...], RCNN] | None = {} if config.test_canvas == "picture" else None
        own = [scale == 1 for scale in config.test_scales]
        self.detectors = [detector if o else at_canvas(c, detector) for o, c in zip_equal(own, at_scales(config))]
        self.flips = (False, True) if config.test_flip else (False,)
        self.alone = len(self.detectors) * len(self.flips) == 1
        rcnn = config.test_cfg.rcnn
        self.finders = [Finder(d).set_train(False) for d in self.detectors]
        self.more = [More(d).set_train(False) for d in self.detectors]
        self.merge = Merge(rcnn.iou_threshold, rcnn.max_per_img, rcnn.agnostic_nms)

    @staticmethod
    def needed(config: Config) -> bool:
        """Whether the config asks for anything but the plain detector."""
        return config.test_scales != [1.0] or config.test_flip or config.test_canvas != "config"

    def on_canvas(self, height: int, width: int) -> RCNN:
        """The detector on a canvas of pictures."""
        assert self.by_canvas is not None
        if (height, width) not in self.by_canvas:
            config = replace(self.config, img_height=height, img_width=width, resize="canvas")
            self.by_canvas[height, width] = at_canvas(config, self.detector).set_train(False)
        return self.by_canvas[height, width]

    def __call__(self, scales: Sequence[Scale]) -> list[np.ndarray]:
        """RCNN's outputs of pictures on the canvases of at_scales(config), in pixels of the first canvas."""
        if self.alone:
            images, sizes = scales[0]
            detector = self.detectors[0] if self.by_canvas is None else self.on_canvas(*images.shape[2:])
            return [x.asnumpy() for x in detector(Tensor(images), Tensor(sizes))]
        return self.merged(scales)

    def merged(self, scales: Sequence[Scale]) -> list[np.ndarray]:
        """The same, merged, however many views there are."""
        first, views, found = scales[0][1], [], []
        for i, (images, sizes) in enumerate(scales):
            for flip in self.flips:
                out = self.finders[i](Tensor(mirrored(images, sizes) if flip else images), Tensor(sizes))
                views.append((i, flip, out[4:]))
                boxes = turned_back(out[0].asnumpy(), sizes) if flip else out[0].asnumpy()
                found.append([rescaled(boxes, sizes, first), *(x.asnumpy() for x in out[1:4])])
        joined = [np.concatenate(parts, 1) for parts in zip_equal(*found)]
        boxes, *rest = self.merge(*map(Tensor, joined))
        return [x.asnumpy() for x in (boxes, *rest)] + self.branches(scales, views, boxes.asnumpy(), rest)

    def branches(
        self,
        scales: Sequence[Scale],
        views: list[tuple[int, bool, tuple[Tensor, ...]]],
        boxes: np.ndarray,
        rest: list[Tensor],
    ) -> list[np.ndarray]:
        """What the branches give for merged boxes (B, D, 4): means over the views."""
        total: list[np.ndarray] = []
        for i, flip, features in views:
            sizes = scales[i][1]
            here = rescaled(boxes, scales[0][1], sizes)
            here = turned_back(here, sizes) if flip else here
            out = [x.asnumpy() for x in self.more[i](Tensor(here), *rest, *features)]
            out = [x[..., ::-1] for x in out] if flip else out
            total = [t + x for t, x in zip_equal(total, out)] if total else out
        return [t / np.float32(len(views)) for t in total]


def mirrored(images: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pictures (B, 3, H, W) left to right, each within its (height, width) of the canvas."""
    out = np.zeros_like(images)
    for row, image, (_, width) in zip_equal(out, images, sizes.astype(int)):
        row[:, :, :width] = image[:, :, :width][:, :, ::-1]
    return out


def turned_back(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (B, N, 4) of mirrored pictures in those that aren't, or the other way."""
    width = sizes[:, 1].astype(np.float32)[:, None]
    return np.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)


def rescaled(boxes: np.ndarray, sizes: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Boxes (B, N, 4) of pictures of `sizes` (B, 2) on one canvas in pixels of another, where they have sizes `to`."""
    factor = (to / sizes)[:, ::-1].astype(np.float32)
    return boxes * np.concatenate([factor, factor], 1)[:, None]


class Finder(nn.Cell):
    """A detector up to its boxes. Inputs as RCNN's; outputs: boxes, scores, labels, valid, then the pyramid's maps."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector, self.heads = detector, detector.roi_heads

    def construct(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        features = self.detector.features(image)
        proposals = self.detector.rpn(features, image_size)
        classes = self.heads.classify(features, proposals, image_size)
        found = self.heads.selector(*classes, proposals["valid"], image_size)
        return (found["boxes"], found["scores"], found["labels"], found["valid"]) + features


class More(nn.Cell):
    """A detector's branches on given boxes. Inputs as Finder's outputs; outputs: of each branch."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.heads = detector.roi_heads

    def construct(self, *found: Tensor) -> tuple[Tensor, ...]:
        detections = {"boxes": found[0], "scores": found[1], "labels": found[2], "valid": found[3]}
        out = ()  # type: tuple[Tensor, ...]
        for m in self.heads.more:
            out += (m(found[4:], detections),)
        return out


class Merge(nn.Cell):
    """The best `most` detections of several views, by NMS class by class, or `agnostic`.

    Inputs: boxes (B, N, 4), scores, labels, valid (B, N), all of one canvas. Outputs: the same of `most` rows, all-zero
    where not valid.
    """

    def __init__(self, iou_threshold: float, most: int, agnostic: bool):
        super().__init__()
        self.nms, self.agnostic = BatchedNMS(iou_threshold, most), agnostic

    def construct(self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        index, kept = self.nms(boxes, scores, ops.zeros_like(labels) if self.agnostic else labels, valid)
        mask = kept.astype(ms.float32)
        return (
            take_rows(boxes, index) * mask.expand_dims(-1),
            take_rows(scores, index) * mask,
            take_rows(labels, index) * kept.astype(labels.dtype),
            kept,
        )
