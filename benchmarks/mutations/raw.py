"""Changes to bytes, whatever they are: what disks, transfers and editors do to files."""

import re

import numpy as np

from benchmarks.mutations.sets import mutation, pick

__all__ = ["mutate"]

# what parsers take for more than a byte
TOKENS = (
    b"\0",
    b"\n",
    b"\r",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"<",
    b">",
    b"&",
)
TOKENS += (b",", b":", b"- ", b"#", b"*a", b"&a ", b"!!", b"<<: ", b"-", b"e9", b"9" * 30, b"9" * 5000, b"nan", b"null")
TOKENS += (b"[" * 3000, b"\xed\xa0\x80", "é".encode(), b"\t", b" " * 50, b"<!DOCTYPE a>", b"\\u0000", b"\\ud800")
NUMBERS = (b"0", b"-1", b"1", b"2", b"7", b"40", b"3.7", b"1e308", b"1e999", b"-0.0", b"65536", b"9" * 30, b"9" * 5000)
LONGEST = 1 << 20  # bytes that repeats grow to


def flip(random: np.random.Generator, data: bytes) -> bytes:
    """Up to eight bits."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        out[int(random.integers(len(out)))] ^= 1 << int(random.integers(8))
    return bytes(out)


def cut(random: np.random.Generator, data: bytes) -> bytes:
    """A part, from somewhere or to the end."""
    start, end = part(random, data)
    return data[:start] + (data[end:] if random.random() < 0.6 else b"")


def insert(random: np.random.Generator, data: bytes) -> bytes:
    at = int(random.integers(len(data) + 1))
    new = pick(random, TOKENS) if random.random() < 0.7 else random.bytes(int(random.integers(1, 9)))
    return data[:at] + new + data[at:]


def repeat(random: np.random.Generator, data: bytes) -> bytes:
    """A part, once or a thousand times more."""
    start, end = part(random, data)
    times = pick(random, (2, 3, 10, 1000))
    return data[:start] + data[start:end] * max(2, min(times, LONGEST // max(end - start, 1))) + data[end:]


def splice(random: np.random.Generator, data: bytes) -> bytes:
    """One part over another."""
    (start, end), (to, until) = part(random, data), part(random, data)
    return data[:to] + data[start:end] + data[until:]


def number(random: np.random.Generator, data: bytes) -> bytes:
    """A number that is written in digits, as another; so that what holds it may stay whole."""
    found = list(re.finditer(rb"[0-9]+", data))
    if not found:
        return flip(random, data)
    at = pick(random, found)
    return data[: at.start()] + pick(random, NUMBERS) + data[at.end() :]


def part(random: np.random.Generator, data: bytes) -> tuple[int, int]:
    """Places of a part, mostly a short one."""
    start = int(random.integers(len(data)))
    length = int(random.integers(1, 12)) if random.random() < 0.5 else int(random.integers(1, len(data) + 1))
    return start, min(start + length, len(data))


CHANGES = (flip, cut, insert, repeat, splice, number, number, number, number)


def mutate(random: np.random.Generator, data: bytes) -> bytes:
    """`data` with one to three changes, mostly one."""
    for _ in range(pick(random, (1, 1, 1, 2, 3))):
        data = pick(random, CHANGES)(random, data) if data else insert(random, data)
    return data


@mutation("bytes")
def bytes_of_a_document(s, random):
    seed = int(random.integers(1 << 32))
    s.byte_edits[pick(random, s.docs)] = lambda data: mutate(np.random.default_rng(seed), data)
