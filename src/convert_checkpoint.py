"""Converts another project's checkpoint: python -m src.convert_checkpoint --ckpt_file SRC --out DST.ckpt

Reads torchvision's, Detectron2's, mmdetection's, maskrcnn-benchmark's, MindSpore model zoo's and mindcv's checkpoints
and this project's own; writes MindSpore's .ckpt or .safetensors. Prints what it used, what not, and what isn't filled.
"""

import argparse
from pathlib import Path

from src.config import Config, load_config, load_nameless_config, parse_overrides
from src.convert.conversion import (
    LAYOUTS,
    Conversion,
    backbone_keys,
    config_name,
    convert,
    recognise,
    renamed,
    target_shapes,
)
from src.convert.pickles import ConversionError
from src.convert.readers import State, read_state
from src.models.build import build_backbone, build_detector
from src.runtime.errors import run_command
from src.training.checkpoints import save_checkpoint

__all__ = ["main", "run"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def choose_config(layout: str, named: Conversion, given: str | None, overrides: dict) -> tuple[Config, str]:
    """The config to convert for, and what to call it: the given one, the family's, or what the backbone needs."""
    if given:
        return load_nameless_config(given, overrides), given
    shapes = {n: v.shape for n, v in named.params.items()}
    keys = backbone_keys(shapes)
    if named.backbone_only:
        config = load_config(CONFIGS / "mask_rcnn_r50_fpn.yaml", keys | overrides)
        return config, ", ".join(f"{k} {v}" for k, v in keys.items() if k.startswith("backbone."))
    name = config_name(layout, shapes)
    family = LAYOUTS[layout].FAMILY
    if family and (CONFIGS / name).is_file():
        return load_nameless_config(CONFIGS / name, overrides), f"configs/{name}"
    there = ", ".join(sorted(p.name for p in CONFIGS.glob(f"{family}_*.yaml"))) if family else "any of configs/"
    raise ConversionError(f"no configs/{name}; pass --config_path (configs of this layout: {there})")


def report(state: State, out: Conversion) -> None:
    """Prints what became of every array, by name."""
    print(f"used: {len(out.used)} arrays")
    print(f"unused: {len(out.unused)} arrays" + listed(out.unused))
    if state.others:
        print(f"not read, beside the arrays: {', '.join(state.others)}")
    print(f"filled: {len(out.params) - len(out.mismatched)} parameters")
    print(f"not filled: {len(out.unfilled)} parameters" + listed(out.unfilled))
    if out.mismatched:
        print(f"of another shape: {len(out.mismatched)} parameters" + listed(out.mismatched))
    for note in out.notes:
        print(f"note: {note}")


def listed(names: list[str]) -> str:
    return ": " + ", ".join(names) if names else ""


def check(out: Conversion, config: Config, config_called: str) -> None:
    """Raises ConversionError unless all of the target is filled with numbers."""
    problems = [
        f"{what}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in (
            ("of another shape", out.mismatched),
            ("not filled", out.unfilled),
            ("NaN or infinite", out.broken),
        )
        if names
    ]
    if not problems:
        return
    remedy = "convert an earlier checkpoint" if out.broken else "pass as --config_path the config that fits"
    if out.classes not in (None, config.num_classes):
        problems.insert(0, f"it has {out.classes} classes with the background, not {config.num_classes}")
        remedy = f"pass --num_classes {out.classes}, or as --config_path the config that fits"
    raise ConversionError(f"doesn't fit {config_called}: {'; '.join(problems)}; nothing is written; {remedy}")


def run(
    source: Path, target: Path, layout: str, config_path: str | None, norm_eps: float | None, overrides: dict
) -> None:
    """Reads, converts, reports and writes. Raises UserError."""
    if target.suffix not in (".ckpt", ".safetensors") or target.is_dir():
        raise ConversionError(f"{target}: --out names a .ckpt or a .safetensors file")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConversionError(f"{target}: --out is the file to convert; name another")
    if norm_eps is not None and not 0 <= norm_eps < 1:
        raise ConversionError(f"--norm_eps {norm_eps}: a batch norm's epsilon is from 0 to 1")
    state = read_state(source)
    try:
        found = recognise(state.arrays) if layout == "auto" else layout
        named = renamed(state.arrays, found)
        if not named.params:
            first = ", ".join(list(state.arrays)[:5])
            raise ConversionError(f"none of its {len(state.arrays)} arrays has a name of layout {found}: {first}, ...")
        config, called = choose_config(found, named, config_path, overrides)
        if named.backbone_only:
            targets = target_shapes(build_backbone(config), "backbone.")
        else:
            targets = target_shapes(build_detector(config))
        recognised = "recognised" if layout == "auto" else "taken"
        part = "the backbone alone" if named.backbone_only else config.detector
        print(f"{source}: a {state.kind} file of {len(state.arrays)} arrays, {recognised} as {found}: {part}, {called}")
        out = convert(state.arrays, found, config, targets, norm_eps)
        report(state, out)
        check(out, config, called)
    except ConversionError as e:
        raise ConversionError(f"{source}: {e}") from None
    save_checkpoint(out.params, target, "free space or name another place")
    print(f"{target}: {len(out.params)} parameters" + (", backbone.pretrained takes it" if out.backbone_only else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert another project's checkpoint.")
    parser.add_argument("--ckpt_file", type=Path, required=True, help=".pth, .pkl, .ckpt or .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .ckpt or .safetensors")
    parser.add_argument(
        "--layout", default="auto", choices=("auto", *LAYOUTS), help="whose names (default: %(default)s)"
    )
    parser.add_argument("--config_path", help="config of the detector (default: the layout's, for what the file holds)")
    parser.add_argument("--norm_eps", type=float, help="batch norm's epsilon where the file comes from, if unusual")
    parser.epilog = "Any key of the config can follow as --KEY VALUE."
    arguments, rest = parser.parse_known_args()
    run(
        arguments.ckpt_file,
        arguments.out,
        arguments.layout,
        arguments.config_path,
        arguments.norm_eps,
        parse_overrides(rest),
    )
    return 0


if __name__ == "__main__":
    run_command(main)
