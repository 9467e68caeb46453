"""Pickles, read without running anything: tensors, arrays and plain containers, or a refusal that names the rest.

A pickle is a program for a small stack machine (the opcodes are documented in `pickletools`), and Python's own machine
calls whatever the program names. This one knows the calls that checkpoints need, each with its own few lines in CALLS,
and calls nothing else; what it makes are records of its own, that become NumPy arrays when they are asked to.
"""

import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from src.runtime.errors import UserError

__all__ = [
    "ConversionError",
    "Global",
    "LazyArray",
    "LazyTensor",
    "RefusedError",
    "STORAGES",
    "Storage",
    "load_pickle",
    "shown",
]

# torch.<name>Storage and torch.<name>; bfloat16 is read as its 16 bits
STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
DTYPES = {
    "float32": "f4",
    "float": "f4",
    "float64": "f8",
    "double": "f8",
    "float16": "f2",
    "half": "f2",
    "bfloat16": "bfloat16",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "?",
}
SMALL = 1 << 20  # elements that a tensor may have whatever its storage holds (expanded scalars and vectors)


class ConversionError(UserError):
    """A foreign checkpoint that can't be read or converted; the message names the file and the reason."""


class RefusedError(Exception):
    """What a pickle wanted, and mustn't have; told with the file's name by `load_pickle`'s caller."""


@dataclass(frozen=True)
class Global:
    """An importable thing that the pickle names; never imported."""

    name: str


class Storage:
    """A tensor's memory: `numel` elements of `dtype` (a NumPy code or "bfloat16"), read when `load` is called."""

    def __init__(self, dtype: str, key: str, numel: int):
        self.dtype, self.key, self.numel = dtype, key, numel
        self.load: Callable[[], bytes] | None = None
        self.little_endian = True
        self.base: tuple[Storage, int] | None = None
        self.elements: np.ndarray | None = None

    @property
    def code(self) -> np.dtype:
        """NumPy's type of the stored elements."""
        dtype = np.dtype("u2" if self.dtype == "bfloat16" else self.dtype)
        return dtype if self.little_endian else dtype.newbyteorder(">")

    @property
    def nbytes(self) -> int:
        return self.numel * self.code.itemsize

    def array(self) -> np.ndarray:
        """The elements, one after the other, as stored."""
        if self.base:
            whole, start = self.base
            return whole.array()[start : start + self.numel]
        if self.elements is None:
            if self.load is None:
                raise ValueError(f"storage {self.key} has no data")
            self.elements = from_bytes(self.load(), self.code, self.numel)
        return self.elements


@dataclass
class LazyTensor:
    """A strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""

    def array(self) -> np.ndarray:
        """The values, a view of the storage where its type allows; ValueError if they don't lie in it."""
        if not (natural(self.shape) and natural(self.stride) and natural((self.offset,))):
            raise ValueError("a tensor's shape, strides or offset aren't natural numbers")
        if len(self.shape) != len(self.stride):
            raise ValueError("a tensor's strides don't fit its shape")
        if type(self.storage) is not Storage:
            raise ValueError("a tensor without a storage")
        flat, dtype = self.storage.array(), self.dtype or self.storage.dtype
        if self.dtype:
            flat = flat.view(np.dtype("u2" if dtype == "bfloat16" else dtype))
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if count and (last >= len(flat) or count > max(len(flat), SMALL)):
            raise ValueError(f"a tensor of shape {self.shape} in a storage of {len(flat)} elements")
        if not count:
            return np.zeros(self.shape, flat.dtype)
        strides = [s * flat.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        return widened(view) if dtype == "bfloat16" else view


class LazyArray:
    """A NumPy array, whose contents follow in the pickle."""

    def __init__(self):
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """State of numpy.ndarray: (version, shape, dtype, is_fortran, bytes)."""
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, LazyDtype):
            raise ValueError("an array without a type")
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(raw, (bytes, bytearray)):
            raise RefusedError("numpy arrays of objects")
        code = dtype.code()
        if not natural(shape) or math.prod(shape) * code.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")
        self.value = from_bytes(raw, code, math.prod(shape)).reshape(shape, order=order)

    def array(self) -> np.ndarray:
        if self.value is None:
            raise ValueError("an array without contents")
        return self.value


class LazyDtype:
    """numpy.dtype, of numbers and texts."""

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "="

    def build(self, state: Any) -> None:
        """State of numpy.dtype: (version, byte order, subdtype, names, fields, ...)."""
        if any(part is not None for part in state[2:5]):
            raise RefusedError("structured numpy types")
        self.order = state[1] if state[1] in ("<", ">") else "="

    def code(self) -> np.dtype:
        if not isinstance(self.name, str) or self.name.lstrip("<>=|")[:1] not in tuple("fiubcSU"):
            raise RefusedError(f"numpy type {self.name!r}")
        return np.dtype(self.name).newbyteorder(self.order)


def natural(numbers: Any) -> bool:
    """Whether these are a few whole numbers from 0."""
    return isinstance(numbers, (tuple, list)) and len(numbers) <= 32 and all(type(n) is int and n >= 0 for n in numbers)


def from_bytes(raw: bytes, code: np.dtype, count: int) -> np.ndarray:
    """`count` elements; np.frombuffer refuses to read none."""
    return np.frombuffer(raw, code, count) if count else np.zeros(0, code)


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------------------------------------------------
# the calls that there are


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> LazyTensor:
    return LazyTensor(storage, offset, tuple(shape), tuple(stride))


def _typed_tensor(storage: Any, offset: int, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    return LazyTensor(storage, offset, tuple(shape), tuple(stride), torch_dtype(dtype))


def _scalar(dtype: LazyDtype, raw: Any) -> Any:
    array = LazyArray()
    array.fill(raw, dtype, (), "C")
    return array.array()[()]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str = "C") -> LazyArray:
    array = LazyArray()
    array.fill(raw, dtype, shape, "F" if order == "F" else "C")
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode to {encoding}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """`bytes()`, as protocol 2 writes b""."""
    return b""


def _container(kind: type) -> Callable:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple, set, frozenset, Mapping)):
            raise ValueError(f"a {kind.__name__} of something else")
        if issubclass(kind, dict):
            return kind(items if isinstance(items, Mapping) else [(key(k), v) for k, v in items])
        return kind(items) if kind in (list, tuple) else kind(map(key, items))

    return make


CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": _container(tuple),
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    "collections.OrderedDict": _container(OrderedDict),
    "collections.Counter": _container(dict),
    "collections.defaultdict": lambda factory=None, items=(): _container(dict)(items),
    "numpy.dtype": LazyDtype,
    "_codecs.encode": _encode,
}
for _numpy in ("numpy.core", "numpy._core"):
    CALLS[f"{_numpy}.multiarray._reconstruct"] = lambda *_: LazyArray()
    CALLS[f"{_numpy}.multiarray.scalar"] = _scalar
    CALLS[f"{_numpy}.numeric._frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    CALLS[f"{_builtins}.bytes"] = _no_bytes
    for _kind in (set, frozenset, list, tuple, dict):
        CALLS[f"{_builtins}.{_kind.__name__}"] = _container(_kind)
# named, but never called: arguments of the calls above
VALUES = {"numpy.ndarray", "torch.storage.UntypedStorage", "torch.storage._UntypedStorage"}
VALUES |= {f"torch.{name}" for name in (*STORAGES, *DTYPES)}


def torch_dtype(value: Any) -> str:
    """NumPy's code, or "bfloat16", of torch.float32 and the like."""
    name = value.name.removeprefix("torch.") if isinstance(value, Global) else ""
    if name not in DTYPES:
        raise RefusedError(f"tensors of type {described(value)}")
    return DTYPES[name]


# ---------------------------------------------------------------------------------------------------------
# the machine

PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
GROUPED = {"LIST": list, "TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """The stack machine. `persistent` turns the tuple of a persistent id into an object."""

    def __init__(self, persistent: Callable[[tuple], Any] | None = None):
        self.persistent, self.stack, self.marks, self.memo = persistent, [], [], {}

    def run(self, stream: BinaryIO) -> Any:
        for op, argument, _ in pickletools.genops(stream):
            if op.name in PUSHED:
                self.stack.append(argument)
            elif op.name == "STOP":
                return self.stack.pop()
            else:
                self.step(op.name, argument)
        raise ValueError("no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            pass
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            n = TUPLES[name]
            if len(stack) < n:
                raise IndexError("stack")
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in GROUPED:
            stack.append(GROUPED[name](self.since_mark()))
        elif name == "FROZENSET":
            stack.append(frozenset(map(key, self.since_mark())))
        elif name == "DICT":
            stack.append(pairs(self.since_mark()))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            self.change(name, argument)

    def since_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def change(self, name: str, argument: Any) -> None:
        """Opcodes that fill containers, or that name and call things."""
        stack = self.stack
        if name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
            expect(stack[-1], dict).update(pairs(items))
        elif name == "ADDITEMS":
            items = self.since_mark()
            expect(stack[-1], set).update(map(key, items))
        elif name == "GLOBAL":
            stack.append(named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = expect(stack.pop(), tuple), stack.pop()
            stack.append(call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], (LazyArray, LazyDtype)):
                stack[-1].build(expect(state, tuple))
            elif not isinstance(stack[-1], (OrderedDict, LazyTensor)):  # whose attributes (_metadata) aren't needed
                raise RefusedError(f"to set attributes of {described(stack[-1])}")
        elif name == "BINPERSID" and self.persistent:
            stack.append(self.persistent(stack.pop()))
        elif name in ("BINPERSID", "PERSID"):
            raise RefusedError(f"persistent id {argument if name == 'PERSID' else described(stack[-1])}")
        elif name == "INST":
            raise RefusedError(argument.replace(" ", ".", 1))
        else:
            raise RefusedError(f"opcode {name}" + (f" {argument}" if argument is not None else ""))


def expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def pairs(items: list) -> dict:
    if len(items) % 2:
        raise IndexError("a key without a value")
    return dict(zip(map(key, items[::2]), items[1::2], strict=True))


def key(value: Any) -> Any:
    """`value` where it may be a key. Nested tuples may not: to hash them can take forever."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, (str, bytes, int, float, complex, type(None), Global)) for part in parts):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


def named(name: str) -> Global:
    if name not in CALLS and name not in VALUES:
        raise RefusedError(name)
    return Global(name)


def described(value: Any) -> str:
    if isinstance(value, Global):
        return value.name
    # containers can be larger on paper than the file that holds them
    return repr(value)[:60] if isinstance(value, (str, bytes, int, float)) else f"a {type(value).__name__}"


def call(function: Any, arguments: tuple) -> Any:
    if not isinstance(function, Global) or function.name not in CALLS:
        raise RefusedError(f"to call {described(function)}")
    return CALLS[function.name](*arguments)


def load_pickle(stream: BinaryIO, path: Any, persistent: Callable[[tuple], Any] | None = None) -> Any:
    """The object of the pickle at `stream`'s position, which is left behind its end.

    Containers are Python's; tensors and arrays are LazyTensor and LazyArray, whose `array()` gives the values.
    Raises ConversionError, naming `path`, for a pickle that wants anything else or that is damaged.
    """
    try:
        return Machine(persistent).run(stream)
    except RefusedError as e:
        raise ConversionError(
            f"{path}: refused: its pickle wants {shown(str(e))}; only tensors, arrays and plain containers are read,"
            " and nothing in it is run. Save the state dict alone"
        ) from None
    except (ValueError, TypeError, LookupError, struct.error, ArithmeticError, MemoryError, EOFError) as e:
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint: {reason(e)}") from None


def reason(error: Exception) -> str:
    """The first line of an error, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0][:120])


def shown(text: str) -> str:
    """Text from a file, as it may stand in a message: short, without line ends or control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
