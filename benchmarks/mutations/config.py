"""Configs in YAML, and changes to them."""

import dataclasses

import numpy as np
import yaml

from benchmarks.mutations import raw
from benchmarks.mutations.sets import WORDS, pick
from src.config import Config

__all__ = ["make", "mutate"]

VALUES = (
    *WORDS,
    "~",
    "yes",
    "'text'",
    "[]",
    "{}",
    "[1, [2, [3]]]",
    "{a: {b: c}}",
    "1e-4",
    ".inf",
    ".nan",
    "012",
    "1:30",
)
VALUES += ("2024-01-01", "!!int 3", "!!python/name:os.system", "&a x", "*a", "|\n  text", "? x", '"\\0"', '"\\e[31m"')
VALUES += (
    "[" * 30,
    "9" * 5000,
    "0." + "9" * 5000,
    "-0.0",
    "1_000",
    "0b11",
    "1e400",
    "999999999999",
    "auto",
    "../x",
    "/x",
)


def make(random: np.random.Generator) -> bytes:
    """A valid config: some of the keys, with their defaults, nested or not."""
    content = dataclasses.asdict(Config())
    for key in list(content):
        if random.random() < 0.7 and key not in ("num_classes", "coco_classes", "action_candidate", "action_prob"):
            del content[key]
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=pick(random, (False, None, True))).encode()


def value(random: np.random.Generator, lines: list[str]) -> None:
    """A key of another value."""
    i = pick(random, [i for i, line in enumerate(lines) if ": " in line])
    lines[i] = f"{lines[i].partition(': ')[0]}: {pick(random, VALUES)}"


def key(random: np.random.Generator, lines: list[str]) -> None:
    """A key of another name."""
    i = pick(random, [i for i, line in enumerate(lines) if ":" in line])
    name = pick(
        random, ("base", "lr", "<<", "=", "null", "1", "a.b", "[a]", "? a", "lrr", "é", '"\\0"', "*a", "x" * 300)
    )
    lines[i] = f"{name}:{lines[i].partition(':')[2]}"


def twice(random: np.random.Generator, lines: list[str]) -> None:
    """A line there and elsewhere."""
    lines.insert(int(random.integers(len(lines) + 1)), pick(random, lines))


def indent(random: np.random.Generator, lines: list[str]) -> None:
    i = int(random.integers(len(lines)))
    lines[i] = pick(random, ("  ", "\t", " ", "- ")) + lines[i] if random.random() < 0.6 else lines[i].lstrip()


def drop(random: np.random.Generator, lines: list[str]) -> None:
    del lines[int(random.integers(len(lines)))]


def base(random: np.random.Generator, lines: list[str]) -> None:
    names = ("none.yaml", "/dev/zero", ".", "", "[a]", "config.yaml", "../config.yaml", "/proc/self/mem", "a\\0")
    lines.insert(0, f"base: {pick(random, names)}")


CHANGES = (value, value, value, key, twice, indent, drop, base)


def mutate(random: np.random.Generator, data: bytes) -> bytes:
    """A config's bytes with one to four changes of lines, of bytes, or of both."""
    if random.random() < 0.7:
        lines = data.decode().splitlines()
        for _ in range(int(random.integers(1, 5))):
            if any(": " in line for line in lines):
                pick(random, CHANGES)(random, lines)
        data = ("\n".join(lines) + "\n").encode()
    return raw.mutate(random, data) if random.random() < 0.4 else data
