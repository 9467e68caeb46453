"""Exports a checkpoint: python export.py --config_path CFG --ckpt_file CKPT --device_target CPU --file_format MINDIR"""

import argparse

from src.checkpoints.files import demand_checkpoint, load_detector
from src.config import add_config_arguments, load_config, parse_overrides
from src.export import SUFFIX
from src.runtime.errors import UserError, loading, run_command


def main() -> int:
    parser = argparse.ArgumentParser(description="Export a checkpoint for other runtimes.", allow_abbrev=False)
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--ckpt_file", required=True, help="checkpoint of the whole detector (.ckpt, .safetensors)")
    parser.add_argument("--file_format", default="MINDIR", help=f"{', '.join(SUFFIX)} (default: %(default)s)")
    parser.add_argument("--file_name", help="file to write; its suffix may be left out (default: the config's brief)")
    parser.add_argument("--batch_size", default="1", help="images a call (default: %(default)s)")
    lying = "; where upright pictures have the canvas turned, the lying one's"
    parser.add_argument("--width", help=f"canvas width (default: the config's img_width{lying})")
    parser.add_argument("--height", help=f"canvas height (default: the config's img_height{lying})")
    parser.add_argument(
        "--split", action="store_true", help="three graphs for MindSpore Lite, with RoIAlign and NMS left to the host"
    )
    parser.add_argument(
        "--mindir_version",
        type=int,
        default=1,
        choices=(1, 3),
        help="of the split form's files: 1 for MindSpore Lite 2.0, 3 for releases that read MindSpore 2.8's own"
        " (default: %(default)s)",
    )
    known, rest = parser.parse_known_args()
    given = {"test_batch_size": known.batch_size, "img_width": known.width, "img_height": known.height}
    overrides = parse_overrides(rest) | {k: v for k, v in given.items() if v is not None}
    config = load_config(known.config_path, overrides)
    file_format = known.file_format.upper()
    if file_format not in SUFFIX:
        raise UserError(f"--file_format {known.file_format}: not one of {', '.join(SUFFIX)}")
    if known.split and file_format != "MINDIR":
        raise UserError(f"--split is a MINDIR's form, not {file_format}'s; leave --file_format out")
    from src.data.formats import resolve_classes

    config = resolve_classes(config, training=False, checkpoint=known.ckpt_file)
    demand_checkpoint(known.ckpt_file)
    with loading():
        from src.export.sidecar import upright_path
        from src.export.whole import canvases, export_whole, model_path
        from src.models.build import build_detector
        from src.ops.device import set_device
    set_device(config)
    detector = build_detector(config, weights=False)
    load_detector(detector, known.ckpt_file)
    detector.set_train(False)
    path = model_path(known.file_name or config.brief, file_format)
    if known.split:
        from src.export.split import export_split

        export_split(config, detector, path, known.mindir_version)
        return 0
    agreement = export_whole(config, detector, path, file_format)
    for file in (path, upright_path(path))[: len(canvases(config))]:
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB), {file}.json")
    if agreement and not agreement.total:
        print("not compared: the checkpoint detects nothing on the reference input; is it trained?")
    elif agreement:
        print(f"compared with the checkpoint on the reference input: {agreement}")
    return 0


if __name__ == "__main__":
    run_command(main)
