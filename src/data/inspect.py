"""What a data set holds: python -m src.data.inspect CONFIG [--KEY VALUE ...] [--split train] [--out DIR] [--samples 16]

Prints the figures of a split and the problems found in it, by file, and the keys of a config that would take it; and
draws a contact sheet: images as the network sees them, training images augmented, with their boxes and masks.
"""

import argparse
import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml

from src.config import Config, load_config, parse_overrides
from src.data.augment import without_augmentation
from src.data.fields import carried_fields, fields_of, without_branches
from src.data.formats import resolve_classes
from src.data.images import picture_size
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, read_index, record_files, with_categories
from src.data.records import DataError
from src.data.transforms import fit_size
from src.drawing.objects import draw_ground_truth
from src.runtime.errors import run_command
from src.runtime.files import whole
from src.runtime.newer import zip_equal

__all__ = ["Figures", "contact_sheet", "count_records", "inspect_split"]

SIZES = ("small", "medium", "large")  # COCO's, by the area of the box: below 32 x 32, below 96 x 96, above
MOST_SIDES = 100_000
THIN_SHOWN = 5
TILE, SHEET = 360, 2000  # pixels: height of a picture on the contact sheet, width of the sheet


@dataclass
class Figures:
    """Counts over the usable images of a split, and the faults of the others."""

    images: int = 0
    empty: int = 0
    instances: Counter = field(default_factory=Counter)  # by class name
    images_with: Counter = field(default_factory=Counter)  # by class name
    crowds: int = 0
    sizes: Counter = field(default_factory=Counter)  # by SIZES
    carried: dict[str, Counter] = field(default_factory=dict)  # by field, what it counts of its values
    most: int = 0  # objects in one image
    thin: list[str] = field(default_factory=list)  # boxes a pixel wide or high, or less, by image
    canvas_sides: list[np.ndarray] = field(default_factory=list)  # (N, 2) width, height of objects on the canvas
    image_sides: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count_records(folder: Path, config: Config) -> Figures:
    """The figures of a converted split, of which only the annotations are read. Raises DataError."""
    import mindspore.dataset as ds

    index = read_index(folder)
    out = Figures(problems=list(index["skipped"]), notes=list(index["notes"]))
    fields = carried_fields(config)
    out.carried = {f.name: Counter() for f in fields}
    rows = ds.MindDataset(record_files(folder), columns_list=["annotation"], shuffle=False, num_parallel_workers=1)
    for (text,) in rows.create_tuple_iterator(num_epochs=1, output_numpy=True):
        a = json.loads(text.tobytes())
        boxes, crowd = np.array(a["boxes"], float).reshape(-1, 4), np.array(a["crowd"], bool)
        names = [config.coco_classes[label] for label, c in zip_equal(a["labels"], crowd) if not c]
        for f in fields:
            out.carried[f.name].update(f.counted(a[f.name]))
        out.images += 1
        out.empty += not names
        out.instances.update(names)
        out.images_with.update(set(names))
        out.crowds += int(crowd.sum())
        out.most = max(out.most, len(names))
        out.image_sides.append((a["width"], a["height"]))
        height, width = fit_size(a["height"], a["width"], config)
        sides = (boxes[:, 2:] - boxes[:, :2])[~crowd]
        out.canvas_sides.append(sides * [width / a["width"], height / a["height"]])
        out.thin += [f"{a['name']} {w:g} x {h:g}" for w, h in sides[sides.min(1) <= 1].tolist()]
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[~crowd]
        out.sizes.update(SIZES[int(v >= 32**2) + int(v >= 96**2)] for v in area)
    return out


def describe(f: Figures, config: Config) -> str:
    """The figures as lines of text."""
    total = sum(f.instances.values())
    lines = [
        f"images     {f.images} usable, {f.empty} of them without objects, {len(f.problems)} left out",
        f"instances  {total}, {f.crowds} crowd regions or difficult objects beside them; at most {f.most} in an image",
    ]
    shares = ", ".join(f"{f.sizes[s]} {s} ({f.sizes[s] / max(total, 1):.0%})" for s in SIZES)
    lines.append(f"sizes      {shares}, by box area under 32 x 32, under 96 x 96, above")
    if f.thin:
        some = "; ".join(f.thin[:THIN_SHOWN]) + ("; ..." if len(f.thin) > THIN_SHOWN else "")
        lines.append(f"thin       {len(f.thin)} boxes are a pixel wide or high: slips of the hand? {some}")
    if f.image_sides:
        w, h = (np.array(v) for v in zip_equal(*f.image_sides))
        lines.append(
            f"pixels     {w.min()} to {w.max()} wide (median {np.median(w):.0f}), {h.min()} to {h.max()} high"
            f" (median {np.median(h):.0f}); canvas {config.img_width} x {config.img_height}"
        )
    if total:
        lines.append(reach(np.concatenate(f.canvas_sides), config))
    names = config.coco_classes[1:]
    wide, most = max(map(len, names), default=5), max(f.instances.values(), default=1)
    lines.append(f"\n{'class':{wide}s}  instances   images")
    for name in names:
        bar = "#" * math.ceil(30 * f.instances[name] / most)
        lines.append(f"{name:{wide}s}  {f.instances[name]:9d}  {f.images_with[name]:7d}  {bar}".rstrip())
    for each in carried_fields(config):
        lines += each.table(f.carried[each.name])
    missing = [n for n in names if not f.instances[n]]
    if missing:
        lines.append(f"{len(missing)} classes without an instance: {', '.join(missing)}")
    lines.append(f"\nwarnings   {len(f.notes) or 'none'}")
    lines += [f"  {n}" for n in f.notes]
    lines.append(f"problems   {len(f.problems) or 'none'}")
    lines += [f"  {p}" for p in f.problems]
    return "\n".join([*lines, "", suggestion(f, config)])


def reach(sides: np.ndarray, config: Config) -> str:
    """Lines on how large objects, (N, 2) width and height in canvas pixels, are beside the anchors."""
    a = config.rpn.anchor_generator
    # of a large set, evenly spaced ones tell as much
    sides = sides[:: len(sides) // MOST_SIDES + 1]
    anchor = np.array([s * stride for stride in a.strides for s in a.scales], float)
    shapes = np.array([(v / math.sqrt(r), v * math.sqrt(r)) for v in anchor for r in a.ratios])
    # IoU of two boxes with one centre: what an anchor in the best place would have
    overlap = np.minimum(sides[:, None], shapes[None]).prod(-1)
    iou = (overlap / (sides.prod(-1)[:, None] + shapes.prod(-1)[None] - overlap)).max(1)
    low, mid, high = np.percentile(np.sqrt(sides.prod(-1)), (5, 50, 95))
    positive = config.train_cfg.rpn.assigner.pos_iou_thr
    poor = float((iou < 0.5).mean())
    roots = np.sqrt(sides[iou < 0.5].prod(-1))
    line = (
        f"on canvas  objects of {low:.0f} to {high:.0f} pixels (5 % to 95 %, median {mid:.0f}; root of the area);"
        f" anchors of {anchor.min():.0f} to {anchor.max():.0f}\n"
        f"           a well-placed anchor has IoU {np.median(iou):.2f} with an object (median); {poor:.0%} of them"
        f" reach 0.5 with none, {float((iou < positive).mean()):.0%} not {positive:g}"
    )
    if poor > 0.1:
        below, above = int((roots < anchor.min()).sum()), int((roots > anchor.max()).sum())
        between = len(roots) - below - above
        most = max((between, "of other shapes"), (below, "smaller"), (above, "larger"))[1]
        line += f": most of these are {most} than the anchors; change rpn.anchor_generator or the canvas"
    return line


def suggestion(f: Figures, config: Config) -> str:
    """The keys of a config that would take this data, as YAML."""
    keys: dict[str, object] = {"dataset": config.dataset}
    keys |= {"coco_classes": config.coco_classes, "num_classes": len(config.coco_classes)}
    if config.other_classes != "stop":
        keys["other_classes"] = config.other_classes
    keys["max_instance_count"] = max(-(-f.most // 8) * 8, 8)
    if f.image_sides:
        keys["img_width"], keys["img_height"] = canvas_for(f.image_sides, config)
    if f.empty:
        keys["train_empty_images"] = True
    if f.problems:
        keys["on_bad_image"] = "skip"
    text = yaml.safe_dump(keys, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return f"a config that takes this data:\n{text}".rstrip()


def canvas_for(sides: list[tuple[int, int]], config: Config) -> tuple[int, int]:
    """(width, height) of a canvas of about the config's area whose shape most pictures have, in steps of the backbone's
    last stride."""
    step = config.rpn.anchor_generator.strides[len(config.neck.fpn.in_channels) - 1]
    ratio = float(np.median([w / h for w, h in sides]))
    if config.turns_canvas:
        return config.img_width, config.img_height
    high = math.sqrt(config.img_width * config.img_height / ratio)
    width, height = (max(round(v / step), 1) * step for v in (high * ratio, high))
    return width, height


def pictures(config: Config, folder: Path, split: str, count: int) -> list[np.ndarray]:
    """`count` images (H, W, 3) uint8 BGR as the network sees them less the padding, with their objects; those of
    training augmented.
    """
    index = read_index(folder)
    changes = {
        "batch_size": 1,
        "accumulate": 1,
        "max_instance_count": max(config.max_instance_count, *index["objects"]),
    }
    if split != "train":
        config = without_augmentation(config)
        changes["train_empty_images"] = True
    if config.with_mask and not index["with_masks"]:
        changes["detector"] = without_branches(config)
    config = dataclasses.replace(config, **changes)
    fields, out = fields_of(config), []
    for batch, _ in zip(TrainLoader(config, folder).epoch(0), range(count)):
        height, width = batch["image_size"][0].astype(int)
        image = restored(batch["image"][0][:, :height, :width], config)
        valid = batch["gt_valid"][0]
        boxes, labels = batch["gt_boxes"][0][valid], batch["gt_labels"][0][valid]
        drawn = (f.drawn(batch[f"gt_{f.name}"][0][valid], boxes, picture_size(image)) for f in fields)
        layers = [layer for layer in drawn if layer is not None]
        zoom = max(1.0, TILE / image.shape[0])
        out.append(draw_ground_truth(image, boxes, labels, layers, config.coco_classes, zoom=zoom))
    return out


def restored(image: np.ndarray, config: Config) -> np.ndarray:
    """The network's input (3, H, W) as an image (H, W, 3) uint8 BGR."""
    pixels = image.transpose(1, 2, 0) * np.array(config.img_std) + np.array(config.img_mean)
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1] if config.to_rgb else pixels)


def contact_sheet(images: list[np.ndarray]) -> np.ndarray:
    """The images (H, W, 3) uint8, TILE pixels high, in rows of about SHEET pixels."""
    tiles = []
    for image in images:
        size = (max(round(image.shape[1] * TILE / image.shape[0]), 1), TILE)
        tile = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        tiles.append(cv2.copyMakeBorder(tile[:, :SHEET], 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    rows: list[list[np.ndarray]] = [[]]
    for tile in tiles:
        if rows[-1] and sum(t.shape[1] for t in rows[-1]) + tile.shape[1] > SHEET:
            rows.append([])
        rows[-1].append(tile)
    joined = [np.hstack(r) for r in rows]
    wide = max(r.shape[1] for r in joined)
    pad = cv2.BORDER_CONSTANT
    return np.vstack([cv2.copyMakeBorder(r, 0, 0, 0, wide - r.shape[1], pad, value=(255, 255, 255)) for r in joined])


def inspect_split(config: Config, split: str, out: Path, samples: int) -> Figures:
    """Prints the figures of a split, writes `out`/{split}_samples.png, and returns the figures. Raises DataError."""
    training = split == "train"
    config = resolve_classes(config, training)
    try:
        folder = ensure_mindrecord(config, split, training, quiet=True)
    except DataError:
        # one fault stops training, but here all are wanted; what is wrong with the whole set is raised again
        config = dataclasses.replace(config, on_bad_image="skip")
        folder = ensure_mindrecord(config, split, training, quiet=True)
    config = with_categories(config, folder)
    figures = count_records(folder, config)
    print(f"{read_index(folder)['source']} ({split}, dataset: {config.dataset})\n{describe(figures, config)}")
    if samples:
        path = out / f"{split if split.isalnum() else Path(split).stem}_samples.png"
        encoded = cv2.imencode(".png", contact_sheet(pictures(config, folder, split, samples)))[1]
        with whole(path, DataError, "name another folder as --out") as beside:
            beside.write_bytes(encoded.tobytes())
        print(f"contact sheet -> {path}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Any key of the config can follow as --KEY VALUE."
    )
    parser.add_argument("config", help="YAML config file")
    parser.add_argument(
        "--split", default="train", help="train, val, test, or the file that lists a split (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the contact sheet (default: the experiment's)")
    parser.add_argument("--samples", type=int, default=16, help="images on the contact sheet; 0: none")
    arguments, rest = parser.parse_known_args()
    config = load_config(arguments.config, parse_overrides(rest))
    inspect_split(config, arguments.split, arguments.out or config.output_dir, max(arguments.samples, 0))
    return 0


if __name__ == "__main__":
    run_command(main)
