"""What objects carry beyond box and class, by the branch of the detector that learns it."""

from collections.abc import Sequence
from typing import Any

from src.config import Config, ConfigError
from src.data.fields.base import Field
from src.data.fields.keypoints import KeypointField
from src.data.fields.masks import MaskField
from src.data.records import Instance

__all__ = [
    "FIELDS",
    "Field",
    "all_fields",
    "carried_fields",
    "check_augmentation",
    "completed",
    "field_keys",
    "fields_of",
    "without_branches",
]

FIELDS: dict[str, type[Field]] = {"mask": MaskField, "keypoint": KeypointField}


def fields_of(config: Config) -> list[Field]:
    """The fields of the detector's branches, in their order."""
    return [FIELDS[branch](config) for branch in config.branches]


def carried_fields(config: Config) -> list[Field]:
    """Those of them that objects have in Instance.fields."""
    return [f for f in fields_of(config) if f.carried]


def all_fields(config: Config) -> list[Field]:
    """The fields that objects have in Instance.fields, whatever the detector: what labels may hold."""
    return [f for f in (field(config) for field in FIELDS.values()) if f.carried]


def completed(config: Config, categories: Sequence[dict]) -> Config:
    """The config with what the categories of the training split's truth say beyond names: keypoints' limbs."""
    for branch in config.branches:
        config = FIELDS[branch](config).completed(categories)
    return config


def field_keys(instance: Instance) -> dict[str, Any]:
    """The keys of a COCO annotation for what an object carries."""
    out: dict[str, Any] = {}
    for field in FIELDS.values() if instance.fields else ():
        if field.name in instance.fields:
            out |= field.truth(instance.fields[field.name])
    return out


def without_branches(config: Config) -> str:
    """The detector that is the config's without what needs more than boxes."""
    return "cascade_rcnn" if config.is_cascade else "faster_rcnn"


def check_augmentation(config: Config) -> None:
    """Raises ConfigError where training images are changed in a way that a field can't follow."""
    for field in fields_of(config):
        for key, off in field.bars.items():
            if getattr(config, key) != off:
                how = "leave it out" if off == "" else f"set it to {off:g}"
                raise ConfigError(
                    f"{key}: {field.name}, which detector: {config.detector} trains on, can't follow it; {how}"
                )
