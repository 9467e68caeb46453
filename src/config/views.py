"""The sizes at which pictures are detected in: the config at each of its test_scales."""

from __future__ import annotations

import dataclasses

from src.config.backbones import backbone_strides
from src.config.keys import Config

__all__ = ["at_scales"]


def at_scales(config: Config) -> list[Config]:
    """The config with the canvas, short_side and long_side times each of its test_scales, the canvas's sides rounded to
    multiples of the backbone's last stride; each for its scale alone. The config's own canvas at 1.
    """
    step, out = backbone_strides(config.backbone)[-1], []
    for factor in config.test_scales:
        c = dataclasses.replace(config, test_scales=[1.0])
        if factor != 1:
            c.img_width, c.img_height = (max(1, round(n * factor / step)) * step for n in (c.img_width, c.img_height))
            c.short_side, c.long_side = (max(1, round(n * factor)) for n in (c.short_side, c.long_side))
        out.append(c)
    return out
