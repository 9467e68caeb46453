"""COCO results files ([{"image_id", "category_id", "bbox", "score", "segmentation"?}, ...]): read, checked, written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from src.config import RcnnTest
from src.data.formats.base import json_reason
from src.data.records import without_collector
from src.evaluation.kinds import KINDS, branch_kinds
from src.evaluation.kinds.box import is_finite
from src.evaluation.truth import EvaluationError, Truth
from src.runtime.files import read_regular, whole

__all__ = ["apply_options", "checked_results", "load_results", "save_results", "saved_results", "write_json"]

FIRST_KEY = '{"image_id":'  # what each entry begins with
ROUNDED = 5e-7  # scores are written to six digits after the point


class DamagedResultsError(EvaluationError):
    """A results file that was cut short."""


def write_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """Writes JSON beside `path`, then renames, so that it is whole or not there. Raises EvaluationError."""
    with whole(Path(path), EvaluationError) as beside:
        beside.write_text(json.dumps(content, separators=None if indent else (",", ":"), indent=indent))


def save_results(path: str | Path, results: Sequence[dict], truth: Truth | None = None) -> None:
    """Writes a COCO results file, with the ids that the user's own annotations have, where `truth` has others.

    Raises EvaluationError.
    """
    ids = {k: _source_ids(entries) for k, entries in _id_entries(truth).items()}
    if any(ids.values()):
        results = [r | {k: ids[k].get(r[k], r[k]) for k in ids} for r in results]
    write_json(path, list(results))


def load_results(path: str | Path, truth: Truth | None = None) -> list[dict]:
    """Reads a results file; with `truth` also checks it, as checked_results does. Raises EvaluationError."""
    try:
        with without_collector():
            results = json.loads(read_regular(path))
    except OSError as e:
        raise EvaluationError(f"{path}: can't read the results: {e.strerror}") from None
    except json.JSONDecodeError as e:
        kind, remedy = (
            (DamagedResultsError, "remove it and evaluate again") if _is_cut(e.doc) else (EvaluationError, "mend it")
        )
        raise kind(f"{path}: not whole JSON (line {e.lineno} column {e.colno}); {remedy}") from None
    except (ValueError, RecursionError) as e:
        raise EvaluationError(f"{path}: not JSON that can be read{json_reason(e)}; mend it") from None
    if not isinstance(results, list):
        raise EvaluationError(f"{path}: not a list of COCO results")
    if truth is not None:
        return checked_results(results, truth, str(path))
    for i, r in enumerate(results):
        try:
            _check_keys(r)
        except ValueError as e:
            raise EvaluationError(f"{path}: entry {i}{e}") from None
    return results


def saved_results(path: str | Path, truth: Truth | None = None) -> list[dict] | None:
    """The results in `path`, or None if it isn't there or was cut short, which one line tells: then write it anew.

    Raises EvaluationError for anything else, which may not be overwritten.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return load_results(path, truth)
    except DamagedResultsError:
        print(f"{path}: not whole; the network runs again and replaces it")
        return None


def _is_cut(text: str) -> bool:
    """Whether `text` is the beginning of a results file, as json.dump writes it, and of nothing else."""
    decoder, place = json.JSONDecoder(), 1
    if not text.startswith("["):
        return not text
    while place < len(text):
        try:
            entry, end = decoder.raw_decode(text, place)
            _check_keys(entry)
        except json.JSONDecodeError as e:
            # parsing fails at the end, or at a text or a number that begins before and lasts until there
            ended = e.msg.startswith("Unterminated") or re.fullmatch(r"[-+.\w]*", text[e.pos :])
            begun = text[place:].replace(" ", "")[: len(FIRST_KEY)]
            return bool(ended) and FIRST_KEY.startswith(begun)
        except ValueError:
            return False
        if text[end : end + 1] not in (",", ""):
            return False
        place = end + 1 + (text[end + 1 : end + 2] == " ")
    return True


def brief(value: object) -> str:
    """A value from a file as one line tells it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checked_results(results: Sequence[dict], truth: Truth, where: str, computed: bool = False) -> list[dict]:
    """The results as evaluation needs them: ids as `truth` has them, a finite box and score, a mask as whole RLE text.

    Takes what is legal: polygons and lists of runs for masks, a mask without a box, the ids of the user's own file.
    computed: the ids are the truth's own, and categories may be others than its. Raises EvaluationError, which names
    `where`, the entry and what is wrong with it.
    """
    images, categories = (_known_ids(entries, computed) for entries in _id_entries(truth).values())
    out = []
    for i, r in enumerate(results):
        try:
            out.append(_checked(r, images, categories, truth, computed))
        except ValueError as e:
            raise EvaluationError(f"{where}: entry {i}{e}") from None
    for kind in branch_kinds().values():
        places = [i for i, r in enumerate(out) if kind.key in r]
        for place, fault in kind.faults([out[i][kind.key] for i in places]):
            i = places[place]
            raise EvaluationError(f"{where}: entry {i}, of image {brief(results[i]['image_id'])}: {fault}")
    for r in out:
        if "bbox" not in r:
            r["bbox"] = next(box for k in branch_kinds().values() if k.key in r and (box := k.box(r[k.key])))
    return out


def _checked(entry: object, images: dict, categories: dict, truth: Truth, computed: bool) -> dict:
    """One entry as checked_results gives it, runs not yet counted. Raises ValueError, to be read after "entry 5"."""
    r = _check_keys(entry)
    image = _lookup(images, r["image_id"])
    if image is None:
        raise ValueError(f": {truth.path} has no image {brief(r['image_id'])}; not its results?")
    category = _lookup(categories, r["category_id"])
    try:
        if category is None:
            if not (computed and isinstance(r["category_id"], int)):
                known = ", ".join(str(k) for k in list(categories)[:10]) + (", ..." if len(categories) > 10 else "")
                raise ValueError(f"{truth.path} has no category {brief(r['category_id'])}; it has {known}")
            category = r["category_id"]
        if not is_finite(r["score"]):
            raise ValueError(f"score {str(r['score'])[:40]} isn't a finite number")
        new: dict = {"image_id": image, "category_id": category, "score": float(r["score"])}
        for kind in (*branch_kinds().values(), KINDS["bbox"]):
            if kind.held(r):
                new[kind.key] = kind.checked(r[kind.key], truth.imgs[image], truth.cats.get(category, {}))
    except ValueError as e:
        raise ValueError(f", of image {brief(r['image_id'])}: {e}") from None
    return new


def apply_options(results: list[dict], options: RcnnTest) -> tuple[list[dict], str]:
    """Of detections from a file those that the options of detection leave, and a line that says what they removed.

    Scores of at least score_thr (soft_nms: min_score), of each image the max_per_img best.
    """
    least = options.least_score
    kept = [r for r in results if r["score"] >= least - ROUNDED]
    by_image: dict[int, list[int]] = {}
    for i in sorted(range(len(kept)), key=lambda i: -kept[i]["score"]):
        by_image.setdefault(kept[i]["image_id"], []).append(i)
    best = sorted(i for places in by_image.values() for i in places[: options.max_per_img])
    below, beyond = len(results) - len(kept), len(kept) - len(best)
    told = "score_thr" if least == options.score_thr else "nms.min_score"
    said = [f"{below} below test_cfg.rcnn.{told} {least:g}"] if below else []
    said += [f"{beyond} beyond test_cfg.rcnn.max_per_img {options.max_per_img}"] if beyond else []
    return [kept[i] for i in best], f"left out of {len(results)} detections: {', '.join(said)}" if said else ""


def _id_entries(truth: Truth | None) -> dict[str, Sequence[dict]]:
    if truth is None:
        return {"image_id": (), "category_id": ()}
    return {"image_id": truth.imgs.values(), "category_id": truth.cats.values()}


def _source_ids(entries: Sequence[dict]) -> dict[int, object]:
    """What the user's own file calls the ids that were given anew."""
    return {e["id"]: e["source_id"] for e in entries if "source_id" in e}


def _known_ids(entries: Sequence[dict], computed: bool) -> dict[object, int]:
    """The truth's id of each id that results may name: in a file the user's own come first."""
    if computed:
        return {e["id"]: e["id"] for e in entries}
    # what the user's file doesn't have, a class that only the config knows, goes by its id here
    return {e["id"]: e["id"] for e in entries if "source_id" not in e} | {
        source: own for own, source in _source_ids(entries).items()
    }


def _lookup(known: dict[object, int], name: object) -> int | None:
    # True is 1 to a dict
    if type(name) is not int and (isinstance(name, bool) or not isinstance(name, (Real, str))):
        return None
    return known.get(name)


def _check_keys(r: object) -> dict:
    """The entry. Raises ValueError for what isn't one of a results file; values are looked at elsewhere."""
    if not isinstance(r, dict):
        raise ValueError(" isn't a COCO result (image_id, category_id, bbox of 4, score)")
    lacks = [k for k in ("image_id", "category_id", "score") if r.get(k) is None]
    if not any(kind.held(r) for kind in KINDS.values()):
        lacks.append("bbox")
    if lacks:
        raise ValueError(f" isn't a COCO result: it lacks {', '.join(lacks)}")
    if r.get("bbox") is not None and not (hasattr(r["bbox"], "__len__") and len(r["bbox"]) == 4):
        raise ValueError(f" isn't a COCO result: bbox {str(r['bbox'])[:60]} isn't [x, y, width, height]")
    return r
