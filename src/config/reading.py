"""Configurations read: a YAML file and its `base:` chain, overrides, the command line; checked key by key.

A key that the schema doesn't know, or a value of the wrong type, raises ConfigError with the file, the key and, for
unknown keys, the nearest right name. A value that could only fail later is refused here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from src.config.backbones import BACKBONES, FAMILIES, PLAIN, backbone_channels
from src.config.checks import check_together, doubling, level_strides
from src.config.conventions import keys_of
from src.config.keys import ALIASES, DETECTORS, LARGEST, MOST_CLASSES, Backbone, Config, ConfigError
from src.runtime.errors import shown
from src.runtime.files import whole
from src.runtime.masking import masked_keys
from src.runtime.strict_yaml import Word, number, parse_yaml, read_yaml

__all__ = [
    "add_config_arguments",
    "config_from_arguments",
    "describe_keys",
    "load_config",
    "load_nameless_config",
    "parse_overrides",
    "save_config",
]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is list:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    return {int: "integer", float: "number", bool: "true/false", str: "text"}.get(hint, str(hint))


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint`, or ConfigError; YAML's `1e-4` (a string) is taken for a number."""
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a {_type_name(hint)}, got {shown(value)}")
        return [_convert(v, typing.get_args(hint)[0], where) for v in value]
    meant = value.value if isinstance(value, Word) else value
    if hint is float:
        meant = number(meant) if isinstance(meant, str) else meant
        if isinstance(meant, (int, float)) and not isinstance(meant, bool) and math.isfinite(meant):
            return float(meant)
    if hint is bool and isinstance(meant, (int, bool)) and meant in (0, 1):
        return bool(meant)
    if hint is int and isinstance(meant, int) and not isinstance(meant, bool):
        return meant
    if hint is str and isinstance(meant, str) and "\0" not in meant:
        return meant
    remedy = ""
    if isinstance(value, Word) and value.value is None and hint in (int, float) and value:
        remedy = "; write numbers plainly: 90, 0.5, 1e-4"
    elif isinstance(value, Word) and hint is str and value:
        remedy = "; put text like this in quotes"
    raise ConfigError(f"{where}: expected {_type_name(hint)}, got {shown(value)}{remedy}")


def _check_bounds(value: Any, meta: types.MappingProxyType, where: str) -> None:
    if isinstance(value, list):
        for v in value:
            _check_bounds(v, meta, where)
        return
    if meta.get("choices") and value not in meta["choices"]:
        raise ConfigError(f"{where}: {shown(value)} is not one of {', '.join(map(str, filter(None, meta['choices'])))}")
    if type(value) not in LARGEST:
        return
    low, high = meta["low"], meta["high"]
    low = -LARGEST[type(value)] if low is None else low
    high = LARGEST[type(value)] if high is None else high
    if not low <= value <= high:
        passed = f"below {low}" if value < low else f"above {high}"
        raise ConfigError(f"{where}: {shown(value)} is {passed}")


# by name of each dataclass: made of text, key by key, each time that they are asked for
_hints_of = functools.cache(typing.get_type_hints)


def _apply(
    obj: Any, values: Any, source: str, given: set[str], prefix: str = "", options: Collection[str] = ()
) -> None:
    """Writes the mapping `values` into the dataclass `obj`, checking each key, and notes the keys in `given`.

    options: what else a name may have been meant for.
    """
    if not isinstance(values, dict):
        where = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{source}: {where}: expected a mapping of keys, got {shown(values)}")
    hints = _hints_of(obj.__class__)
    fields = {f.name: f for f in dataclasses.fields(obj)}
    if not prefix and isinstance(values.get("conventions"), str) and values["conventions"]:
        # first, so that what stands beside it may differ
        for name, value in keys_of(values["conventions"], f"{source}: conventions").items():
            _apply(obj, _nested(name, value), source, given)
    for name, value in values.items():
        where = f"{source}: {prefix}{name}"
        if name in ALIASES and not prefix:
            name = ALIASES[name]
            if name in values:
                raise ConfigError(f"{where}: an older name of {name}, which is given too; leave one")
        if name == "coco_classes":
            value = _class_names(value)
        if name not in fields:
            near = difflib.get_close_matches(str(name), [*fields, *options], n=1)
            there = f"keys here: {', '.join(fields)}" if prefix else "python -m src.config lists all keys"
            there += ", --help the options" if options else ""
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; {there}"
            raise ConfigError(f"{where}: unknown key{hint}")
        if hints[name] is Backbone and isinstance(value, str):
            _apply_backbone(obj, value, where, source, given)
        elif dataclasses.is_dataclass(hints[name]):
            _apply(getattr(obj, name), value, source, given, f"{prefix}{name}.")
        else:
            converted = _convert(value, hints[name], where)
            _check_bounds(converted, fields[name].metadata, where)
            setattr(obj, name, converted)
            given.add(prefix + name)


def _class_names(value: Any) -> Any:
    """Names of classes as they're written, though YAML takes some for numbers; auto is an empty list."""
    if value == "auto":
        return []
    if isinstance(value, list):
        return [
            str(v) if isinstance(v, (Word, int, float)) and not isinstance(v, bool) and str(v) else v for v in value
        ]
    return value


def _apply_backbone(config: Any, name: str, where: str, source: str, given: set[str]) -> None:
    """`backbone: NAME`: one of BACKBONES, and the neck that fits it."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1, 0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{where}: {shown(name)} is not one of {', '.join(BACKBONES)}{meant}")
    keys = PLAIN | BACKBONES[name]
    before, after = (len(FAMILIES[kind].channels) for kind in (config.backbone.type, keys["type"]))
    if before != after:
        plain = Backbone()
        keys = {"num_stages": plain.num_stages, "out_indices": plain.out_indices} | keys
    _apply(config.backbone, keys, source, given, "backbone.")
    given.discard("neck.fpn.in_channels")


def _derive(c: Config, given: set[str]) -> None:
    """Fills the keys that follow from others, where they aren't given; check_together compares those that are."""
    fpn, branches = c.neck.fpn, {branch for names in DETECTORS.values() for branch in names}
    strides = level_strides(c)
    pooled = doubling(strides[: len(c.backbone.out_indices)])
    for name, value in (
        ("num_classes", len(c.coco_classes) or c.num_classes),
        ("neck.fpn.in_channels", backbone_channels(c.backbone)),
        ("rpn.anchor_generator.strides", strides),
        ("roi.featmap_strides", pooled),
        *((f"{branch}_roi.featmap_strides", pooled) for branch in branches),
        *((f"{part}.in_channels", fpn.out_channels) for part in ("rpn", "bbox_head", *(f"{b}_head" for b in branches))),
        ("bbox_head.roi_feat_size", c.roi.roi_layer.out_size),
        ("train_cfg.rcnn.mask_size", 2 * c.mask_roi.roi_layer.out_size),
    ):
        if name not in given:
            *path, last = name.split(".")
            setattr(functools.reduce(getattr, path, c), last, value)


def _load_file(config: Config, path: Path, given: set[str], above: tuple[Path, ...] = ()) -> None:
    if len(above) > 20 or path in above:
        raise ConfigError(f"{path}: base: files name each other in a circle, or more than 20 in a row")
    try:
        values = read_yaml(path, ConfigError)
    except ConfigError as e:
        raise ConfigError(f"{above[-1]}: base: {e}" if above else str(e)) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {shown(values)}")
    base = values.pop("base", None)
    if base is not None:
        _load_file(config, path.parent / _convert(base, str, f"{path}: base"), given, (*above, path))
    _apply(config, values, str(path), given)


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`--a.b=V`, `--a.b V` or `a.b=V` words as {"a.b": "V"}; ConfigError for words that are neither."""
    out: dict[str, str] = {}
    i = 0
    while i < len(arguments):
        word = arguments[i]
        name, eq, value = word.lstrip("-").partition("=")
        if not eq:
            if not word.startswith("--") or i + 1 >= len(arguments):
                raise ConfigError(f"argument {shown(word)}: expected --KEY VALUE or --KEY=VALUE")
            value, i = arguments[i + 1], i + 1
        out.pop(name, None)
        out[name] = value
        i += 1
    return out


def _nested(name: str, value: Any) -> dict:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _hint(name: str) -> Any:
    """The type of a key by its dotted name; None for an unknown one."""
    hint: Any = Config
    for part in ALIASES.get(name, name).split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def load_config(path: str | Path, overrides: dict[str, str] | None = None, options: Collection[str] = ()) -> Config:
    """Read `path` and its `base:` chain, then `overrides` ({"train_cfg.rpn.sampler.num": "128"}).

    An override of a text key is taken as it is; text for any other key is read as YAML. options: a command's own, of
    which an unknown override may be one misspelt. Raises ConfigError.
    """
    config = Config()
    given: set[str] = set()
    _load_file(config, Path(path), given)
    source = str(path)
    for name, value in sorted((overrides or {}).items(), key=lambda item: item[0] != "conventions"):
        source = "command line"
        if isinstance(value, str) and _hint(name) is not str:
            # what isn't YAML is refused below, as not of the key's type
            with contextlib.suppress(ConfigError):
                value = parse_yaml(value, source, ConfigError)
        _apply(config, _nested(name, value), source, given, options=options)
    _derive(config, given)
    check_together(config, source if not overrides else f"{path} and command line")
    return config


def load_nameless_config(path: str | Path, overrides: dict[str, Any]) -> Config:
    """load_config for a network alone: num_classes needs no names, class_1, class_2, ... stand for those not given."""
    count = str(overrides.get("num_classes", ""))
    nameless = count.isdecimal() and "coco_classes" not in overrides and int(count) <= MOST_CLASSES
    if nameless and int(count) != len(load_config(path).coco_classes):
        overrides = overrides | {"coco_classes": ["background", *(f"class_{i}" for i in range(1, int(count)))]}
    return load_config(path, overrides)


def save_config(config: Config, path: str | Path) -> None:
    """Writes every key as YAML that load_config reads; beside, then renamed; passwords in addresses as ***.

    Raises ConfigError.
    """
    with whole(Path(path), ConfigError, "set train_outputs to a folder that can") as beside:
        beside.write_text(yaml.safe_dump(masked_keys(dataclasses.asdict(config)), sort_keys=False), encoding="utf-8")


def add_config_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --config_path; every other `--key value` of the command line overrides that key."""
    parser.add_argument("--config_path", default=default, help="YAML config file (default: %(default)s)")
    parser.epilog = "Any key of the config can follow as --KEY VALUE, e.g. --lr 0.01 --train_cfg.rpn.sampler.num 128"


def config_from_arguments(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """Parses the command line into the config and the parser's own options. Raises ConfigError."""
    known, rest = parser.parse_known_args(arguments)
    return load_config(known.config_path, parse_overrides(rest), list(vars(known))), known


def describe_keys(obj: Any = None, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """(key, type, default, meaning) of every key, in order: what python -m src.config prints."""
    obj = Config() if obj is None else obj
    hints, rows = _hints_of(obj.__class__), []
    for f in dataclasses.fields(obj):
        value = getattr(obj, f.name)
        if dataclasses.is_dataclass(value):
            rows += describe_keys(value, f"{prefix}{f.name}.")
        else:
            rows.append((prefix + f.name, _type_name(hints[f.name]), value, f.metadata["doc"]))
    return rows
