"""AP of what the C++ program detected: python postprocess.py --results FOLDER --annotations JSON [--output JSON]"""

import argparse
from pathlib import Path

from tqdm import tqdm

from src.errors import run_command
from src.evaluation.coco import coco_results, evaluate, read_annotations, save_results
from src.evaluation.cpp_results import annotated_images, class_categories, read_result, read_summary


def main() -> int:
    parser = argparse.ArgumentParser(description="COCO results and AP from the C++ program's results.")
    parser.add_argument("--results", type=Path, required=True, help="folder that the program wrote")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances file of the same images")
    parser.add_argument("--output", type=Path, help="COCO results file (default: results.json in the folder)")
    arguments = parser.parse_args()

    summary = read_summary(arguments.results)
    paste = summary.get("mask_paste")
    truth = read_annotations(arguments.annotations, with_masks=paste is not None)
    categories = class_categories(summary["classes"], truth.dataset["categories"], arguments.annotations)
    images = annotated_images(summary, truth.dataset["images"], arguments.annotations)
    results = []
    for name, image in tqdm(images.items(), unit="image", desc="pasting masks"):
        r = read_result(arguments.results / f"{name}.det", image)
        results += coco_results(
            image["id"],
            r.boxes,
            r.scores,
            r.labels,
            r.masks,
            (r.height, r.width),
            (1.0, 1.0),
            categories,
            *((paste["threshold"], paste["convention"]) if paste else ()),
        )
    output = arguments.output or arguments.results / "results.json"
    save_results(output, results)
    print(f"\n{len(results)} detections in {len(images)} images -> {output}")
    missed = [i["file_name"] for i in truth.dataset["images"] if Path(i["file_name"]).name not in images]
    if missed:
        some = ", ".join(missed[:10]) + (", ..." if len(missed) > 10 else "")
        print(f"{len(missed)} annotated images without a result count as missed: {some}")
    print(evaluate(arguments.annotations, results, ("bbox", "segm") if paste else ("bbox",)).text)
    return 0


if __name__ == "__main__":
    run_command(main)
