"""The training losses on the validation split."""

from __future__ import annotations

import numpy as np

from src.config import Config
from src.data.augment import without_augmentation
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.models.rcnn import RCNNLoss
from src.runtime.newer import zip_equal
from src.runtime.ranks import Group
from src.training.step import SamplerKeys, step_inputs

__all__ = ["ValidationLoss"]


class ValidationLoss:
    """Means of the losses of `loss` over the validation split, without augmentation or update.

    The batches and the samplers' choices are the same at each call, and training goes on as if it hadn't been: batch
    norms use their running statistics. Images without objects are left out unless config.train_empty_images, and so are
    those that fill no batch. Its graph, the losses without gradients, is compiled at the first call.

    group: ranks among which the images are shared. Raises UserError where the split can't be learnt from.
    """

    def __init__(self, config: Config, loss: RCNNLoss, group: Group | None = None):
        self.loss, self.group, plain = loss, group or Group(), without_augmentation(config)
        folder = ensure_mindrecord(plain, "val", training=True, quiet=not self.group.is_first)
        self.loader = TrainLoader(plain, folder, self.group.rank, self.group.size)
        self.keys, self.graph = SamplerKeys(config), config.mode == "graph"

    def __call__(self) -> dict[str, float]:
        """Losses by name, on every rank."""
        rows: list[np.ndarray] = []
        self.loss.set_train(False)
        try:
            for batch in self.loader.epoch(0):
                inputs = step_inputs(batch, self.keys(0, batch["image_id"]))
                if self.group.size > 1:
                    # ranks that read or compile faster wait here, not in a collective
                    if self.graph and not rows:
                        self.loss.compile(*inputs)
                    self.group.barrier()
                rows.append(self.loss(*inputs).asnumpy())
        finally:
            self.loss.set_train(True)
        means = np.mean(self.group.exchange(np.mean(rows, axis=0, dtype=np.float64)), axis=0)
        return dict(zip_equal(self.loss.names, means.tolist()))
