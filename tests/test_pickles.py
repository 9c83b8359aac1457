"""Save and load: values come back, and of a file that someone else made or that something damaged
comes one clear error. Nothing in it runs."""

import contextlib
import gzip
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_lens import checks, pickles, schema, store
from tests.hostile import (
    ARRAY,
    CHECKS,
    NDARRAY,
    RECORD,
    RUN,
    Opcodes,
    body,
    call_of,
    pickled,
    places,
    refused,
    string,
    unframed,
    whole,
    with_value,
    within,
    write,
)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_arrays_of_any_shape_and_size_come_back(tmp_path):
    """Of no number, of no axis, in another order, and of the sizes at which pickle begins a new
    frame."""
    odd = [np.zeros(0), np.zeros((0, 3), np.uint8), np.array(2.5), np.arange(6).reshape(2, 3).T]
    sizes = [np.zeros(2**16 + more, np.uint8) for more in range(-90, 10)]
    for value in (odd, sizes, *([array] for array in sizes)):
        pickles.save(tmp_path / "a.pkl", value)
        assert_same(pickles.load(tmp_path / "a.pkl"), value)


@pytest.mark.parametrize(
    "value, check, message",
    [
        ((1, 2), None, "TUPLE2"),
        ({"x": (1, 2, 3)}, None, "it has a tuple"),
        (np.array(["dog"]), None, "something else than numbers"),
        (np.array([None]), None, "something else than numbers"),
        (np.zeros(3, ">f4"), None, "something else than numbers"),
        (np.float32(1), None, "it refers to numpy._core.multiarray.scalar"),
        ({1: "x"}, None, "it has a key that is no text"),
        ({"format_version": 2}, checks.check_run, "its format version is 2"),
        ({"x": np.arange(9), "y": lambda: 0}, None, "lambda.* change what"),  # fails half-way
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, value, check, message):
    pickles.save(tmp_path / "a.pkl", {"x": np.arange(3)})
    with pytest.raises(ValueError, match=f"a.pkl' would not be a good file .*{message}"):
        pickles.save(tmp_path / "a.pkl", value, check)
    assert pickles.load(tmp_path / "a.pkl")["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.pkl"]


def test_only_a_plain_file_of_a_bounded_size_is_opened(tmp_path):
    """Opening a pipe would block; reading gigabytes takes all memory."""
    path = tmp_path / "file.pkl"
    os.mkfifo(path)
    refused(path, why="no file")
    path.unlink()
    path.touch()
    os.truncate(path, 3 * 2**30)  # takes no room
    with within():
        refused(path, why="more than 128 MiB")


PICKLED = gzip.compress(pickle.dumps(1))


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 60_000_000,  # the name of a file, without an end
        gzip.compress(b"") * 3_000_000,
        PICKLED + bytes(10_000_000),
        PICKLED + gzip.compress(b"")[:3] + b"\x08" + b"x" * 60_000_000,
        gzip.compress(bytes(2**28)),
        gzip.compress(pickle.dumps([1] * 9))[:-9],
        PICKLED[:-8] + bytes(8),
    ],
    ids=["name", "members", "zeros", "second name", "bomb", "cut", "checksum"],
)
def test_a_gzip_is_one_plain_member(tmp_path, content):
    (tmp_path / "file.pkl").write_bytes(content)
    with within(3):
        refused(tmp_path / "file.pkl")


def test_a_format_with_a_memo_is_refused_with_what_to_do(tmp_path):
    """Format 2 was a plain pickle of protocol 5."""
    old = RUN | {"format_version": 2}
    (tmp_path / "run.pkl").write_bytes(gzip.compress(pickle.dumps(old, protocol=5)))
    with pytest.raises(ValueError) as error:
        store.Results.find(tmp_path).run  # noqa: B018 (a property that raises)
    said = str(error.value)
    assert "run.pkl' is damaged, of another release" in said and "\n" not in said
    assert f"format version is an older one, this release reads {schema.FORMAT_VERSION}" in said
    assert "read the images again with Make_Analyse.ipynb, or take the release that made" in said
    assert said.count(". ") == 0 and said.endswith(
        "get it again, or read the images into another folder."
    )


# ---- Code ---------------------------------------------------------------------------------------


class Attack:
    """Pickled, it is the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def attacks(mark):
    """Real attacks: each, loaded by pickle, makes the folder `mark`."""
    command = f"__import__('os').mkdir({str(mark)!r})"
    make = Attack(os.mkdir, str(mark))
    ndarray, dtype = np._core.multiarray._reconstruct, np.dtype("O")
    state = 1, (1,), dtype, False, [make]
    return {
        "os.system": Attack(os.system, f"mkdir {mark}"),
        "eval": Attack(eval, command),
        "nested": {"a": [(1, {"b": [np.arange(3), make]})]},
        "as a key": {("a", 1): make},
        "object array": np.array([make], object),
        "state of an array": Attack(ndarray, np.ndarray, (0,), b"b", state=state),
        "argument of a dtype": Attack(np.dtype, Attack(eval, command)),
        "shape of an array": Attack(np.ndarray, make, "<f4", bytes(4)),
        "dtype of an array": Attack(np.ndarray, [1], make, bytes(4)),
        "bytes of an array": Attack(np.ndarray, [1], "<f4", make),
        "state of a new array": Attack(np.ndarray, [1], "<f4", bytes(4), state=state),
    }


@pytest.mark.parametrize("name", list(attacks("mark")))
def test_an_attack_runs_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    for protocol in range(6):
        try:
            attack = pickle.dumps(attacks(mark)[name], protocol=protocol)
        except (pickle.PicklingError, TypeError):  # not to be said in that protocol
            continue
        refused(write(tmp_path, attack))
        assert not mark.exists()
    with contextlib.suppress(Exception):
        pickle.loads(attack)  # the attack is a real one
    assert mark.exists()


def array_of(shape, dtype, data) -> bytes:
    """The call that stands for an array; each argument is a plain value, or opcodes for one."""
    return whole(call_of("numpy", "ndarray", shape, dtype, data))


def test_the_arrays_made_by_hand_below_are_what_numpy_loads(tmp_path):
    assert pickle.loads(whole(ARRAY)).tolist() == [0, 0]
    assert pickles.load(write(tmp_path, whole(ARRAY))).tolist() == [0, 0]
    by_hand = array_of([2], Opcodes(string("<f4")), bytes(8))
    assert unframed(pickled(np.zeros(2, "<f4"))) == by_hand
    plain = pickle.loads(pickled(RECORD))
    np.testing.assert_array_equal(plain["patches"]["top_probs"], RECORD["patches"]["top_probs"])


POINTER = struct.pack("<Q", 0xDEADBEEF)
# Bytes taken for pointers, alone and as a part of what is there; no plain number; no type.
WRONG_TYPES = [("|O", POINTER), ("O,f4", POINTER + bytes(4)), ([["x", "O"]], POINTER)]
WRONG_TYPES += [("<U1", b"\xff\xff\xff\x7f"), (b"<f4", bytes(4)), (">f4", bytes(4))]
WRONG_TYPES += [(dtype, bytes(8)) for dtype in ("|V8", "(1000000,)f8", "<c8", None, NDARRAY, ARRAY)]
# Of 8 bytes in "<f4" but for those that say how many they have.
WRONG_SHAPES = [[10**12], [3], [1], [], [2**63], [-1], [-2, -1], [2.0], ["2"], [[2]], (1, 1, 2), 2]
WRONG_SHAPES += [{"0": 2}, call_of("numpy", "ndarray", [1], "<i8", struct.pack("<q", 2))]
WRONG_SIZES = [([2], bytes(7)), ([2**62, 4], b""), ([1] * 65, bytes(4)), ([1] * 10**6, bytes(4))]
# Something else than bytes, of which one numpy array would be a view of the other.
WRONG_DATA = ["12345678", [0] * 8, None, 8, call_of("numpy", "ndarray", [8], "|u1", bytes(8))]
WRONG_DATA += [Opcodes(pickle.BYTEARRAY8 + struct.pack("<Q", 8) + bytes(8))]
WRONG_DATA += [Opcodes(pickle.NEXT_BUFFER)]


@pytest.mark.parametrize(
    "shape, dtype, data",
    [([1], *wrong) for wrong in WRONG_TYPES]
    + [(shape, "<f4", bytes(8)) for shape in WRONG_SHAPES]
    + [(shape, "<f4", data) for shape, data in WRONG_SIZES]
    + [([2], "<f4", data) for data in WRONG_DATA],
)
def test_a_call_that_lies_is_refused(tmp_path, shape, dtype, data):
    with within():
        refused(write(tmp_path, array_of(shape, dtype, data)))


# How others are loaded would change.
STATE = pickle.EMPTY_DICT + string("__setstate__") + pickle.NONE + pickle.SETITEM
ARGUMENTS = [[2], "<f4", bytes(8)]
THREE = b"".join(map(body, ARGUMENTS)) + pickle.TUPLE3
SIX = b"".join(map(body, [*ARGUMENTS, 0, [4], "F"]))
OTHER_NAMES = [("numpy", "memmap"), ("numpy", "ndarray.tofile"), ("NUMPY", "ndarray")]
OTHER_NAMES += [("numpy._core.multiarray", "_reconstruct"), ("builtins", "eval")]


@pytest.mark.parametrize(
    "opcodes",
    [
        NDARRAY,  # the function itself, not called
        NDARRAY + body([1]) + body("<f4") + pickle.TUPLE2 + pickle.REDUCE,
        NDARRAY + pickle.MARK + SIX + pickle.TUPLE + pickle.REDUCE,
        NDARRAY + body([]) + pickle.REDUCE,
        THREE,  # arguments that are not called
        NDARRAY + THREE,
        ARRAY + pickle.REDUCE,
        body("numpy") + THREE + pickle.REDUCE,
        NDARRAY + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        body({}) + NDARRAY + body(1) + pickle.SETITEM,  # a function as a key
        body({}) + body("x") + NDARRAY + pickle.SETITEM,  # and as a value
        NDARRAY + body("x") + body(1) + pickle.SETITEM,
        NDARRAY + body("x") + pickle.APPEND,
        ARRAY + body(0) + body(1.0) + pickle.SETITEM,
        ARRAY + body(1.0) + pickle.APPEND,
        pickle.EMPTY_TUPLE,  # as a key it could take 2**200 steps
        body({}) + body({}) + pickle.BUILD,
        body({}) + ARRAY + body(1) + pickle.SETITEM,
        *(call_of(*name, *ARGUMENTS) for name in OTHER_NAMES),
        *(called + STATE + pickle.BUILD for called in (NDARRAY, ARRAY)),
    ],
)
def test_no_other_call_is_made(tmp_path, opcodes):
    refused(write(tmp_path, whole(opcodes)))


# ---- Time and memory ----------------------------------------------------------------------------

DEEP = pickle.EMPTY_LIST * 11_000 + pickle.APPEND * 10_999  # beyond any limit of recursion
BOMBS = {
    "length of bytes": (pickle.BINBYTES8 + struct.pack("<Q", 2**40) + b"x",),
    "length of bytes in four": (pickle.BINBYTES + struct.pack("<I", 2**32 - 1) + b"x",),
    "length of a bytearray": (pickle.BYTEARRAY8 + struct.pack("<Q", 2**40) + b"x",),
    "length of a text": (pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"x",),
    "length of a frame": (pickle.FRAME + struct.pack("<Q", 2**60) + b"N",),
    "place in the memo": (pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1),),
    "long number": (pickle.LONG4 + struct.pack("<i", 2**31 - 1),),
    "number in letters": (pickle.INT, b"9" * 10**6, b"\n"),
    "many lists": (pickle.EMPTY_LIST * 50_000_000,),
    "many bytes": (pickle.BINBYTES8, struct.pack("<Q", 2**29), bytes(2**29)),
    "deep lists": (pickle.EMPTY_LIST * 10**6, pickle.APPEND * (10**6 - 1)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_neither_time_nor_memory(tmp_path, name):
    path = write(tmp_path, whole(*BOMBS[name]))
    with within():
        refused(path, CHECKS["record"][1])


def test_a_bomb_as_a_value_takes_no_time(tmp_path):
    """In place of every value of a real file, so that it meets whatever is done with that."""
    mark = "the place of the bomb"
    for value, check in CHECKS.values():
        for where in places(value):
            good = pickled(with_value(value, where, mark))
            assert good.count(string(mark)) == 1
            # Without frames, whose lengths would be wrong now.
            path = write(tmp_path, unframed(good).replace(string(mark), DEEP))
            with within():
                refused(path, check)


@pytest.mark.parametrize(
    "value, message",
    [(np.zeros(2**27, np.uint8), "it has more than 128 MiB"), ([0] * 2**19, "too many parts")],
)
def test_what_is_too_large_is_not_saved(tmp_path, value, message):
    with within(), pytest.raises(ValueError, match=f"{message}.* choose a smaller top_k or fewer"):
        pickles.save(tmp_path / "big.pkl", value)
    assert not any(tmp_path.iterdir())


def test_keys_of_one_hash_take_no_time(tmp_path):
    """A dict of them takes quadratic time; texts' hashes can't be foreseen."""
    items = b"".join(body(i * (2**61 - 1)) + pickle.NONE for i in range(1, 100_000))
    for many in (pickle.MARK + items + pickle.SETITEMS, body(2**61) + pickle.NONE + pickle.SETITEM):
        with within(3):
            path = write(tmp_path, whole(pickle.EMPTY_DICT, many))
            refused(path, why="it has a key that is no text")


# ---- Whatever comes -----------------------------------------------------------------------------

PICKLES = {what: pickled(value) for what, (value, _) in CHECKS.items()}
FILES = {what: gzip.compress(pickled, 1, mtime=0) for what, pickled in PICKLES.items()}
whats = st.sampled_from(list(CHECKS))
# Where in a file, how many bytes go there (often all that follow), and which come.
lengths = st.integers(0, 9) | st.just(2**30)
edit = st.tuples(st.floats(0, 1, exclude_max=True), lengths, st.binary(max_size=9))
edits = st.lists(edit, min_size=1, max_size=4)
names = [name for name in pickle.__all__ if name.isupper()]
constants = [getattr(pickle, name) for name in names]
opcodes = st.sampled_from([value for value in constants if isinstance(value, bytes)])
# Calls of numpy.ndarray, whole and in parts, and what a call could be made of.
parts_of_arrays = st.sampled_from(
    [string("numpy"), string("ndarray"), NDARRAY, string("<f4"), string("|u1"), string("|O")]
    + [pickle.TUPLE3 + pickle.REDUCE, ARRAY]
    + [body(value) for value in ([2], [8], [], [-1], bytes(8), bytes(0), 2, "x", {}, [{}])]
)
arrays = st.sampled_from([np.arange(3), np.zeros((2, 2)), np.array([np.nan])])
texts = st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=5)
plain = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def edited(data: bytes, edits) -> bytes:
    for place, length, new in edits:
        at = int(place * len(data))
        data = data[:at] + new + data[at + length :]
    return data


@pytest.fixture(scope="module")
def loads(tmp_path_factory):
    """A function that says whether a file's content is loaded; what is refused must be named."""
    path = tmp_path_factory.mktemp("fuzz") / "file.pkl"

    def loads(content: bytes, check):
        path.write_bytes(content)
        try:
            pickles.load(path, check)
        except ValueError as error:
            assert "file.pkl" in str(error) and "get it again, or read" in str(error)
            assert len(str(error)) < 1000
            return False
        return True

    loads.folder = path.parent
    with within(600):
        yield loads


HOW = {"deadline": None, "database": None, "derandomize": True}
HOW["suppress_health_check"] = list(HealthCheck)
opcode = opcodes | st.binary(max_size=4) | parts_of_arrays


@pytest.mark.timeout(300)
@settings(max_examples=4000, **HOW)
@given(what=whats, edits=edits, at=st.sampled_from("FPO"), body=st.lists(opcode, max_size=30))
def test_fuzz(loads, what, edits, at, body):
    """Of the file, of the pickle within, and of its opcodes."""
    contents = {
        "F": lambda: edited(FILES[what], edits),
        "P": lambda: gzip.compress(edited(PICKLES[what], edits), 0),
        "O": lambda: gzip.compress(whole(*body), 0),
    }
    loads(contents[at](), CHECKS[what][1])


@settings(max_examples=1200, **HOW)
@given(what=whats, place=st.integers(0, 10**6), new=plain)
def test_fuzz_the_values(loads, what, place, new):
    """What is saved is loaded, and nothing else."""
    value, check = CHECKS[what]
    all_places, saved = places(value), loads.folder / "saved.pkl"
    wrong = with_value(value, all_places[place % len(all_places)], new)
    is_loaded = loads(gzip.compress(pickled(wrong), 0), check)
    try:
        pickles.save(saved, wrong, check)
    except ValueError as error:
        assert not is_loaded and "saved.pkl" in str(error)
    else:
        assert is_loaded
        pickles.load(saved, check)
