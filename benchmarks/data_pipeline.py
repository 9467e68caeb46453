"""Speed of the training loader: python -m benchmarks.data_pipeline --coco_root DIR [--workers 2] [--json OUT]

Images a second with masks at the config's canvas, and what each stage of an image costs, its functions called one image
at a time. A small data set's photographs are listed several times over, so that what an epoch costs once doesn't hide
what an image costs. Any key of the config can follow as --KEY VALUE.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import Timing, measure, peak_memory_mib, print_table, set_threads, write_json
from benchmarks.data_conversion import multiply
from src.runtime.errors import run_command
from src.runtime.newer import zip_equal

if TYPE_CHECKING:
    from src.config import Config

SAMPLE = 32  # images of which the stages are timed


def time_stages(config: "Config", folder: Path, repeats: int) -> tuple[dict[str, Timing], int]:
    """Time of each stage for the first SAMPLE images of a converted split, one thread; and how many images those are.

    "normalise, flip, pad" is what prepare_image takes beside its resize.
    """
    import mindspore.dataset as ds
    import mmcv

    from src.data.images import decode_image
    from src.data.loader import BatchMaker
    from src.data.mindrecord import record_files
    from src.data.reader import Sample, SampleReader
    from src.data.transforms import crop_mask, fit_size, prepare_image

    names = ["image_id", "crc", "image", "annotation"]
    data = ds.MindDataset(record_files(folder), columns_list=names, shuffle=False, num_parallel_workers=1)
    rows = data.create_tuple_iterator(num_epochs=1, output_numpy=True)
    rows = [row for row, _ in zip(rows, range(SAMPLE))]
    encoded = [row[2].tobytes() for row in rows]
    pictures = [decode_image(e, "") for e in encoded]
    objects = [json.loads(row[3].tobytes()) for row in rows]
    samples = [Sample(*SampleReader(config, training=True)(*row, np.zeros(3, int))) for row in rows]
    maker, size = BatchMaker(config), config.batch_size

    def resize() -> None:
        for p in pictures:
            mmcv.imresize(p, fit_size(*p.shape[:2], config)[::-1], interpolation="bilinear", backend="cv2")

    def masks() -> None:
        for picture, a in zip_equal(pictures, objects):
            for s, box, crowd in zip_equal(a["segmentations"], a["boxes"], a["crowd"]):
                if not crowd:
                    crop_mask(s, np.array(box), *picture.shape[:2], config.mask_crop_size)

    stages = {
        "decode": lambda: [decode_image(e, "") for e in encoded],
        "resize": resize,
        "resize, normalise, flip, pad": lambda: [prepare_image(p, config, True) for p in pictures],
        "mask crops": masks,
        "batch": lambda: [maker.train_batch(samples[i : i + size]) for i in range(0, len(samples), size)],
    }
    return {name: measure(call, repeats, 1) for name, call in stages.items()}, len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config_path", default="configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--coco_root", required=True, type=Path, help="folder with annotations/ and train2017/")
    parser.add_argument("--copies", type=int, default=4, help="times each image is listed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--json", help="file to write")
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)

    from src.config import load_config, parse_overrides
    from src.data.formats.coco import resolve_split
    from src.data.loader import TrainLoader
    from src.data.mindrecord import ensure_mindrecord

    resolve_split(a.coco_root, "train")  # a folder that isn't there is told here, in one line
    with tempfile.TemporaryDirectory() as place:
        multiply(a.coco_root, "train", a.copies, Path(place) / "source")
        fixed = {"train_dataset": f"{place}/source", "mindrecord_dir": place, "num_parallel_workers": a.workers}
        config = load_config(a.config_path, fixed | parse_overrides(rest))
        with contextlib.redirect_stderr(io.StringIO()):
            folder = ensure_mindrecord(config, "train", training=True)
        loader = TrainLoader(config, folder)
        speeds = []
        for epoch in range(a.epochs):
            start = time.perf_counter()
            count = sum(len(batch["image_id"]) for batch in loader.epoch(epoch))
            speeds.append(count / (time.perf_counter() - start))
        peak = peak_memory_mib()
        timings, images = time_stages(config, folder, 5)

    title = f"loader at {config.img_height} x {config.img_width}, {a.workers} workers, {threads} cores"
    rows = [["images/s (median)", statistics.median(speeds)], ["lowest epoch", min(speeds)], ["peak memory, MiB", peak]]
    print_table(f"{title}: {a.epochs} epochs of {count} images", ["measure", "value"], rows)
    whole = timings["resize, normalise, flip, pad"]
    stages = {
        "decode": timings["decode"].median,
        "resize": timings["resize"].median,
        "normalise, flip, pad": max(whole.median - timings["resize"].median, 0.0),
        "mask crops": timings["mask crops"].median,
        "batch": timings["batch"].median,
    }
    total = sum(stages.values())
    shares = [[k, v / images, f"{v / total:.0%}"] for k, v in stages.items()]
    print_table(f"one image, one thread, median over {images} images", ["stage", "ms", "share"], shares)
    per_image = {k: v / images for k, v in stages.items()}
    content = {"title": title, "images_per_second": speeds, "peak_mib": peak, "stages_ms": per_image}
    write_json(a.json, content | {"timings": timings})
    return 0


if __name__ == "__main__":
    run_command(main)
