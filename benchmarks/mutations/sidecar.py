"""Seeded changes to an exported model's sidecar: JSON that stays valid and means something else, and bytes.

A change is made to the content, which may then be signed as an export signs it, so that it passes the checksum and
meets every other check.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from src.export import sidecar

__all__ = ["BYTES", "CONTENTS", "mutated"]

Random = np.random.Generator
NUMBERS = (0, -1, 1, 2, 3, 0.5, -0.5, 1e-12, 1e9, -1e9, 1e300, -1e300, 2**31, 2**63, 10**400)
OTHERS = (None, True, False, "", "3", "background", [], [[]], {}, {"a": 1}, [0.1, 0.1, 0.2, 0.2], "\ud800", "a\nb", "é")


def pick(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below `value`."""
    names = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for name in names for place in [(value, name), *places(value[name])]]


def place(content: dict, random: Random, kind: type | tuple = object) -> tuple[Any, Any]:
    """One of those whose value is of `kind`."""
    return pick(random, [(c, k) for c, k in places(content) if isinstance(c[k], kind) and not isinstance(c[k], bool)])


def number(content: dict, random: Random) -> None:
    container, name = place(content, random, (int, float))
    container[name] = pick(random, NUMBERS)


def number_near(content: dict, random: Random) -> None:
    container, name = place(content, random, (int, float))
    container[name] = container[name] * pick(random, (-1, 2, 0.5, 1.01)) + pick(random, (0, 1, -1))


def text(content: dict, random: Random) -> None:
    container, name = place(content, random, str)
    old = container[name]
    container[name] = pick(random, (old + "x", old.upper(), old[:-1], "../" + old, "", old + "\0", "\U0001f600" * 30))


def type_of(content: dict, random: Random) -> None:
    container, name = pick(random, places(content))
    container[name] = pick(random, OTHERS)


def missing(content: dict, random: Random) -> None:
    container, name = pick(random, places(content))
    del container[name]


def unknown(content: dict, random: Random) -> None:
    container = pick(random, [content] + [c[k] for c, k in places(content) if isinstance(c[k], dict)])
    container[pick(random, ("colour", "", "a\nb", "checksum2", "Form"))] = pick(random, (*NUMBERS[:5], *OTHERS))


def renamed(content: dict, random: Random) -> None:
    container, name = pick(random, [(c, k) for c, k in places(content) if isinstance(c, dict)])
    container[pick(random, (name + "s", name.upper(), name[:-1]))] = container.pop(name)


def list_longer(content: dict, random: Random) -> None:
    container, name = pick(random, [(c, k) for c, k in places(content) if isinstance(c[k], list) and c[k]])
    container[name].append(pick(random, container[name]))


def list_shorter(content: dict, random: Random) -> None:
    container, name = pick(random, [(c, k) for c, k in places(content) if isinstance(c[k], list) and c[k]])
    del container[name][int(random.integers(len(container[name]))) :]


def list_reversed(content: dict, random: Random) -> None:
    container, name = pick(random, [(c, k) for c, k in places(content) if isinstance(c[k], list)])
    container[name].reverse()


def swapped(content: dict, random: Random) -> None:
    (a, i), (b, k) = place(content, random), place(content, random)
    a[i], b[k] = b[k], a[i]


def flag(content: dict, random: Random) -> None:
    container, name = pick(random, [(c, k) for c, k in places(content) if isinstance(c[k], bool)])
    container[name] = not container[name]


def nested(content: dict, random: Random) -> None:
    container, name = pick(random, places(content))
    for _ in range(int(random.integers(1, 100))):
        container[name] = [container[name]]


def cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(len(data)))]


def bits_flipped(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        out[int(random.integers(len(out)))] ^= 1 << int(random.integers(8))
    return bytes(out)


def bytes_replaced(data: bytes, random: Random) -> bytes:
    at, length = int(random.integers(len(data))), int(random.integers(1, 40))
    return data[:at] + random.bytes(length) + data[at + length :]


def token_inserted(data: bytes, random: Random) -> bytes:
    at = int(random.integers(len(data)))
    tokens = (
        b"NaN",
        b"Infinity",
        b"-",
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"9" * 5000,
        b"1e999",
        b'"',
        b",",
        b"}",
        b"\0",
    )
    return data[:at] + pick(random, (*tokens, b"\xff\xfe", b"\\ud800", b"//", b"0x1", b"+1", b"01", b".5")) + data[at:]


def line_twice(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = int(random.integers(len(lines)))
    return b"".join(lines[: at + 1] + lines[at:])


def line_lost(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[int(random.integers(len(lines)))]
    return b"".join(lines)


CONTENTS: tuple[Callable[[dict, Random], None], ...] = (
    number,
    number_near,
    text,
    type_of,
    missing,
    unknown,
    renamed,
    list_longer,
    list_shorter,
    list_reversed,
    swapped,
    flag,
    nested,
)
BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    cut,
    bits_flipped,
    bytes_replaced,
    token_inserted,
    line_twice,
    line_lost,
)


def mutated(data: bytes, random: Random) -> tuple[str, bytes]:
    """The bytes of a sidecar after one or two changes, and their names; a quarter of valid JSON isn't signed."""
    if random.random() < 0.3:
        change = pick(random, BYTES)
        return change.__name__, change(data, random)
    content, names = json.loads(data), []
    for _ in range(1 + (random.random() < 0.3)):
        change = pick(random, CONTENTS)
        # a second change may find what the first has broken
        with contextlib.suppress(LookupError, ValueError, TypeError, OverflowError):
            change(content, random)
            names.append(change.__name__)
    if random.random() < 0.25:
        return " ".join([*names, "unsigned"]), json.dumps(content, indent=1).encode()
    return " ".join(names), sidecar.signed(content).encode()
