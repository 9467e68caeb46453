"""Speed of the training loader: python -m benchmarks.data_pipeline --coco_root DIR [--workers 2] [--epochs 3]

Images a second with masks at the config's canvas, and what each stage of an image costs, measured one image at a time.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import measure, peak_memory_mib, print_table, set_threads, write_json


def stage_times(config, folder: Path, images: int) -> dict[str, float]:
    """Milliseconds of an image in each stage, the mean over the first `images` records, one thread."""
    import mindspore.dataset as ds

    from src.data.mindrecord import record_files
    from src.data.transforms import crop_mask, decode_image, prepare_image

    rows = ds.MindDataset(record_files(folder), columns_list=["image", "annotation"], shuffle=False)
    rows = [r for r, _ in zip(rows.create_tuple_iterator(num_epochs=1, output_numpy=True), range(images), strict=False)]
    decoded = [(decode_image(i.tobytes(), ""), json.loads(a.tobytes())) for i, a in rows]

    def masks():
        for picture, a in decoded:
            for s, box, crowd in zip(a["segmentations"], a["boxes"], a["crowd"], strict=True):
                if not crowd:
                    crop_mask(s, np.array(box), *picture.shape[:2], config.mask_crop_size)

    calls = {
        "decode": lambda: [decode_image(i.tobytes(), "") for i, _ in rows],
        "resize, normalise, pad": lambda: [prepare_image(p, config) for p, _ in decoded],
        "mask crops": masks,
    }
    return {name: measure(call, 3, 1).median / len(rows) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config_path", default="configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--coco_root", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--json", help="file to write")
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)

    from src.config import load_config, parse_overrides
    from src.data.loader import TrainLoader
    from src.data.mindrecord import ensure_mindrecord

    with tempfile.TemporaryDirectory() as place:
        fixed = {"train_dataset": a.coco_root, "mindrecord_dir": place, "num_parallel_workers": a.workers}
        config = load_config(a.config_path, fixed | parse_overrides(rest))
        with contextlib.redirect_stderr(io.StringIO()):
            folder = ensure_mindrecord(config, "train", training=True)
        loader = TrainLoader(config, folder)
        speeds = []
        for epoch in range(a.epochs):
            start = time.perf_counter()
            count = sum(len(batch["image_id"]) for batch in loader.epoch(epoch))
            speeds.append(count / (time.perf_counter() - start))
        stages = stage_times(config, folder, 32)
    title = f"loader at {config.img_height} x {config.img_width}, {a.workers} workers, {threads} cores"
    rows = [["images a second (median)", float(np.median(speeds))], ["lowest epoch", min(speeds)]]
    rows += [["peak memory, MiB", peak_memory_mib()]]
    print_table(title, ["measure", "value"], rows)
    total = sum(stages.values())
    shares = [[k, v, f"{v / total:.0%}"] for k, v in stages.items()]
    print_table("one image, one thread", ["stage", "ms", "share"], shares)
    write_json(a.json, {"images_per_s": speeds, "stages_ms": stages, "peak_mib": peak_memory_mib(), "title": title})


if __name__ == "__main__":
    main()
