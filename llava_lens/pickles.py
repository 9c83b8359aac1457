"""Save and load plain values as pickles; nothing in a file is run."""

import gzip
import io
import pickle
import pickletools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llava_lens.files import check_file, explained, write_whole
from llava_lens.schema import OTHER_RELEASE
from llava_lens.text import require

# Limits on file size. Of LLaVA-1.5-7B a record has 2 MB and a part 25; of a 7B with Qwen's 152,000
# tokens a part has 120 MB.
MOST_BYTES, MOST_OPCODES = 2**27, 2**19
NUMBERS = {"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"}
VALUES |= {"SHORT_BINBYTES", "BINBYTES"}
NEW = {"NONE": type(None), "NEWFALSE": bool, "NEWTRUE": lambda: True}  # called without arguments
NEW |= {"EMPTY_LIST": list, "EMPTY_DICT": dict}
PUT = {"APPEND": 1, "SETITEM": 2}  # values that go into the list or dict below; APPENDS: to a mark
FRAME = {"PROTO", "FRAME", "REDUCE", "STOP"}
NDARRAY = object()


def _build(data: bytes):
    """The value of a pickle, put together here from its opcodes: pickle itself is never asked.

    Only opcodes of plain values are known, and the call `numpy.ndarray(shape, dtype, bytes)`. There
    is no memo, so no value stands in two places. Every key is a text: others can be chosen to have
    one hash. Raises nearly anything for a damaged pickle.
    """
    stack, marks, before, n_open = [], [], "", 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        require(number < MOST_OPCODES, "it has too many parts")
        require((before == "TUPLE3") == (name == "REDUCE"), "it has a tuple")
        if name in VALUES:
            stack.append(argument)
        elif name in NEW:
            stack.append(NEW[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name.rstrip("S") in PUT:
            start = marks.pop() if name.endswith("S") else len(stack) - PUT[name]
            items = stack[start:]
            del stack[start:]
            _put(stack[-1], items, name)
        elif name == "STACK_GLOBAL":
            called = ".".join(stack[-2:])[:100]
            require(called == "numpy.ndarray", f"it refers to {called}, which results never do")
            stack[-2:], n_open = [NDARRAY], n_open + 1
        elif name == "TUPLE3":
            require(len(stack) > 3 and stack[-4] is NDARRAY, "it has a tuple")
            stack[-4:], n_open = [_array(*stack[-3:])], n_open - 1
        else:  # format 2 had a memo
            require(name != "MEMOIZE", f"its format version is an older one, {OTHER_RELEASE}")
            require(name in FRAME, f"its pickle has {name}, which results never do")
        before = name
    require(len(stack) == 1 and not marks and not n_open, "it is not one plain value")
    return stack[0]


def _put(holder, items: list, name: str) -> None:
    if name.startswith("APPEND"):
        require(type(holder) is list, "it appends to something else than a list")
        holder.extend(items)
    else:
        texts = all(type(key) is str for key in items[::2])
        require(type(holder) is dict and texts, "it has a key that is no text")
        holder.update(zip(items[::2], items[1::2], strict=True))


def _as_call(array: np.ndarray) -> tuple:
    return np.ndarray, (list(array.shape), array.dtype.str, array.tobytes())


def _array(shape, dtype, data) -> np.ndarray:
    # numpy takes a negative length as "all that are left".
    is_plain = type(shape) is list and all(n >= 0 for n in shape) and dtype in NUMBERS
    require(is_plain and type(data) is bytes, "it has an array of something else than numbers")
    return np.frombuffer(data, dtype).reshape(shape)


def _read(packed: bytes, check: Callable | None):
    # Not gzip.open: it reads a header's texts byte by byte, and any number of members.
    inflater = zlib.decompressobj(wbits=31)
    data = inflater.decompress(packed, MOST_BYTES + 1)
    require(len(data) <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
    require(inflater.eof and not inflater.unused_data, "it is cut off, or goes on after its end")
    value = _build(data)
    if check:
        check(value)
    return value


@contextmanager
def _named(path, what: str, remedy: str) -> Iterator[None]:
    """Make any error but OSError a ValueError: a damaged pickle or an odd value raises anything."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{str(path)!r} {what} ({reason}): {remedy}.") from error


def save(path, value, check: Callable | None = None, compresslevel: int = 1) -> None:
    """Pickle and gzip `value`, and write it whole; gzip's checksum shows damage. Raises ValueError
    if `load` with `check` would refuse the file, OSError as `write_whole`."""
    pickled = io.BytesIO()
    pickler = pickle.Pickler(pickled, protocol=5)
    pickler.fast = True  # no memo
    pickler.dispatch_table = {np.ndarray: _as_call}
    smaller = "change what does not fit; too large, choose a smaller top_k or fewer prompts"
    with _named(path, "would not be a good file", smaller):
        pickler.dump(value)
        packed = gzip.compress(pickled.getbuffer(), compresslevel, mtime=0)
        _read(packed, check)
    write_whole(path, packed)


def load(path, check: Callable | None = None):
    """Load what `save` wrote. Nothing in the file is run. Raises OSError, which names the file, if
    it can't be read; ValueError, which names it, if it is no plain file, is damaged, holds anything
    but plain values, or if `check` raises."""
    what = "is damaged, of another release, or no result of this project"
    with _named(path, what, "get it again, or read the images into another folder"):
        with explained(path, "change its permissions, or get it again"):
            check_file(path, MOST_BYTES, follow_links=False)
            packed = Path(path).read_bytes()
        return _read(packed, check)
