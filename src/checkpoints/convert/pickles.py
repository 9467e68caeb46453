"""Pickles, read without running anything: tensors, arrays and plain containers; of the rest, the names.

A pickle is a program for a small stack machine (the opcodes are documented in `pickletools`), and Python's own machine
calls whatever the program names. This one knows the calls that checkpoints need, each with its own few lines in CALLS,
and calls nothing else; what it makes are records of its own, that become NumPy arrays when they are asked to. An object
of any other class is a Foreign, its name alone. Steps and memory are bounded, by the size of the pickle.
"""

from __future__ import annotations

import builtins
import math
import pickletools
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from src.runtime.errors import UserError
from src.runtime.newer import zip_equal

__all__ = [
    "ConversionError",
    "Foreign",
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
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    # of quantised tensors, which aren't read themselves
    "QInt8Storage": "i1",
    "QUInt8Storage": "u1",
    "QInt32Storage": "i4",
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
    "complex64": "c8",
    "complex128": "c16",
}
SMALL = 1 << 20  # elements that a tensor may have whatever its storage holds (expanded scalars and vectors)
STEPS = 3_000_000  # of a pickle; published checkpoints have some ten thousand
MEMORY, TIMES = 1 << 27, 4  # bytes that calls may make, beside TIMES the pickle's size: roughly, by Python's own sizes
OBJECT, ENTRY = 256, 128  # bytes of an object; of an entry of a container
KEY_PARTS, KEY_BITS = 16, 1024  # elements of a tuple that is a key, nested ones counted; bits of a number that is one


class ConversionError(UserError):
    """A foreign checkpoint that can't be read or converted; the message names the file and the reason."""


class RefusedError(Exception):
    """What a pickle wanted, and mustn't have; told with the file's name by `load_pickle`'s caller."""


@dataclass(frozen=True)
class Global:
    """An importable thing that the pickle names; never imported."""

    name: str


class Foreign:
    """What stands for an object of a class that isn't known: its name. Nothing was imported, made or run for it."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


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
        return self.code_of(self.dtype)

    def code_of(self, dtype: str) -> np.dtype:
        """NumPy's type of elements of `dtype` in this storage's byte order."""
        code = np.dtype("u2" if dtype == "bfloat16" else dtype)
        return code if self.little_endian else code.newbyteorder(">")

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
    """A strided view of a storage. dtype: what torch.float32 and the like are named, where it isn't the storage's own.

    strange: what else the tensor says of itself and isn't imitated (a negative bit), "" for nothing.
    """

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: Any = None
    strange: str = ""

    def array(self) -> np.ndarray:
        """The values, a view of the storage where its type allows.

        Raises ValueError if they don't lie in it, RefusedError for a tensor that isn't stored plainly.
        """
        if self.strange:
            raise RefusedError(f"a tensor with {self.strange}")
        if not (natural(self.shape) and natural(self.stride) and natural((self.offset,))):
            raise ValueError("a tensor's shape, strides or offset aren't natural numbers")
        if len(self.shape) != len(self.stride):
            raise ValueError("a tensor's strides don't fit its shape")
        if isinstance(self.storage, Foreign):
            raise RefusedError(f"a tensor in a {self.storage.name}")
        if type(self.storage) is not Storage:
            raise ValueError("a tensor without a storage")
        flat, dtype = self.storage.array(), self.storage.dtype
        if self.dtype is not None:
            dtype = torch_dtype(self.dtype)
            flat = flat.view(self.storage.code_of(dtype))
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip_equal(self.shape, self.stride))
        if count and (last >= len(flat) or count > max(len(flat), SMALL)):
            raise ValueError(f"a tensor of shape {tuple(self.shape)} in a storage of {len(flat)} elements")
        if not count:
            return np.zeros(self.shape, flat.dtype)
        strides = [s * flat.itemsize for s in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        return widened(view) if dtype == "bfloat16" else view


class LazyArray:
    """A NumPy array, whose contents follow in the pickle."""

    def __init__(self):
        self.value: np.ndarray | None = None
        self.refused = ""

    def build(self, state: Any) -> None:
        """State of numpy.ndarray: (version, shape, dtype, is_fortran, bytes)."""
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> None:
        """Takes the contents. An array of another kind than numbers and texts is refused when it is asked for."""
        if not isinstance(dtype, LazyDtype):
            raise ValueError("an array without a type")
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        try:
            code = dtype.code()
            if not isinstance(raw, (bytes, bytearray)):
                raise RefusedError("numpy arrays of objects")
        except RefusedError as e:
            self.refused = str(e)
            return
        if not natural(shape) or math.prod(shape) * code.itemsize != len(raw):
            raise ValueError("an array's shape doesn't fit its bytes")
        self.value = from_bytes(raw, code, math.prod(shape)).reshape(shape, order=order)

    def array(self) -> np.ndarray:
        """The values. Raises RefusedError for an array of objects, ValueError for one without contents."""
        if self.refused:
            raise RefusedError(self.refused)
        if self.value is None:
            raise ValueError("an array without contents")
        return self.value


class LazyDtype:
    """numpy.dtype, of numbers and texts."""

    def __init__(self, name: Any, *_: Any):
        self.name = name
        self.order: Literal["<", ">", "="] = "="

    def build(self, state: Any) -> None:
        """State of numpy.dtype: (version, byte order, subdtype, names, fields, ...)."""
        if any(part is not None for part in state[2:5]):
            self.name = None
        self.order = "<" if state[1] == "<" else ">" if state[1] == ">" else "="

    def code(self) -> np.dtype:
        """NumPy's type. Raises RefusedError for another than a number's or a text's."""
        if not isinstance(self.name, str) or not re.fullmatch(r"[<>=|]?([fiubc]\d{1,2}|[SU]\d{1,4})", self.name):
            raise RefusedError(f"numpy arrays of objects (type {described(self.name)})")
        return np.dtype(self.name).newbyteorder(self.order)


def natural(numbers: Any) -> bool:
    """Whether these are a few whole numbers from 0."""
    if not isinstance(numbers, (tuple, list)) or len(numbers) > 32:
        return False
    return all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)


def from_bytes(raw: bytes | bytearray, code: np.dtype, count: int) -> np.ndarray:
    """`count` elements; np.frombuffer refuses to read none."""
    return np.frombuffer(raw, code, count) if count else np.zeros(0, code)


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------------------------------------------------
# the calls that there are


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = None, hooks: Any = None, *rest: Any):
    return LazyTensor(storage, offset, shape, stride, None, _strange(*rest))


def _typed_tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any):
    return LazyTensor(storage, offset, shape, stride, dtype, _strange(*rest))


def _strange(metadata: Any = None, *rest: Any) -> str:
    """What a tensor's metadata ({"neg": True, "conj": True}) say that isn't so of every tensor."""
    if rest or not isinstance(metadata, (dict, type(None))):
        return "metadata that aren't known"
    said = [described(k) for k, v in (metadata or {}).items() if v is not False and v is not None]
    return f"metadata that aren't imitated ({', '.join(said[:3])})" if said else ""


def _subclass(function: Any, kind: Any, arguments: Any, *state: Any) -> Any:
    """A tensor of a subclass, or with attributes: what it is a view of."""
    if not isinstance(function, Global) or function.name not in TENSORS:
        return Foreign(described(kind))
    return CALLS[function.name](*expect(arguments, tuple))


def _scalar(dtype: Any, raw: Any) -> Any:
    array = LazyArray()
    array.fill(raw, dtype, (), "C")
    return Foreign("numpy.generic") if array.refused else array.array()[()]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str = "C") -> LazyArray:
    array = LazyArray()
    array.fill(raw, dtype, shape, "F" if order == "F" else "C")
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"_codecs.encode to {described(encoding)}")
    return expect(text, str).encode("latin-1")


def _no_bytes() -> bytes:
    """`bytes()`, as protocol 2 writes b""."""
    return b""


def _container(kind: Any) -> Callable:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple, set, frozenset, Mapping)):
            raise ValueError(f"a {kind.__name__} of something else")
        if issubclass(kind, dict):
            return kind(items if isinstance(items, Mapping) else [(key(k), v) for k, v in items])
        return kind(items) if kind in (list, tuple) else kind(map(key, items))

    return make


TENSORS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
}
CALLS: dict[str, Callable] = TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": _container(tuple),
    "collections.OrderedDict": _container(OrderedDict),
    "collections.Counter": _container(dict),
    "collections.deque": lambda items=(), *_: _container(list)(items),
    "mmengine.config.config.ConfigDict": _container(dict),
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
# whose first argument is the class of what they make
MAKERS = {"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "copy_reg._reconstructor"}
# Nothing that a pickle names is ever run. But one that names these is no checkpoint, and that is told
PROGRAMS = set(
    "os posix nt sys subprocess shutil socket importlib imp runpy pty pdb bdb code codeop commands ctypes _ctypes cffi"
    " pickle cPickle _pickle marshal shelve webbrowser timeit cProfile urllib urllib2 requests ftplib smtplib telnetlib"
    " atexit pkgutil builtins __builtin__ numpy.load numpy.fromfile numpy.testing torch.load torch.hub".split()
)
# of the builtins: types that make values
BUILTINS = set("object complex range xrange slice type int long float str unicode bool bytearray getattr".split())
BUILTINS |= {n for n in dir(builtins) if n.endswith(("Error", "Exception", "Warning"))}


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


OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


class Machine:
    """The stack machine. `persistent` turns the tuple of a persistent id into an object; size: of the pickle, bytes."""

    def __init__(self, persistent: Callable[[tuple], Any] | None = None, size: int = 0):
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MEMORY + TIMES * size

    def run(self, stream: BinaryIO) -> Any:
        """The object at the stream's position. Raises RefusedError, and what damaged pickles lead to."""
        for _ in range(STEPS):
            op = OPCODES.get(code := stream.read(1))
            if op is None:
                raise ValueError(f"no opcode of a pickle: {code!r}" if code else "no end")
            argument = op.arg.reader(stream) if op.arg else None
            if op.name in PUSHED:
                self.stack.append(argument)
            elif op.name == "STOP":
                return self.stack.pop()
            else:
                self.step(op.name, argument)
        raise RefusedError(f"more than {STEPS} steps")

    def charge(self, size: int) -> None:
        """Counts `size` bytes that are made."""
        self.left -= size
        if self.left < 0:
            raise RefusedError("more memory than a checkpoint of its size needs")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            pass
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.charge(OBJECT)
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
            if not isinstance(stack[-1], Foreign):
                expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
            if not isinstance(stack[-1], Foreign):
                expect(stack[-1], dict).update(pairs(items))
        elif name == "ADDITEMS":
            items = self.since_mark()
            if not isinstance(stack[-1], Foreign):
                expect(stack[-1], set).update(map(key, items))
        elif name == "GLOBAL":
            stack.append(named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = expect(stack.pop(), str), expect(stack.pop(), str)
            stack.append(named(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = expect(stack.pop(), tuple), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "NEWOBJ_EX":
            expect(stack.pop(), dict)
            arguments, function = expect(stack.pop(), tuple), stack.pop()
            stack.append(Foreign(called(function)))
        elif name == "INST":
            arguments = self.since_mark()
            stack.append(self.call(named(argument.replace(" ", ".", 1)), tuple(arguments)))
        elif name == "OBJ":
            function, *arguments = self.since_mark()
            stack.append(self.call(function, tuple(arguments)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], (LazyArray, LazyDtype)):
                self.charge(sum(map(cost, expect(state, tuple))))
                stack[-1].build(state)
            elif isinstance(stack[-1], Global):
                raise RefusedError(f"to set attributes of {stack[-1].name}")
            # else attributes of what is read without them (OrderedDict's _metadata), or of a Foreign
        elif name == "BINPERSID" and self.persistent:
            self.charge(2 * OBJECT)
            stack.append(self.persistent(stack.pop()))
        elif name in ("BINPERSID", "PERSID"):
            raise RefusedError(f"persistent id {argument if name == 'PERSID' else described(stack[-1])}")
        else:
            raise RefusedError(f"opcode {name}" + (f" {described(argument)}" if argument is not None else ""))

    def call(self, function: Any, arguments: tuple) -> Any:
        """What a call gives: of those that are known its own object, of others a Foreign."""
        self.charge(OBJECT + sum(map(cost, arguments)))
        name = called(function)
        if name in CALLS and isinstance(function, Global):
            return CALLS[name](*arguments)
        first = arguments[0] if arguments else None
        if name in MAKERS and isinstance(first, (Global, Foreign)):
            return Foreign(first.name)
        if name in ("builtins.getattr", "__builtin__.getattr") and not isinstance(first, (Global, Foreign)):
            # members of an enumeration and methods of an object are pickled so; other things aren't
            raise RefusedError(f"to call {name}")
        return Foreign(name)


def cost(value: Any) -> int:
    """Bytes that a copy of `value` takes, not counting what it holds; 0 for a number."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    return ENTRY * len(value) if isinstance(value, (list, tuple, set, frozenset, Mapping)) else 0


HASHED = (str, bytes, int, float, complex, type(None), Global, Foreign, np.number, np.bool_)
PLAIN = (str, bytes, int, float)
# what a damaged pickle leads to: the calls get arguments of any type
FAULTS = (ValueError, TypeError, LookupError, AttributeError, struct.error, ArithmeticError, MemoryError, EOFError)


def expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def pairs(items: list) -> dict:
    if len(items) % 2:
        raise IndexError("a key without a value")
    return dict(zip_equal(map(key, items[::2]), items[1::2]))


def key(value: Any) -> Any:
    """`value` where it may be a key: not where to hash it takes long, as of tuples in tuples in tuples."""
    parts, count = [value], 0
    while parts:
        part, count = parts.pop(), count + 1
        if isinstance(part, tuple) and count + len(part) <= KEY_PARTS:
            parts.extend(part)
        elif count > KEY_PARTS or not isinstance(part, HASHED) or (type(part) is int and part.bit_length() > KEY_BITS):
            raise TypeError(f"a {type(value).__name__} as a key")
    return value


def named(name: str) -> Global:
    """The thing of that name, which is never imported. Raises RefusedError for one that only programs need."""
    if name not in CALLS:
        module, attribute = name.split(".")[0], name.partition(".")[2]
        within = {".".join(name.split(".")[:n]) for n in (1, 2)}
        if module in ("builtins", "__builtin__") and attribute in BUILTINS:
            return Global(name)
        if within & PROGRAMS:
            raise RefusedError(name)
    return Global(name)


def called(function: Any) -> str:
    """The name of what is called. Raises RefusedError for what isn't a class or a function."""
    if not isinstance(function, (Global, Foreign)):
        raise RefusedError(f"to call {described(function)}")
    return function.name


def described(value: Any) -> str:
    """A value in a few words, whatever its size on paper."""
    if isinstance(value, (Global, Foreign)):
        return shown(value.name)
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    # containers can be larger on paper than the file that holds them
    return (
        repr(value[:60] if isinstance(value, (str, bytes)) else value)
        if isinstance(value, PLAIN)
        else (f"a {type(value).__name__}")
    )


def load_pickle(
    stream: BinaryIO, path: Any, persistent: Callable[[tuple], Any] | None = None, size: int | None = None
) -> Any:
    """The object of the pickle at `stream`'s position, which is left behind its end.

    Containers are Python's; tensors and arrays are LazyTensor and LazyArray, whose `array()` gives the values; objects
    of other classes are Foreign.  size: bytes of the pickle, by default of the file `path`. Raises ConversionError,
    naming `path`, for a pickle that is damaged, that is a program, or that is larger on paper than its size allows.
    """
    try:
        return Machine(persistent, path.stat().st_size if size is None else size).run(stream)
    except RefusedError as e:
        raise ConversionError(
            f"{path}: refused: its pickle wants {shown(str(e))}; only tensors, arrays and plain containers are read,"
            " and nothing in it is run. Save the state dict alone"
        ) from None
    except FAULTS as e:
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint: {reason(e)}") from None


def reason(error: Exception) -> str:
    """The first line of an error, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[0].partition("; use sys.")[0][:120])


def shown(text: str) -> str:
    """Text from a file, as it may stand in a message: short, without line ends or control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
