"""Save and load plain values as pickles; nothing in a file is run."""

import gzip
import io
import os
import pickle
import pickletools
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llava_lens.files import check_file
from llava_lens.schema import OTHER_RELEASE
from llava_lens.text import require

# Limits on file size. Real files stay far below: of LLaVA-1.5-7B a record has 2 MB, a part 25.
MOST_BYTES, MOST_OPCODES = 2**26, 2**21
# Only these opcodes are allowed: they can build plain values and nothing else. There is no memo
# among them, so no value stands in two places.
PLAIN_OPCODES = set(
    "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "  # noqa: SIM905 (a list of these is 30 lines)
    "SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS TUPLE3 STACK_GLOBAL REDUCE".split()
)
NUMBERS = {"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"}


class _Pickler(pickle.Pickler):
    """Writes an array as `numpy.ndarray(shape, dtype, bytes)`, which plain pickle reads too."""

    def reducer_override(self, value):
        if value is np.ndarray:
            return NotImplemented  # by its name
        if type(value) is np.ndarray and value.dtype.str in NUMBERS:
            return np.ndarray, (list(value.shape), value.dtype.str, value.tobytes())
        raise ValueError(
            f"{type(value).__name__} {str(value)[:60]!r} can't be saved: results are numpy arrays "
            "of numbers, plain numbers, texts, lists and dicts"
        )


class _Unpickler(pickle.Unpickler):
    """Knows one name, numpy.ndarray, and calls `_plain_array` in its place."""

    def find_class(self, module, name):
        is_array = (module, name) == ("numpy", "ndarray")
        require(is_array, f"it refers to {module[:50]}.{name[:50]}, which results never do")
        return _plain_array


def _plain_array(shape, dtype, data) -> np.ndarray:
    is_plain = type(dtype) is str and dtype in NUMBERS and type(data) is bytes
    require(is_plain and type(shape) is list, "it has an array of something else than numbers")
    # numpy takes a negative length as "all that are left".
    require(all(type(n) is int and n >= 0 for n in shape), "it has an array of an odd shape")
    return np.frombuffer(data, dtype).reshape(shape)


def _check_opcodes(data: bytes) -> None:
    """Read the opcodes without running them; so no length that they claim is believed."""
    before, uncalled = "", 0
    for number, (opcode, _, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        require(number < MOST_OPCODES, "it has too many parts")
        # Format 2 had a memo.
        require(name != "MEMOIZE", f"its format version is an older one, {OTHER_RELEASE}")
        require(name in PLAIN_OPCODES, f"its pickle has {name}, which results never do")
        # A tuple is allowed only as the arguments of a call: nested ones as a key take forever to
        # hash.
        require((before == "TUPLE3") == (name == "REDUCE"), "it has a tuple")
        uncalled += (name == "STACK_GLOBAL") - (name == "REDUCE")
        before = name
    require(not uncalled, "it has a function")


def _from_bytes(data: bytes, check: Callable | None):
    require(len(data) <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
    _check_opcodes(data)
    value = _Unpickler(io.BytesIO(data)).load()
    if check:
        check(value)
    return value


def save(path, value, check: Callable | None = None, compresslevel: int = 1) -> None:
    """Pickle and gzip `value` under a temporary name, then rename the file to `path`.

    So the file is whole or absent, and gzip's checksum shows damage. Raises ValueError if `load`
    with `check` would refuse the file. Raises OSError if it can't be written, for instance to a
    full disk.
    """
    path, pickled = Path(path), io.BytesIO()
    pickler = _Pickler(pickled, protocol=5)
    pickler.fast = True  # no memo
    pickler.dump(value)
    data = pickled.getvalue()
    try:
        _from_bytes(data, check)
    except Exception as error:  # a check of odd values can raise nearly anything
        raise ValueError(
            f"{str(path)!r} would not be a good file ({_reason(error)}). Too large? Choose "
            "a smaller top_k or fewer prompts."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # never through a link
            file.write(gzip.compress(data, compresslevel, mtime=0))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path, check: Callable | None = None):
    """Load what `save` wrote. Nothing in the file is run.

    Raises FileNotFoundError if there is no file. Raises ValueError, which names the file, if it is
    no plain file, is damaged, holds anything but plain values, or if `check` raises.
    """
    try:
        check_file(path, MOST_BYTES, follow_links=False)
        # Not gzip.open: it reads a header's texts byte by byte, and any number of members.
        inflater = zlib.decompressobj(wbits=31)
        data = inflater.decompress(Path(path).read_bytes(), MOST_BYTES + 1)
        whole = inflater.eof and not inflater.unused_data
        require(whole or len(data) > MOST_BYTES, "it is cut off, or goes on after its end")
        return _from_bytes(data, check)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{str(path)!r} is damaged, of another release, or no result of this project "
            f"({_reason(error)}): get it again or delete it."
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
