"""A split as training meets it: its usable images under the config's policy, and what was left out."""

from types import SimpleNamespace

from src.data.formats import read_split


def load(config, split="train", **options):
    data = read_split(config, split, **options)
    records = data.usable(config.on_bad_image)
    parts = {"split": data.split, "category_ids": data.category_ids, "notes": data.notes}
    return SimpleNamespace(records=records, skipped=data.skipped(), **parts)
