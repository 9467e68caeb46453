"""AIPP, the Ascend chip's own image preprocessing: bytes in, normalised pixels out.

python -m src.export.aipp --config_path CONFIG > ascend310_infer/aipp.cfg
python -m src.export.aipp --config_path CONFIG --upright > ascend310_infer/aipp-upright.cfg

The second, beside the first, where upright pictures have the canvas turned (resize: short_side).
"""

import argparse
import sys

from src.config import Config, add_config_arguments, config_from_arguments
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal

__all__ = ["aipp_config"]


def aipp_config(config: Config, upright: bool = False) -> str:
    """The AIPP configuration that normalises as `config` does; upright: on the turned canvas.

    Its input is the canvas as bytes (N, H, W, 3), channels in the network's order; the chip computes
    (byte - mean_chn - min_chn) * var_reci_chn, of which only mean_chn has to be a whole number. Raises UserError where
    pictures have more than whole grey levels.
    """
    if config.resize_filter == "unrounded":
        raise UserError("resize_filter: unrounded, and AIPP takes whole grey levels alone; set it to bilinear")
    width, height = (config.img_height, config.img_width) if upright else (config.img_width, config.img_height)
    lines = [
        "aipp_op {",
        "  aipp_mode: static",
        "  input_format: RGB888_U8",
        f"  src_image_size_w: {width}",
        f"  src_image_size_h: {height}",
        "  crop: false",
        "  csc_switch: false",
        "  rbuv_swap_switch: false",
    ]
    for i, (mean, std) in enumerate(zip_equal(config.img_mean, config.img_std)):
        lines += [f"  mean_chn_{i}: 0", f"  min_chn_{i}: {mean!r}", f"  var_reci_chn_{i}: {1 / std:.10g}"]
    return "\n".join([*lines, "}", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the AIPP configuration of a config to standard output.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--upright", action="store_true", help="of the model for upright pictures (NAME-upright)")
    config, known = config_from_arguments(parser)
    if known.upright and not config.turns_canvas:
        raise UserError(f"--upright: with resize: {config.resize}, upright pictures have no canvas of their own")
    sys.stdout.write(aipp_config(config, known.upright))
    return 0


if __name__ == "__main__":
    run_command(main)
