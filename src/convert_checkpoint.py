"""Converts another project's checkpoint: python -m src.convert_checkpoint --ckpt_file SRC --out DST.ckpt

Reads torchvision's, Detectron2's, mmdetection's, maskrcnn-benchmark's, MindSpore model zoo's and mindcv's checkpoints,
TensorFlow-Slim's MobileNetV1 and this project's own; writes MindSpore's .ckpt or .safetensors. Prints what it used,
what not, and what isn't filled.
Where the file says of itself what the config has otherwise, DST.config.yaml beside it is the config for it.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from src.checkpoints.convert.conventions import EPSILON, differing, said_of_itself, unlike
from src.checkpoints.convert.conversion import (
    LAYOUTS,
    Conversion,
    backbone_of,
    branches_of,
    config_name,
    convert,
    find_prefix,
    fits_a_layout,
    recognise,
    renamed,
    target_shapes,
    unwrapped,
)
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.convert.readers import State, read_state
from src.checkpoints.convert.unused import kinds_of, left_out, mask_arrays
from src.checkpoints.files import save_checkpoint
from src.config import Config, load_config, load_nameless_config, parse_overrides, save_config
from src.models.build import build_backbone, build_detector
from src.runtime.errors import run_command
from src.runtime.files import whole

__all__ = ["main", "run"]

MOST_OTHERS = 20  # names that are listed of what isn't an array
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def choose_config(layout: str, named: Conversion, given: str | None, overrides: dict) -> tuple[Config, str]:
    """The config to convert for, and what to call it: the given one, the family's, or what the backbone needs."""
    if given:
        return load_nameless_config(given, overrides), given
    shapes = {n: v.shape for n, v in named.params.items()}
    keys = backbone_of(shapes)[0]
    if named.backbone_only:
        config = load_config(CONFIGS / "mask_rcnn_r50_fpn.yaml", keys | overrides)
        return config, ", ".join(f"{k} {v}" for k, v in keys.items() if k.startswith("backbone."))
    name = config_name(layout, shapes)
    family = LAYOUTS[layout].FAMILY
    plain = [unwrapped(n) for n in named.unused]
    if family and (CONFIGS / name).is_file():
        config = load_nameless_config(CONFIGS / name, overrides)
        masks = [] if "mask" in config.branches else mask_arrays(plain)
        if masks:
            kinds = ", ".join(kinds_of(masks)) or some(masks)
            raise ConversionError(
                f"its mask head isn't one that is here ({kinds}); for its boxes alone pass --config_path configs/{name}"
            )
        return config, f"configs/{name}"
    there = ", ".join(sorted(p.name for p in CONFIGS.glob(f"{family}_*.yaml"))) if family else "any of configs/"
    extra = left_out(plain, {unwrapped(n) for n in named.used.values()}, branches_of(named.params), False)
    lacking = f", and layers that aren't here: {', '.join(kinds_of(extra)) or some(extra)}" if extra else ""
    raise ConversionError(f"no configs/{name}{lacking}; pass --config_path (configs of this layout: {there})")


def report(state: State, out: Conversion) -> None:
    """Prints what became of every array, by name."""
    print(f"used: {len(out.used)} arrays")
    print(f"unused: {len(out.unused)} arrays" + listed(out.unused))
    if state.others:
        print(f"not read, beside the arrays: {some(state.others, MOST_OTHERS)}")
    print(f"filled: {len(out.params) - len(out.mismatched)} parameters")
    print(f"not filled: {len(out.unfilled)} parameters" + listed(out.unfilled))
    if out.mismatched:
        print(f"of another shape: {len(out.mismatched)} parameters" + listed(out.mismatched))
    for note in out.notes:
        print(f"note: {note}")


def listed(names: list[str]) -> str:
    return ": " + ", ".join(names) if names else ""


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check(out: Conversion, state: State, config: Config, config_called: str, allow_unused: bool) -> None:
    """Raises ConversionError unless all of the target is filled with numbers, and nothing of the source's model is
    left out that `allow_unused` doesn't leave to the user."""
    extra = [] if allow_unused else out.extra
    kinds = ", ".join(kinds_of(out.extra))
    problems = [
        f"{what}: {some(names)}"
        for what, names in (
            ("of another shape", out.mismatched),
            ("not filled", out.unfilled),
            ("NaN or infinite", out.broken),
            (
                f"layers that the config doesn't have ({kinds})" if kinds else "layers that the config doesn't have",
                extra,
            ),
            ("it says of itself what isn't so here", [] if allow_unused else out.unlike),
        )
        if names
    ]
    if not problems:
        return
    remedy = "pass as --config_path the config that fits"
    if not (out.mismatched or out.unfilled or extra):
        remedy = "pass as --config_path one that has it so, or --allow_unused true to convert it all the same"
    if out.broken:
        remedy = "convert an earlier checkpoint"
    elif extra and not (out.mismatched or out.unfilled):
        remedy = "it would detect something else without them; --allow_unused true leaves them out all the same"
    if out.classes not in (None, config.num_classes):
        problems.insert(0, f"it has {out.classes} classes with the background, not {config.num_classes}")
        remedy = f"pass --num_classes {out.classes}, or as --config_path the config that fits"
    elif out.unfilled and not state.whole:
        remedy = f"it ends without a checksum and may be cut short: copy it again, or {remedy}"
    raise ConversionError(f"doesn't fit {config_called}: {'; '.join(problems)}; nothing is written; {remedy}")


def adapt(said: dict[str, Any], config: Config, called: str, given: set[str], out: Conversion) -> dict[str, Any]:
    """Keys that the file says otherwise than the config, and that the command line doesn't give; all are noted."""
    differ = differing(said, config)
    chosen = {k: v for k, v in differ.items() if k not in given}
    for who, keys in ((called, chosen), ("the command line, which counts", differ.keys() - chosen.keys())):
        if keys:
            told = ", ".join(f"{k}: {brief(differ[k])}" for k in keys)
            out.notes.append(f"the file says of itself {told}; otherwise than {who}")
    if (
        "to_rgb" in chosen
        and chosen["to_rgb"]
        and config.backbone.stride_in_1x1
        and "backbone.stride_in_1x1" not in said
    ):
        out.notes.append(
            "the file doesn't say its strides: where its project's config has STRIDE_IN_1X1: False, as with"
            " torchvision's backbones, set backbone.stride_in_1x1 false"
        )
    return chosen


def brief(value: Any) -> str:
    """A value as YAML has it, long lists shortened."""
    if isinstance(value, list):
        return f"[{some([str(v) for v in value], 3)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(
    source: Path,
    target: Path,
    layout: str,
    config_path: str | None,
    norm_eps: float | None,
    overrides: dict,
    allow_unused: bool = False,
    prefix: str | None = None,
) -> None:
    """Reads, converts, reports and writes. Raises UserError.

    prefix: what is in front of the names of the model to convert, found where it is None.
    """
    if target.suffix not in (".ckpt", ".safetensors") or target.is_dir():
        raise ConversionError(f"{target}: --out names a .ckpt or a .safetensors file")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConversionError(f"{target}: --out is the file to convert; name another")
    if norm_eps is not None and not 0 <= norm_eps < 1:
        raise ConversionError(f"--norm_eps {norm_eps}: a batch norm's epsilon is from 0 to 1")
    state = read_state(source, fits_a_layout)
    try:
        if prefix is None:
            prefix = find_prefix(state.arrays) if layout == "auto" else ""
        arrays = {n.removeprefix(prefix): v for n, v in state.arrays.items() if n.startswith(prefix)}
        if not arrays:
            raise ConversionError(f"none of its arrays' names begins with --prefix {prefix}")
        found = recognise(arrays) if layout == "auto" else layout
        named = renamed(arrays, found)
        if not named.params:
            first = ", ".join(list(arrays)[:5])
            raise ConversionError(f"none of its {len(arrays)} arrays has a name of layout {found}: {first}, ...")
        config, called = choose_config(found, named, config_path, overrides)
        if named.backbone_only:
            targets = target_shapes(build_backbone(config), "backbone.")
        else:
            targets = target_shapes(build_detector(config, weights=False))
        recognised = "recognised" if layout == "auto" else "taken"
        part = "the backbone alone" if named.backbone_only else config.detector
        behind = f" behind {prefix}" if prefix else ""
        count = len(state.arrays)
        print(f"{source}: a {state.kind} file of {count} arrays, {recognised} as {found}{behind}: {part}, {called}")
        plain = {unwrapped(n): v for n, v in arrays.items()}
        said = said_of_itself(state.meta, plain)
        out = convert(arrays, found, config, targets, said.get(EPSILON) if norm_eps is None else norm_eps)
        out.unlike = unlike(state.meta, plain, config, named.backbone_only)
        out.unused += [n for n in state.arrays if not n.startswith(prefix)]
        if not state.whole:
            out.notes.append("the file has no checksum: nothing tells whether it was cut short or changed")
        differ = {} if named.backbone_only else adapt(said, config, called, set(overrides), out)
        if out.extra:
            what = ", ".join(kinds_of(out.extra)) or some(out.extra)
            out.notes.append(f"{len(out.extra)} arrays of its model have no place here ({what})")
        out.notes += [f"it says of itself what isn't so here: {what}" for what in out.unlike]
        report(state, out)
        check(out, state, config, called, allow_unused)
    except ConversionError as e:
        raise ConversionError(f"{source}: {e}") from None
    remedy = "free space or name another place"
    with contextlib.ExitStack() as beside:
        if differ:
            place = target.with_name(f"{target.stem}.config.yaml")
            own = choose_config(found, named, config_path, overrides | differ)[0]
            save_config(own, beside.enter_context(whole(place, ConversionError, remedy)))
        save_checkpoint(out.params, target, remedy)
    print(f"{target}: {len(out.params)} parameters" + (", backbone.pretrained takes it" if out.backbone_only else ""))
    if differ:
        print(f"{place}: the config for it: pass it as --config_path")


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert another project's checkpoint.")
    parser.add_argument(
        "--ckpt_file",
        type=Path,
        required=True,
        help=".pth, .pkl, .ckpt, .npz, .safetensors or .safetensors.index.json file",
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write: .ckpt or .safetensors")
    parser.add_argument(
        "--layout", default="auto", choices=("auto", *LAYOUTS), help="whose names (default: %(default)s)"
    )
    parser.add_argument("--config_path", help="config of the detector (default: the layout's, for what the file holds)")
    parser.add_argument("--norm_eps", type=float, help="batch norm's epsilon where the file comes from, if unusual")
    parser.add_argument("--prefix", help="what is in front of the names of the model to convert, of several (ema.)")
    parser.add_argument(
        "--allow_unused",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="leave out layers that the config doesn't have (default: %(default)s)",
    )
    parser.epilog = "Any key of the config can follow as --KEY VALUE."
    arguments, rest = parser.parse_known_args()
    run(
        arguments.ckpt_file,
        arguments.out,
        arguments.layout,
        arguments.config_path,
        arguments.norm_eps,
        parse_overrides(rest),
        arguments.allow_unused == "true",
        arguments.prefix,
    )
    return 0


if __name__ == "__main__":
    run_command(main)
