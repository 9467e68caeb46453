"""A state dict of another project, as parameters of our detectors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import nn

from src.checkpoints.convert import (
    detectron2,
    maskrcnn_benchmark,
    mindspore_zoo,
    mmdetection,
    native,
    tensorflow_slim,
    torchvision,
)
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.convert.rules import Traits
from src.checkpoints.convert.unused import AVERAGES, architectures_of, left_out
from src.config import COCO_CLASSES, DETECTORS, Config
from src.models.backbones import backbone_keys, only_in_detectors
from src.models.backbones.swin import swin_stages

__all__ = [
    "LAYOUTS",
    "Conversion",
    "backbone_of",
    "branches_of",
    "config_name",
    "convert",
    "find_prefix",
    "fits_a_layout",
    "recognise",
    "target_shapes",
    "unwrapped",
]

LAYOUTS = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "mmdetection": mmdetection,
    "maskrcnn_benchmark": maskrcnn_benchmark,
    "mindspore_zoo": mindspore_zoo,
    "tensorflow_slim": tensorflow_slim,
    "native": native,
}
# wrappers that leave their name in front: DistributedDataParallel, torch.compile, MindSpore's training cells
WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "_backbone.", "net.")
# of names in front of a model's: parts, names behind one, those that are tried
DEEPEST_PREFIX, FEWEST, MOST_PREFIXES, MOST_NAMES = 3, 20, 50, 20_000
NOTHING = np.zeros(0, np.float32)
# what puts the values of an array in our order, by the names it has there and here
ARRANGED = {"mmdetection": mmdetection.arranged, "tensorflow_slim": tensorflow_slim.arranged}
# COCO's category ids run to 90; these ten were never given an object
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
ALL_BRANCHES = {branch for branches in DETECTORS.values() for branch in branches}
CLASS_LOGITS = re.compile(r"bbox_heads?\.(\d\.)?cls\.weight")


@dataclass
class Conversion:
    """What became of a state dict.

    params: our parameters by name, float32.  used: their names in the source, by ours.  unused: the source's others.
    extra: those of the unused that the model computes with, and the target hasn't.
    unfilled: parameters of the target without a value.  mismatched: "name (source shape) for (target shape)".
    broken: parameters that hold NaN or infinity.  unlike: what the file says of its model that isn't so here.
    notes: what was changed besides names, line by line.
    """

    params: dict[str, np.ndarray] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> int | None:
        """Classes that the box head tells apart, with the background; None without a box head."""
        return next((len(v) for n, v in self.params.items() if CLASS_LOGITS.fullmatch(n) and v.ndim), None)

    @property
    def backbone_only(self) -> bool:
        return bool(self.params) and all(n.startswith("backbone.") for n in self.params)


def unwrapped(name: str) -> str:
    """A parameter's name without the names of wrappers in front."""
    # model.0.weight and network.0.0.weight are layers, not wrappers
    while name.startswith(WRAPPERS) and not name.split(".", 2)[1].isdigit():
        name = name.split(".", 1)[1]
    return name


def layouts_of(names: Collection[str]) -> list[str]:
    """The layouts that recognise these names, wrappers left out."""
    plain = {unwrapped(n) for n in names}
    return [name for name, layout in LAYOUTS.items() if layout.recognises(plain)]


def fits_a_layout(names: Collection[str]) -> bool:
    """Whether a state dict with these names holds a model of a layout, at the top or under a prefix."""
    try:
        return bool(layouts_of(names) or find_prefix(names))
    except ConversionError:
        return True


def find_prefix(names: Collection[str]) -> str:
    """What is in front of the names of the one model of a known layout ("detector."), "" where nothing is.

    Averages (ema.) don't count beside the model itself; the backbone of a detector that isn't known does only where
    nothing but a classifier is beside it. ConversionError where there are several models.
    """
    if layouts_of(names) or len(names) > MOST_NAMES:
        return ""
    groups: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), DEEPEST_PREFIX + 1)):
            groups.setdefault(".".join(parts[:depth]) + ".", set()).add(".".join(parts[depth:]))
    large = sorted((p for p, group in groups.items() if len(group) >= FEWEST), key=len)[:MOST_PREFIXES]
    found: list[str] = []
    for prefix in large:
        if prefix.startswith(tuple(found)) or not (layouts := layouts_of(groups[prefix])):
            continue
        model = renamed(dict.fromkeys(groups[prefix], NOTHING), layouts[0])
        outside = [unwrapped(n) for n in names if not n.startswith(prefix)]
        if not model.backbone_only or not left_out(outside, (), ALL_BRANCHES, True):
            found.append(prefix)
    first = [p for p in found if not AVERAGES.match(unwrapped(p))] or found
    if len(first) > 1:
        some = ", ".join(first[:5])
        raise ConversionError(f"it holds {len(first)} models, {some}; pass the one to convert as --prefix {first[0]}")
    return first[0] if first else ""


def recognise(names: Collection[str]) -> str:
    """The layout of a state dict with these names. ConversionError where there is none, or more than one."""
    found = layouts_of(names)
    if len(found) == 1:
        return found[0]
    some = ", ".join(sorted(n for n in names if not n.endswith("num_batches_tracked"))[:6])
    held = f"it holds {len(names)} arrays: {some}, ..."
    known = [] if found else architectures_of({unwrapped(n) for n in names})
    if known:
        raise ConversionError(f"by its names it is {' with '.join(known)}, which isn't here; {held}")
    problem = f"could be {' or '.join(found)}" if found else f"is none of {', '.join(LAYOUTS)}"
    raise ConversionError(f"its layout {problem} (pass --layout); {held}")


def target_shapes(cell: nn.Cell, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of a detector's parameters by name; of a backbone's with `prefix` "backbone."."""
    return {prefix + p.name: tuple(p.shape) for p in cell.get_parameters()}


def renamed(state: Mapping[str, np.ndarray], layout: str) -> Conversion:
    """The state dict with our names, and axes in our order. ConversionError for two arrays of one name."""
    out = Conversion()
    for name, value in state.items():
        ours = LAYOUTS[layout].rename(unwrapped(name))
        if ours is None:
            out.unused.append(name)
            continue
        if layout in ARRANGED:
            value = ARRANGED[layout](unwrapped(name), ours, value)
        if ours not in out.params:
            out.params[ours], out.used[ours] = value, name
        elif np.array_equal(out.params[ours], value):
            out.unused.append(name)
        else:
            raise ConversionError(f"{out.used[ours]} and {name} are both {ours}, and differ")
    if any(n.startswith("bbox_heads.") for n in out.params):
        for part in ("params", "used"):  # a cascade's only mask head
            values = getattr(out, part)
            setattr(out, part, {re.sub(r"^mask_head\.", "mask_heads.0.", n): v for n, v in values.items()})
    return out


def convert(
    state: Mapping[str, np.ndarray],
    layout: str,
    config: Config,
    targets: Mapping[str, tuple[int, ...]],
    norm_eps: float | None = None,
) -> Conversion:
    """A state dict of `layout` (one of LAYOUTS) as parameters of the detector that `config` describes.

    targets: shapes of its parameters (`target_shapes`).  norm_eps: batch norm's epsilon in the source, where it isn't
    what the layout usually has. Raises ConversionError for arrays that can't be weights; what is left over, missing or
    of another shape is in the result.
    """
    out = renamed(state, layout)
    traits = LAYOUTS[layout].traits({unwrapped(n) for n in state})
    out.notes += traits.notes
    for name, value in out.params.items():
        if value.dtype.kind != "f":
            raise ConversionError(f"{out.used[name]} is of type {value.dtype}, not floating point")
    arrange_norms(out, config, traits, norm_eps, targets)
    if layout == "mindspore_zoo":
        transpose_dense(out, mindspore_zoo.TRANSPOSED)
    arrange_anchors(out, config, traits)
    arrange_classes(out, config, traits)
    copies = {n for n in out.unused if LAYOUTS[layout].rename(unwrapped(n)) in out.used}
    fit(out, targets)
    plain = {n: unwrapped(n) for n in out.unused if n not in copies}
    used = {unwrapped(n) for n in out.used.values()}
    extra = set(left_out(plain.values(), used, branches_of(targets), out.backbone_only))
    out.extra = [n for n, name in plain.items() if name in extra]
    return out


def fit(out: Conversion, targets: Mapping[str, tuple[int, ...]]) -> None:
    """Compares with the target's shapes; what fits becomes float32, contiguous."""
    backbone_only = out.backbone_only
    out.unfilled = [n for n in targets if n not in out.params and (n.startswith("backbone.") or not backbone_only)]
    if backbone_only:
        new = [n for n in out.unfilled if only_in_detectors(n)]
        out.unfilled = [n for n in out.unfilled if n not in new]
        if new:
            out.notes.append(f"{len(new)} parameters are new in detectors, and begin as they are: {new[0]}, ...")
    for name in [n for n in out.params if n not in targets]:
        del out.params[name]
        out.unused.append(out.used.pop(name, name))
    for name, value in out.params.items():
        if value.shape != targets[name]:
            out.mismatched.append(f"{name} {value.shape} for {targets[name]}")
            continue
        value = np.ascontiguousarray(value, np.float32).reshape(value.shape)
        out.params[name] = value
        if not np.isfinite(value).all():
            out.broken.append(name)


# ---------------------------------------------------------------------------------------------------------
# what differs besides names


def arrange_norms(
    out: Conversion, config: Config, traits: Traits, norm_eps: float | None, targets: Mapping[str, tuple[int, ...]]
) -> None:
    """Scales that give with our epsilon what the source's gave with its own; a folded norm gets statistics.

    norm_eps: the source's, None for its layout's.  targets: as convert's; norms without statistics there are group
    or layer norms. Raises ConversionError for norms that aren't what the target has.
    """
    ours = config.backbone.norm_eps
    theirs = traits.norm_eps if norm_eps is None else norm_eps
    norms = [n.removesuffix("gamma") for n in out.params if n.endswith(".gamma")]
    grouped = [n for n in norms if n + "gamma" in targets and n + "moving_mean" not in targets]
    if grouped and theirs != ours:
        kind = "layer" if "backbone.patch_embed.bias" in targets else "group"
        raise ConversionError(
            f"{len(grouped)} {kind} norms ({out.used[grouped[0] + 'gamma']}, ...) had an epsilon of {theirs:g},"
            f" and here have {ours:g}; pass --backbone.norm_eps {theirs:g}"
        )
    folded = [n for n in norms if n + "moving_mean" not in out.params and n + "moving_variance" not in out.params]
    folded = [n for n in folded if n not in grouped]
    if folded and not traits.folded_norms:
        raise ConversionError(
            f"{len(folded)} norms have a scale and a shift, but no mean and variance ({out.used[folded[0] + 'gamma']},"
            " ...): group norm, which the config doesn't have there, or a file without its statistics"
        )
    for norm in folded:
        gamma = out.params[norm + "gamma"]
        out.params[norm + "moving_mean"] = np.zeros(gamma.shape, np.float32)
        out.params[norm + "moving_variance"] = np.full(gamma.shape, 1 - ours, np.float32)
    if folded:
        out.notes.append(f"{len(folded)} batch norms are scale and shift alone: mean 0, variance 1 - {ours:g} added")
    for name, variance in ((n, out.params[n]) for n in out.used if n.endswith(".moving_variance")):
        if (variance < 0).any():
            raise ConversionError(f"{out.used[name]} has a variance of {variance.min():g}: damaged, or no variance")
    if theirs == ours:
        return
    changed = [n.removesuffix("moving_variance") for n in out.used if n.endswith(".moving_variance")]
    changed = [n for n in changed if n + "gamma" in out.params]
    for norm in changed:
        # not the variance: one that is smaller than the epsilons' difference would become negative
        gamma, variance = (out.params[norm + part].astype(np.float64) for part in ("gamma", "moving_variance"))
        if gamma.shape != variance.shape:
            continue
        if (variance + theirs <= 0).any():
            raise ConversionError(
                f"{out.used[norm + 'moving_variance']} has a variance of {variance.min():g}, and epsilon is {theirs:g}:"
                " its norm divides by nothing; pass --norm_eps if it had another"
            )
        out.params[norm + "gamma"] = (gamma * np.sqrt((variance + ours) / (variance + theirs))).astype(np.float32)
    if changed:
        out.notes.append(f"{len(changed)} batch norms scaled for an epsilon of {ours:g}: it was {theirs:g}")


def transpose_dense(out: Conversion, pattern: str) -> None:
    """Fully connected layers stored (inputs, outputs): their biases' lengths tell."""
    names = [n for n in out.params if re.fullmatch(pattern, n)]
    stored = [
        n
        for n in names
        if (bias := out.params.get(n.removesuffix("weight") + "bias")) is not None
        and out.params[n].ndim == 2
        and out.params[n].shape[1:] == bias.shape
    ]
    # a square layer tells nothing by itself
    if names and len(stored) == len(names):
        for name in names:
            out.params[name] = out.params[name].T
        out.notes.append(f"transposed: {', '.join(names)}")


def arrange_anchors(out: Conversion, config: Config, traits: Traits) -> None:
    """The RPN's rows in our order of a cell's anchors (scales within each ratio), one logit an anchor."""
    ratios = len(config.rpn.anchor_generator.ratios)
    scales = config.anchors_a_cell // ratios
    for part in ("weight", "bias"):
        cls, reg = out.params.get(f"rpn.cls.{part}"), out.params.get(f"rpn.reg.{part}")
        if cls is None or reg is None or not cls.ndim or reg.shape[:1] != (4 * scales * ratios,):
            continue
        if len(cls) == 2 * scales * ratios:
            pair = cls.reshape(-1, 2, *cls.shape[1:])
            # softmax of two is the sigmoid of their difference
            cls = pair[:, traits.foreground_row] - pair[:, 1 - traits.foreground_row]
            out.notes.append(f"rpn.cls.{part}: two classes as one logit, their difference")
        if traits.scales_first and scales > 1 and ratios > 1 and len(cls) == scales * ratios:
            cls = cls.reshape(scales, ratios, *cls.shape[1:]).swapaxes(0, 1).reshape(cls.shape)
            reg = reg.reshape(scales, ratios, 4, *reg.shape[1:]).swapaxes(0, 1).reshape(reg.shape)
            out.notes.append(f"rpn.cls.{part}, rpn.reg.{part}: anchors from scales first to ratios first")
        out.params[f"rpn.cls.{part}"], out.params[f"rpn.reg.{part}"] = cls, reg


def arrange_classes(out: Conversion, config: Config, traits: Traits) -> None:
    """Class rows in our order: background first, in regression and masks too; 80 of COCO's 90 ids if so many here."""
    classes = out.classes
    if classes is None:
        return
    class_wise = not config.bbox_head.reg_class_agnostic
    rows = None
    if classes == 91 and config.num_classes == 81 and list(config.coco_classes) == list(COCO_CLASSES):
        rows = [i for i in range(91) if i not in UNUSED_IDS]
    moved, zeroed, selected = [], [], []
    for name, value in out.params.items():
        kind = re.fullmatch(r"(?:bbox_heads?|mask_heads?)\.(?:\d\.)?(cls|reg|logits)\.(?:weight|bias)", name)
        if kind is None or not value.ndim:
            continue
        if kind[1] == "cls" and traits.background_last and len(value) == classes:
            value = np.concatenate([value[-1:], value[:-1]])
            moved.append(name)
        each = 4 if kind[1] == "reg" else 1
        has_classes = kind[1] == "logits" or (kind[1] == "reg" and class_wise)
        if has_classes and len(value) == each * (classes - 1):
            value = np.concatenate([np.zeros((each, *value.shape[1:]), value.dtype), value])
            zeroed.append(name)
        if rows is not None and len(value) == each * classes:
            value = value.reshape(classes, each, *value.shape[1:])[rows].reshape(-1, *value.shape[1:])
            selected.append(name)
        out.params[name] = value
    for done, names in (
        ("background moved from last row to first", moved),
        ("background rows zero", zeroed),
        ("rows of the 80 categories in use, of 90 ids", selected),
    ):
        if names:
            out.notes.append(f"{done}: {', '.join(names)}")


# ---------------------------------------------------------------------------------------------------------
# which config


def backbone_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], str]:
    """Config keys of the backbone whose parameters have these names and shapes, and what files of configs call it.

    ConversionError for no such one.
    """
    found = backbone_keys(shapes)
    if found is None:
        layers = {m[1] for n in shapes if (m := re.match(r"backbone\.blocks\.(\d+)\.", n))}
        if layers:
            raise ConversionError(f"a transformer of {len(layers)} blocks; ViT-B, of 12, is here")
        if swin := swin_stages(shapes):
            raise ConversionError(
                f"a Swin transformer of {swin[1]} blocks and {swin[0]} channels; Swin-T and Swin-S are here, of 96"
                " channels and (2, 2, 6, 2) and (2, 2, 18, 2) blocks"
            )
        blocks = {m[1] for n in shapes if (m := re.match(r"backbone\.(layer\d\.\d+)\.", n))}
        count = tuple(sum(b.startswith(f"layer{stage}.") for b in blocks) for stage in (1, 2, 3, 4))
        raise ConversionError(
            f"a backbone of {count} blocks; ResNets and ResNeXts of 50, 101 and 152 layers and MobileNets are here"
        )
    return found


def branches_of(names: Collection[str]) -> set[str]:
    """The branches, as Config.branches, of a detector with these parameters of ours."""
    return {b for b in ALL_BRANCHES if any(n.startswith((f"{b}_head.", f"{b}_heads.")) for n in names)}


def config_name(layout: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """File name that a config with the conventions of such a detector's published checkpoints would have."""
    cascade, own = any(n.startswith("bbox_heads.") for n in shapes), branches_of(shapes)
    detector = next(
        name for name, branches in DETECTORS.items() if name.startswith("cascade") == cascade and set(branches) == own
    )
    family = LAYOUTS[layout].FAMILY
    backbone = backbone_of(shapes)[1]
    if backbone.startswith("vitdet"):
        return f"{family}_{detector}_{backbone}.yaml"
    return f"{family}_{detector}_{backbone}_fpn{normed(family, shapes)}.yaml"


def normed(family: str, names: Collection[str]) -> str:
    """How file names of configs with norms in the neck end, "" for none."""
    if not any(re.fullmatch(r"neck\..*\.norm\.gamma", n) for n in names):
        return ""
    if not any(re.fullmatch(r"neck\..*\.norm\.moving_mean", n) for n in names):
        return "_gn"
    if family == "detectron2":
        return "_lsj" if "rpn.conv2.weight" in names else "_syncbn"
    return {"torchvision": "_v2"}.get(family, "_bn")
