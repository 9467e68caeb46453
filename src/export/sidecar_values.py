"""Kinds of values of a sidecar's keys: each a check that raises ExportError with the key's name."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from src.runtime.errors import UserError, shown

__all__ = [
    "AGAIN",
    "Check",
    "ExportError",
    "demand",
    "flag",
    "group",
    "hexadecimal",
    "integer",
    "list_of",
    "none_or",
    "number",
    "one_of",
    "own_name",
    "plain",
    "text",
]

Check = Callable[[Any, str], None]  # of a value, and what it is called; raises ExportError

LARGEST = 3e38
AGAIN = "export the model again"


class ExportError(UserError):
    """An exported model or its sidecar that can't be written, read or used; the message names file and remedy."""


def demand(ok: bool, where: str, what: str) -> None:
    if not ok:
        raise ExportError(f"{where} {what}; {AGAIN}")


def number(low: float, high: float) -> Check:
    def run(value: Any, where: str) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        ok = is_number and low <= value <= high and math.isfinite(value)
        demand(ok, where, f"is not a number from {low:g} to {high:g}")

    return run


def integer(low: int, high: int) -> Check:
    def run(value: Any, where: str) -> None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        demand(ok, where, f"is not an integer from {low} to {high}")

    return run


def flag(value: Any, where: str) -> None:
    demand(isinstance(value, bool), where, "is not true or false")


def text(value: Any, where: str) -> None:
    # half of a surrogate pair; \udc80 to \udcff stand for bytes that are no UTF-8
    ok = isinstance(value, str) and not re.search("[\ud800-\udc7f\udd00-\udfff]", value)
    demand(ok, where, "is not a text")


def one_of(*known: Any) -> Check:
    def run(value: Any, where: str) -> None:
        ok = type(value) is type(known[0]) and value in known
        demand(ok, where, f"is not one of {', '.join(map(str, known))}, but {shown(value)}")

    return run


def hexadecimal(value: Any, where: str) -> None:
    ok = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    demand(bool(ok), where, "is not 64 hexadecimal digits")


def own_name(value: Any, where: str) -> None:
    text(value, where)
    ok = value not in ("", ".", "..") and not {"/", "\0"} & set(value)
    demand(ok, where, f"is not the name of a file of the sidecar's own folder, but {shown(value)}")


def list_of(item: Check, count: int = 0) -> Check:
    """count: how many items; 0: one or more."""

    def run(value: Any, where: str) -> None:
        demand(isinstance(value, list), where, "is not a list")
        demand(len(value) == count if count else bool(value), where, f"is not a list of {count or 'one or more'} items")
        for i, v in enumerate(value):
            item(v, f"{where}[{i}]")

    return run


def none_or(item: Check) -> Check:
    """A list that may be empty."""

    def run(value: Any, where: str) -> None:
        if value != []:
            list_of(item)(value, where)

    return run


def group(keys: Mapping[str, Check], optional: Iterable[str] = ()) -> Check:
    """An object with these keys and no others; `optional` ones may be missing."""

    def run(value: Any, where: str) -> None:
        demand(isinstance(value, dict), where, "is not an object")
        missing = next((k for k in keys if k not in value and k not in optional), None)
        demand(missing is None, where, f'has no "{missing}"')
        within = f"{where} " if where.endswith(":") else f"{where}."
        for name, v in value.items():
            demand(name in keys, f"{within}{name}:", "no key of a sidecar")
            keys[name](v, f"{within}{name}")

    return run


def plain(value: Any, where: str) -> None:
    """A number, a flag, a text, or a list of these."""
    for v in value if isinstance(value, list) else [value]:
        if isinstance(v, str):
            text(v, where)
        elif not isinstance(v, bool):
            number(-LARGEST, LARGEST)(v, where)
