"""Changes to the formats of rows of words: TXT and YOLO."""

from pathlib import Path

import numpy as np

from benchmarks.mutations.sets import CLASSES, WORDS, DataSet, mutation, otherwise, pick


def row_docs(s: DataSet) -> dict[str, list]:
    return {p: d for p, d in s.docs.items() if isinstance(d, list)}


def full_rows(s: DataSet) -> list[list[str]]:
    return [row for d in row_docs(s).values() for row in d if len(row) > 1]


@mutation("entries", "txt", "yolo", benign=True)
def rows_reordered(s, random):
    for rows in row_docs(s).values():
        random.shuffle(rows)


@mutation("entries", "txt", "yolo")
def row_removed(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    rows.pop(int(random.integers(len(rows))))


@mutation("entries", "txt", "yolo")
def row_twice(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    rows.append(list(pick(random, rows)))


@mutation("entries", "txt", "yolo", benign=True)
def blank_rows(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    for _ in range(3):
        rows.insert(int(random.integers(len(rows) + 1)), pick(random, ([], [""], ["", "", ""])))


@mutation("entries", "txt", "yolo")
def row_is_a_comment(s, random):
    pick(random, [d for d in row_docs(s).values() if d]).insert(0, ["#", "made", "by", "hand"])


@mutation("keys", "txt", "yolo", benign=True)
def tabs_and_spaces(s, random):
    between = pick(random, ("\t", "  ", " \t "))
    s.text_edits[pick(random, row_docs(s))] = lambda text: text.replace(" ", between)


@mutation("keys", "txt", "yolo")
def rows_with_other_separators(s, random):
    between = pick(random, (",", ";", "|"))
    s.text_edits[pick(random, row_docs(s))] = lambda text: text.replace(" ", between)


@mutation("keys", "txt", "yolo")
def word_removed(s, random):
    row = pick(random, full_rows(s))
    row.pop(int(random.integers(len(row))))


@mutation("keys", "txt", "yolo")
def word_added(s, random):
    row = pick(random, full_rows(s))
    row.insert(int(random.integers(1, len(row) + 1)), pick(random, WORDS))


@mutation("values", "txt")
def txt_number(s, random):
    row = pick(random, full_rows(s))
    place = int(random.integers(1, len(row)))
    parts = row[place].split(",")
    parts[int(random.integers(len(parts)))] = pick(random, WORDS)
    row[place] = ",".join(parts)


@mutation("values", "txt", benign=True)
def txt_floats(s, random):
    for row in full_rows(s):
        row[1:] = [",".join(pick(random, (v, *otherwise(v))) for v in c.split(",")) for c in row[1:]]
    s.config |= {"coco_classes": ["background", "a", "b", "c"], "num_classes": 4}


@mutation("keys", "txt")
def txt_columns(s, random):
    row = pick(random, full_rows(s))
    place = int(random.integers(1, len(row)))
    parts = row[place].split(",")
    row[place] = ",".join(
        pick(random, (parts[:4], parts[:3], [*parts, "0", "0"], [*parts[:5], "0"], [*parts[:5], "2"]))
    )


TXT_BOXES = {
    "turned round": lambda x1, y1, x2, y2: (x2, y2, x1, y1),
    "width and height": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "outside": lambda x1, y1, x2, y2: (x1 + 500, y1, x2 + 500, y2),
    "partly outside": lambda x1, y1, x2, y2: (x1 - 5, y1 - 5, x2 + 500, y2 + 500),
    "no area": lambda x1, y1, x2, y2: (x1, y1, x1, y2),
    "shares": lambda x1, y1, x2, y2: (x1 / 128, y1 / 128, x2 / 128, y2 / 128),
    "huge": lambda x1, y1, x2, y2: (x1, y1, 1e300, 1e300),
    "thin": lambda x1, y1, x2, y2: (x1, y1, x1 + 0.01, y2),
}


@mutation("boxes", "txt")
def txt_box(s, random):
    change = TXT_BOXES[pick(random, TXT_BOXES)]
    row = pick(random, full_rows(s))
    for place in range(1, len(row)) if random.random() < 0.5 else [1]:
        parts = row[place].split(",")
        row[place] = ",".join([*(f"{v:g}" for v in change(*map(float, parts[:4]))), *parts[4:]])


@mutation("classes", "txt")
def txt_class(s, random):
    row = pick(random, full_rows(s))
    parts = row[1].split(",")
    parts[4] = pick(random, ("0", "-1", "4", "1.5", "ant", "99999999999", "1e3", "nan"))
    row[1] = ",".join(parts)


@mutation("names", "txt", benign=True)
def txt_paths(s, random):
    prefix = pick(random, ("images/", "images\\", "./", "/home/me/images/", "C:\\data\\"))
    for row in s.docs["boxes.txt"]:
        row[0] = prefix + row[0].replace("/", "\\" if "\\" in prefix else "/")


@mutation("names", "txt")
def txt_path(s, random):
    row = pick(random, s.docs["boxes.txt"])
    row[0] = pick(
        random, (row[0].upper(), "gone.jpg", "../" + row[0], "x" * 300 + ".jpg", '"' + row[0] + '"', "a\0.jpg")
    )


@mutation("names", "txt", benign=True)
def txt_path_with_spaces(s, random):
    row = pick(random, s.docs["boxes.txt"])
    path = "images/" + row[0]
    new = str(Path(path).with_name("my old " + Path(path).name))
    s.images[new] = s.images.pop(path)
    row[0] = new.removeprefix("images/")


@mutation("flags", "txt")
def txt_crowd(s, random):
    row = pick(random, full_rows(s))
    row[1] = ",".join([*row[1].split(",")[:5], pick(random, ("0", "1", "2", "true", "0.5"))])


@mutation("values", "yolo")
def yolo_number(s, random):
    row = pick(random, full_rows(s))
    row[int(random.integers(len(row)))] = pick(random, WORDS)


@mutation("values", "yolo")
def yolo_yaml_value(s, random):
    doc = s.docs["data.yaml"]
    doc[pick(random, doc)] = pick(
        random, (None, "", [], {}, 0, -1, "gone", 3.5, ["images"], [["images"]], "../images", "a\0b")
    )


@mutation("keys", "yolo")
def yolo_yaml_key_dropped(s, random):
    doc = s.docs["data.yaml"]
    del doc[pick(random, doc)]


@mutation("keys", "yolo", benign=True)
def yolo_yaml_written_otherwise(s, random):
    doc = s.docs["data.yaml"]
    doc["names"] = pick(random, (dict(enumerate(CLASSES)), list(CLASSES)))
    doc |= {"train": pick(random, ("images", "./images", "images/", "../images", ["images"])), "path": "/home/me/data"}
    doc |= {"roboflow": {"license": "MIT"}, "test": None}


@mutation("boxes", "yolo")
def yolo_boxes(s, random):
    """Boxes in polygons' place, in one file or in all: a mask detector can't learn them."""
    docs = [p for p in row_docs(s) if s.docs[p]]
    for path in docs if random.random() < 0.7 else [pick(random, docs)]:
        for row in s.docs[path]:
            points = np.array(row[1:], float).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            row[1:] = [f"{v:.6f}" for v in (*((low + high) / 2), *(high - low))]
    if random.random() < 0.8:
        s.config["detector"] = "faster_rcnn"


@mutation("boxes", "yolo", benign=True)
def yolo_all_boxes(s, random):
    for row in full_rows(s):
        points = np.array(row[1:], float).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        row[1:] = [f"{v:.{int(random.integers(3, 9))}f}" for v in (*((low + high) / 2), *(high - low))]
    s.config["detector"] = "faster_rcnn"


YOLO_ROWS = {
    "pixels": lambda p: p * 100,
    "beyond by little": lambda p: p / p.max() * 1.005,
    "beyond": lambda p: p + 0.6,
    "negative": lambda p: p - 0.5,
    "two points": lambda p: p[:2],
    "bow-tie": lambda p: p[[0, 2, 1, 3]],
    "a line": lambda p: p[[0, 1, 0]],
    "of one place": lambda p: np.repeat(p[:1], 4, 0),
    "tiny": lambda p: p[0] + p / 10000,
    "thin": lambda p: p * [1, 0.0001],
}


@mutation("polygons", "yolo")
def yolo_polygon(s, random):
    row = pick(random, full_rows(s))
    points = YOLO_ROWS[pick(random, YOLO_ROWS)](np.array(row[1:], float).reshape(-1, 2))
    row[1:] = [f"{v:.6f}" for v in points.ravel()]


@mutation("classes", "yolo")
def yolo_class(s, random):
    pick(random, full_rows(s))[0] = pick(random, ("3", "-1", "1.0", "1.5", "ant", "99999999999", "1e0"))


@mutation("classes", "yolo")
def yolo_names(s, random):
    doc = s.docs["data.yaml"]
    doc["names"] = pick(
        random,
        (
            ["ant", "bee"],
            ["ant", "ant", "bee"],
            [1, 2, 3],
            ["no", "yes", "on"],
            {0: "a", 2: "b", 3: "c"},
            "ant",
            ["", "a", "b"],
        ),
    )


@mutation("files", "yolo", benign=True)
def yolo_label_without_image(s, random):
    s.files["labels/orphan.txt"] = b"0 0.5 0.5 0.1 0.1\n"


@mutation("files", "yolo")
def yolo_label_of_other_case(s, random):
    path = pick(random, row_docs(s))
    s.files[str(Path(path).with_suffix(".TXT"))] = s.encoded(path)
    del s.docs[path]


@mutation("splits", "yolo")
def yolo_lists(s, random):
    names = sorted(s.images)
    lines = pick(
        random,
        (
            names,
            [f"./{n}" for n in names],
            [n.replace("/", "\\") for n in names],
            [f"/home/me/data/{n}" for n in names],
            [*names, "images/gone.jpg"],
            [*names, names[0]],
            [n + "\r" for n in names],
            [],
        ),
    )
    s.files["train.txt"] = "\n".join(lines).encode()
    s.docs["data.yaml"] |= {"train": "train.txt", "val": "train.txt"}
