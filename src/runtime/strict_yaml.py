"""YAML as users write it (https://yaml.org/spec/1.1), read in bounded time and memory, and nothing read otherwise than
it looks: a key that comes twice, an alias of a list or mapping, 1:30 for 90, 010 for 8, .inf are refused."""

from __future__ import annotations

import codecs
import errno
import math
import re
from pathlib import Path
from typing import Any

import yaml

from src.runtime.errors import UserError
from src.runtime.files import read_regular

__all__ = ["Word", "number", "parse_yaml", "read_yaml"]

LARGEST, DEEPEST = 2**18, 20  # bytes of a file, levels of lists and mappings: a few seconds of PyYAML's time
TOO_LONG = f"longer than {LARGEST // 1024} KiB, which no YAML file here needs to be"
MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Word(str):
    """A word without quotes, as it's written, that YAML doesn't take for text.

    value: the int, float or bool that it is; None for null, dates, and numbers in any but plain decimal writing.
    """

    value: int | float | bool | None = None

    def __repr__(self) -> str:
        return str(self) or "nothing"


def number(text: str) -> int | float | None:
    """The number that `text` is in plain decimal writing, 1e-4 and 012.5 too; None for anything else, infinity too."""
    if INTEGER.fullmatch(text):
        return int(text)
    value = float(text) if FLOAT.fullmatch(text) and ("." in text or "e" in text.lower()) else math.inf
    return value if math.isfinite(value) else None


class _RefusedError(yaml.MarkedYAMLError):
    """What is valid YAML, but isn't read."""

    def __init__(self, problem: str, mark: Any):
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if self.depth > DEEPEST:
            raise _RefusedError(f"more than {DEEPEST} levels of lists and mappings", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise _RefusedError(f"*{event.anchor} stands for a list or mapping; write that out", event.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in lines:
                raise _RefusedError(
                    f"{name.value} comes twice, first in line {lines[name.value]}; leave one", name.start_mark
                )
            lines[name.value] = name.start_mark.line + 1
        return node


def _word(loader: _Loader, node: yaml.ScalarNode) -> Word:
    word = Word(loader.construct_scalar(node))
    if node.tag.endswith(":bool"):
        word.value = loader.bool_values.get(word.lower())
    elif node.tag.endswith((":int", ":float")):
        word.value = number(word)
    return word


for _kind in ("int", "float", "bool", "null", "timestamp", "merge", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _word)


def parse_yaml(text: str, source: str, error: type[UserError] = UserError) -> Any:
    """What YAML text says: mappings, lists, text, and Words. Raises `error`, which names `source` and the line."""
    if len(text) > LARGEST:
        raise error(f"{source}: {TOO_LONG}")
    try:
        value = yaml.load(text, _Loader)
        return Word() if value is None else value
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(e, "problem", None) or getattr(e, "reason", None) or e
        what = "" if isinstance(e, _RefusedError) else "not valid YAML: "
        raise error(f"{source}{line}: {what}{reason}") from None


def read_yaml(path: Path, error: type[UserError] = UserError) -> Any:
    """The same of a file, in UTF-8, or UTF-16 with its mark. Raises `error` also for what can't be read."""
    try:
        data = read_regular(path, LARGEST)
        text = data.decode("utf-16" if data[:2] in MARKS else "utf-8-sig")
    except OSError as e:
        if e.errno == errno.EFBIG:
            raise error(f"{path}: {TOO_LONG}") from None
        raise error(f"{path}: can't read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: can't read: it isn't text in UTF-8") from None
    return parse_yaml(text, str(path), error)
