"""AP of what the C++ program detected: python postprocess.py --results FOLDER --annotations JSON [--output JSON]"""

import argparse
from pathlib import Path

from tqdm import tqdm

from src.evaluation.coco import evaluate
from src.evaluation.cpp_results import annotated_images, class_categories, read_result, read_summary
from src.evaluation.kinds import KINDS, branch_kinds, choose_kinds
from src.evaluation.kinds.base import STANDARD
from src.evaluation.paste import Found, results_of
from src.evaluation.results import save_results
from src.evaluation.truth import EvaluationError, read_annotations
from src.runtime.errors import run_command


def main() -> int:
    parser = argparse.ArgumentParser(description="COCO results and AP from the C++ program's results.")
    parser.add_argument("--results", type=Path, required=True, help="folder that the program wrote")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances file of the same images")
    parser.add_argument("--output", type=Path, help="COCO results file (default: results.json in the folder)")
    parser.add_argument("--iou_types", nargs="+", choices=tuple(KINDS), help="what to measure (default: all there is)")
    arguments = parser.parse_args()

    summary = read_summary(arguments.results)
    told = {branch: kind.told(summary) for branch, kind in branch_kinds().items()}
    options = {branch: how for branch, how in told.items() if how is not None}
    nouns = [kind.noun for kind in branch_kinds(options).values()]
    truth = read_annotations(arguments.annotations)
    categories = class_categories(summary["classes"], truth.dataset["categories"], arguments.annotations)
    images = annotated_images(summary, truth.dataset["images"], arguments.annotations)
    results, most = [], 0
    doing = f"pasting {' and '.join(nouns)}" if nouns else "reading boxes"
    for name, image in tqdm(images.items(), unit="image", desc=doing):
        path = arguments.results / f"{name}.det"
        r = read_result(path, image)
        for branch, kind in branch_kinds().items():
            if (branch in r.fields) != (branch in options):
                no, not_told = ("no ", "says") if branch in options else ("", "doesn't say")
                which = f"has {no}{kind.noun}, the summary {not_told} how to paste them"
                raise EvaluationError(f"{path}: {which}; run the inference again")
        most = max(most, len(r.scores))
        found = Found(r.boxes, r.scores, r.labels, r.fields).in_original((1.0, 1.0), f"image {image['id']}")
        results += results_of(found, image["id"], (r.height, r.width), summary["classes"], categories, options)
    output = arguments.output or arguments.results / "results.json"
    save_results(output, results, truth)
    print(f"\n{len(results)} detections in {len(images)} images -> {output}")
    seen = {i["id"] for i in images.values()}
    missed = [i["file_name"] for i in truth.dataset["images"] if i["id"] not in seen]
    if missed:
        some = ", ".join(missed[:10]) + (", ..." if len(missed) > 10 else "")
        print(f"{len(missed)} annotated images without a result count as missed: {some}")
    kinds, note = choose_kinds(options, {"annotations": lambda kind: kind.annotated(truth)}, arguments.iou_types)
    if note:
        print(note)
    # the model kept as many as it was told to
    print(evaluate(truth, results, kinds, max_per_img=most if most > STANDARD else None).text)
    return 0


if __name__ == "__main__":
    run_command(main)
