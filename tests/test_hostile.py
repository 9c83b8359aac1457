"""Files that someone else made, or that something damaged: a clean load or one clear error, and nothing runs."""

import copyreg
import gzip
import io
import os
import pickle
import pickletools
import pydoc
import re
import signal
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lens_utils as lu

D_VOCAB, GRID, TOP_K, N_LAYERS = 20, 2, 2, 3


def make_readings(n_pos):
    rng = np.random.default_rng(n_pos)
    probs = -np.sort(-rng.dirichlet(np.ones(D_VOCAB), size=(N_LAYERS, n_pos)).astype(np.float32))
    jsd = rng.random((N_LAYERS, n_pos)).astype(np.float32)
    jsd_prev = jsd.copy()
    jsd_prev[0] = np.nan
    return {
        "top_ids": rng.integers(D_VOCAB, size=(N_LAYERS, n_pos, TOP_K)).astype(np.uint8),
        "top_probs": probs[..., :TOP_K].copy(),
        "jsd_prev": jsd_prev,
        "jsd_final": jsd,
        "entropy": jsd * 4,
        "target_prob": jsd.copy(),
        "target_rank": rng.integers(1, D_VOCAB, size=(N_LAYERS, n_pos)).astype(np.uint8),
    }


def make_results():
    """The smallest run there can be: `(run, record, part)`."""
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    run = {
        "format_version": lu.FORMAT_VERSION,
        "model": "m",
        "revision": "r",
        "dtype": "float32",
        "packages": {},
        "last_layer_jsd": 0.0,
        "grid": GRID,
        "top_k": TOP_K,
        "prompts": {},
        "layers": ["emb", "1", "2"],
        "segments": lu.SEGMENTS,
        "tokens": [f"▁{i}" for i in range(D_VOCAB)],
    }
    record = {
        "name": "a.jpg",
        "objects": [
            {
                "category": "dog",
                "box": (0.0, 1.0, 2.0, 3.0),
                "crowd": False,
                "color": None,
                "visible": 1.0,
                "share": 0.1,
            }
        ],
        "patches": make_readings(GRID**2),
        "crop": np.frombuffer(jpeg.getvalue(), np.uint8),
        "prompts": [
            {
                "kind": "own",
                "question": "?",
                "truth": None,
                "answer": "!",
                "token_ids": np.array([1, 2, 3]),
                "n_prompt": 2,
                "answer_ids": np.array([3, 4]),
                "readings": make_readings(3),
                "grey": {
                    "target_prob": np.full(N_LAYERS, 0.5, np.float32),
                    "target_rank": np.ones(N_LAYERS, np.uint8),
                },
            }
        ],
        "words": [
            {
                "category": "dog",
                "present": True,
                "token_ids": [3, 4],
                "several_tokens": False,
                "log2_probs": np.full((N_LAYERS, GRID**2), -3, np.float16),
            }
        ],
    }
    part = lu.new_part(run)
    lu.add_to_part(part, "a.jpg", np.full((3, N_LAYERS, D_VOCAB), 1 / D_VOCAB, dtype=np.float32))
    return run, record, part


RUN, RECORD, PART = make_results()
CHECKS = {
    "run": (RUN, lu.check_run),
    "record": (RECORD, partial(lu.check_record, run=RUN, name="a.jpg")),
    "part": (PART, partial(lu.check_part, run=RUN)),
}


def write(folder, pickled: bytes):
    path = folder / "file.pkl"
    path.write_bytes(gzip.compress(pickled, 1))
    return path


def refused(path, check=lambda value: None):
    """Assert that the file is refused with the one error that names it."""
    with pytest.raises(
        ValueError,
        match=r"file\.pkl.* is damaged, of another release, or no result of this project \(.*get it again or delete it",
    ):
        lu.load(path, check)


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_right_is_loaded(tmp_path, what):
    value, check = CHECKS[what]
    lu.save(tmp_path / "file.pkl", value)
    assert lu.load(tmp_path / "file.pkl", check).keys() == value.keys()


class Attack:
    """Pickled, it is the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


class ByCopyreg:
    pass


def object_array(payload):
    array = np.empty(1, dtype=object)
    array[0] = payload
    return array


def attacks(mark):
    """Real attacks: each, loaded by pickle, makes the folder `mark`, but for those (None) whose harm is of another kind."""
    command = f"__import__('os').mkdir({str(mark)!r})"
    make = Attack(os.mkdir, str(mark))
    copyreg.pickle(ByCopyreg, lambda _: (eval, (command,)))
    ndarray, dtype = np._core.multiarray._reconstruct, np.dtype("O")
    return {
        "os.system": Attack(os.system, f"mkdir {mark}"),
        "eval": Attack(eval, command),
        "exec": Attack(exec, command),
        "a library's function": Attack(pydoc.pipepager, "", f"mkdir {mark}"),
        "nested": {"a": [(1, {"b": [np.arange(3), make]})]},
        "as a key": {("a", 1): make},
        "copyreg": ByCopyreg(),
        "object array": object_array(make),
        "object array within": {"patches": [object_array({"x": make})]},
        "as torch.load's rebuilding": Attack(__import__("functools").partial(eval, command)),
        "state of an array": Attack(
            ndarray, np.ndarray, (0,), b"b", state=(1, (1,), dtype, False, [make])
        ),
        "argument of a dtype": Attack(np.dtype, Attack(eval, command)),
        "default of a dict": __import__("collections").defaultdict(list, {"x": make}),
    }


@pytest.mark.parametrize("name", list(attacks("mark")))
def test_an_attack_runs_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    for protocol in range(6):
        try:
            pickled = pickle.dumps(attacks(mark)[name], protocol=protocol)
        except (pickle.PicklingError, TypeError):  # not to be said in that protocol
            continue
        refused(write(tmp_path, pickled))
        assert not mark.exists()
        (tmp_path / "file.pkl").write_bytes(pickled)  # and as it is, without gzip
        refused(tmp_path / "file.pkl")
        assert not mark.exists()
    try:
        pickle.loads(pickled)  # the attack is a real one
    except Exception:
        pass
    assert mark.exists()


def body(value) -> bytes:
    """The pickle of a plain value without its beginning and end, to be put into another."""
    return pickletools.optimize(pickle.dumps(value, 3))[2:-1].replace(
        pickle.BINUNICODE + b"\x01\0\0\0", pickle.SHORT_BINUNICODE + b"\x01"
    )


def string(text):
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def dtype_of(code, state):
    """A dtype, with a state for it that is the attacker's, as a pickle says them."""
    return (
        string("numpy")
        + string("dtype")
        + pickle.STACK_GLOBAL
        + body((code, False, True))
        + pickle.REDUCE
        + body(state)
        + pickle.BUILD
    )


def array_of(dtype, data, shape):
    arguments = (
        pickle.MARK
        + pickle.BYTEARRAY8
        + struct.pack("<Q", len(data))
        + data
        + dtype
        + body(shape)
        + string("C")
        + pickle.TUPLE
    )
    return (
        pickle.PROTO
        + b"\5"
        + string("numpy._core.numeric")
        + string("_frombuffer")
        + pickle.STACK_GLOBAL
        + arguments
        + pickle.REDUCE
        + pickle.STOP
    )


PLAIN_STATE = (3, "<", None, None, None, -1, -1, 0)


def test_the_arrays_made_by_hand_below_are_what_numpy_loads(tmp_path):
    pickled = array_of(dtype_of("f4", PLAIN_STATE), bytes(8), (2,))
    assert pickle.loads(pickled).tolist() == [0, 0] and lu.load(
        write(tmp_path, pickled)
    ).tolist() == [0, 0]


@pytest.mark.parametrize(
    "dtype, data, shape",
    [
        (
            dtype_of("O8", (3, "|", None, None, None, -1, -1, 0)),
            struct.pack("<Q", 0xDEADBEEF),
            (1,),
        ),  # bytes taken for pointers
        (
            dtype_of("f8", (3, "|", None, None, None, -1, -1, 63)),
            struct.pack("<Q", 0xDEADBEEF),
            (1,),
        ),
        (dtype_of("V8", (3, "|", None, ("x",), {"x": ("O", 0)}, 8, 1, 27)), bytes(8), (1,)),
        (dtype_of("f8", (3, "<", (("f8", (10**6,))), None, None, 8, 8, 0)), bytes(8), (1,)),
        (dtype_of("U1", PLAIN_STATE), b"\xff\xff\xff\x7f", (1,)),
        (dtype_of("S8", PLAIN_STATE), bytes(8), (1,)),
        (dtype_of("M8", PLAIN_STATE), bytes(8), (1,)),
        (dtype_of("f4", PLAIN_STATE), bytes(8), (10**12,)),
        (dtype_of("f4", PLAIN_STATE), bytes(7), (2,)),
        (dtype_of("f4", PLAIN_STATE), bytes(8), (3,)),
    ],
)
def test_a_dtype_or_buffer_that_lies_is_refused(tmp_path, dtype, data, shape):
    refused(write(tmp_path, array_of(dtype, data, shape)))


def laughs(key: bool) -> bytes:
    """Nested tuples, each twice the one before: small to hold, but to hash or to compare takes 2**200 steps."""
    body = pickle.EMPTY_TUPLE + b"".join(
        pickle.MEMOIZE + pickle.BINGET + bytes([i]) + pickle.TUPLE2 for i in range(200)
    )
    return (
        pickle.PROTO
        + b"\4"
        + (pickle.EMPTY_DICT + body + pickle.NONE + pickle.SETITEM if key else body)
        + pickle.STOP
    )


BOMBS = {
    "length of bytes": lambda: (
        pickle.PROTO + b"\5" + pickle.BINBYTES8 + struct.pack("<Q", 2**40) + b"x."
    ),
    "length of bytes in four": lambda: (
        pickle.PROTO + b"\5" + pickle.BINBYTES + struct.pack("<I", 2**32 - 1) + b"x."
    ),
    "length of a bytearray": lambda: (
        pickle.PROTO + b"\5" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**40) + b"x."
    ),
    "length of a text": lambda: (
        pickle.PROTO + b"\5" + pickle.BINUNICODE8 + struct.pack("<Q", 2**62) + b"x."
    ),
    "length of a frame": lambda: (
        pickle.PROTO + b"\5" + pickle.FRAME + struct.pack("<Q", 2**60) + b"N."
    ),
    "place in the memo": lambda: (
        pickle.PROTO
        + b"\5"
        + pickle.NONE
        + pickle.LONG_BINPUT
        + struct.pack("<I", 2**31 - 1)
        + b"."
    ),
    "long number": lambda: (
        pickle.PROTO + b"\5" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"."
    ),
    "number in letters": lambda: pickle.INT + b"9" * 10**6 + b"\n.",
    "many lists": lambda: pickle.PROTO + b"\5" + pickle.EMPTY_LIST * 50_000_000 + b".",
    "many bytes": lambda: (
        pickle.PROTO + b"\5" + pickle.BINBYTES8 + struct.pack("<Q", 2**29) + bytes(2**29) + b"."
    ),
    "deep lists": lambda: (
        pickle.PROTO + b"\5" + pickle.EMPTY_LIST * 10**6 + pickle.APPEND * (10**6 - 1) + b"."
    ),
    "deep tuples as a key": lambda: (
        pickle.PROTO
        + b"\5"
        + pickle.EMPTY_DICT
        + pickle.EMPTY_TUPLE
        + pickle.TUPLE1 * 10**6
        + pickle.NONE
        + pickle.SETITEM
        + b"."
    ),
    "laughs": lambda: laughs(key=False),
    "laughs as a key": lambda: laughs(key=True),
}


class Within:
    """What is done within takes at most 20 seconds and 1 GB of memory."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self.before = self.peak()
        signal.signal(signal.SIGALRM, self.too_long)
        signal.alarm(20)

    def __exit__(self, *_):
        signal.alarm(0)
        assert self.peak() - self.before < 10**6

    @staticmethod
    def peak():
        """KiB"""
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    @staticmethod
    def too_long(*_):
        pytest.fail("it takes more than 20 seconds")


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("what", CHECKS)
def test_a_bomb_takes_neither_time_nor_memory(tmp_path, name, what):
    path = write(tmp_path, BOMBS[name]())
    with Within():
        refused(path, CHECKS[what][1])


def test_a_bomb_as_a_value_takes_no_time(tmp_path):
    """In place of every value of a real file, so that it meets whatever is done with that."""
    for what, (value, check) in CHECKS.items():
        for where in places(value):
            mark = "the place of the bomb"
            pickled = pickle.dumps(with_value(value, where, mark), 5)
            assert pickled.count(string(mark)) == 1
            path = write(tmp_path, pickled.replace(string(mark), laughs(key=False)[2:-1]))
            with Within():
                refused(path, check)


def test_one_thing_in_many_places_is_refused(tmp_path):
    """A prompt three hundred thousand times is a file of some kB and takes hours to check."""
    path = tmp_path / "file.pkl"
    lu.save(path, {**RECORD, "prompts": RECORD["prompts"] * 300_000})
    with Within():
        refused(path, CHECKS["record"][1])


def test_a_file_cannot_change_how_others_are_loaded(tmp_path):
    for name in ("_PlainArray", "_PlainDtype"):
        module, known = {
            "_PlainArray": ("numpy._core.numeric", "_frombuffer"),
            "_PlainDtype": ("numpy", "dtype"),
        }[name]
        of_class = string(module) + string(known) + pickle.STACK_GLOBAL
        for attribute in ("__new__", "__init__", "code", "__setstate__"):
            state = (
                pickle.NONE
                + pickle.EMPTY_DICT
                + string(attribute)
                + pickle.NONE
                + pickle.SETITEM
                + pickle.TUPLE2
            )
            refused(
                write(
                    tmp_path, pickle.PROTO + b"\5" + of_class + state + pickle.BUILD + pickle.STOP
                )
            )
            lu.save(tmp_path / "good.pkl", PART)
            assert lu.load(tmp_path / "good.pkl", CHECKS["part"][1]).keys() == PART.keys()


def test_a_progressive_crop_is_refused(tmp_path):
    """One of a few kB whose last scan comes again and again takes hours to draw."""
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64)).save(jpeg, "JPEG", progressive=True)
    path = tmp_path / "file.pkl"
    lu.save(path, {**RECORD, "crop": np.frombuffer(jpeg.getvalue(), np.uint8)})
    refused(path, CHECKS["record"][1])


def with_value(value, where, new):
    """`value` with what is at `where` (a path of keys) replaced."""
    if not where:
        return new
    copy = value.copy() if isinstance(value, (dict, list)) else list(value)
    copy[where[0]] = with_value(value[where[0]], where[1:], new)
    return copy


def changed(array, at, new):
    array = array.copy()
    array[at] = new
    return array


READINGS = RECORD["patches"]


@pytest.mark.parametrize(
    "what, where, new, message",
    [
        ("run", ["format_version"], 1, "format version is 1, this lens_utils.py reads"),
        ("run", ["grid"], 10**6, "grid"),
        ("run", ["top_k"], 21, "top_k"),
        ("run", ["tokens"], ["a", 1], "tokens"),
        ("run", ["layers"], ["emb", "2"], "layers"),
        ("run", ["segments"], ["image"], "segments"),
        ("run", ["last_layer_jsd"], float("nan"), "jsd"),
        ("run", ["model"], 3, "model"),
        ("run", ["top_k"], True, "top_k"),
        ("record", ["name"], "../../evil", "name"),
        ("record", ["objects", 0, "category"], 5, "category"),
        ("record", ["objects", 0, "box"], (0.0, 0.0, float("inf"), 1.0), "box"),
        ("record", ["prompts"], [], "no prompts"),
        ("record", ["prompts", 0, "kind"], "evil", "kind"),
        ("record", ["prompts", 0, "n_prompt"], 3, "lengths"),
        ("record", ["prompts", 0, "token_ids"], np.array([1, 2, 20]), "token_ids"),
        ("record", ["prompts", 0, "answer_ids"], np.array([3, -1]), "answer_ids"),
        ("record", ["prompts", 0, "question"], None, "question"),
        ("record", ["prompts", 0, "question"], " ", "question"),
        ("record", ["words", 0, "token_ids"], [20], "no tokens"),
        ("record", ["words", 0, "log2_probs"], np.ones((3, 4), np.float16), "log2_probs"),
        ("record", ["words", 0, "present"], 1, "marks"),
        ("record", ["prompts", 0, "grey", "target_prob"], np.full(3, np.nan), "grey"),
        ("record", ["objects"], np.zeros(0), "no list"),
        ("part", ["images"], ("a.jpg",), "another type"),
        ("record", ["patches"], make_readings(5), "patches"),
        ("record", ["patches", "top_ids"], changed(READINGS["top_ids"], (0, 0, 0), 20), "top_ids"),
        (
            "record",
            ["patches", "top_probs"],
            changed(READINGS["top_probs"], (1, 1, 1), 1.5),
            "top_probs",
        ),
        (
            "record",
            ["patches", "jsd_final"],
            changed(READINGS["jsd_final"], (1, 1), np.nan),
            "jsd_final",
        ),
        ("record", ["patches", "entropy"], READINGS["entropy"] + 5, "entropy"),
        ("record", ["patches", "jsd_prev"], changed(READINGS["jsd_prev"], (0, 0), 0), "jsd_prev"),
        ("record", ["patches", "target_rank"], READINGS["target_rank"] * 0, "target_rank"),
        (
            "record",
            ["patches", "target_prob"],
            READINGS["target_prob"][:, :3].copy(),
            "target_prob",
        ),
        (
            "record",
            ["prompts", 0, "readings", "top_probs"],
            READINGS["top_probs"].astype(int),
            "top_probs",
        ),
        ("record", ["crop"], np.zeros(100, np.uint8), "cannot identify"),
        ("record", ["crop"], RECORD["crop"][:-200], "(?i)truncated|cannot"),
        ("part", ["images"], ["../../evil"], "name of a file"),
        ("part", ["images"], ["a", "a"], "twice"),
        ("part", ["images"], ["a\\b"], "name of a file"),
        ("part", ["images"], [".."], "name of a file"),
        ("part", ["sums"], PART["sums"] * -1, "sums"),
        ("part", ["sums"], PART["sums"][:2], "sums"),
        ("part", ["n_images"], np.array([9, 9, 9]), "n_images"),
        ("part", ["skipped"], {"a": 1}, "skipped"),
    ],
)
def test_what_is_out_of_shape_or_range_is_named(tmp_path, what, where, new, message):
    value, check = CHECKS[what]
    path = tmp_path / "file.pkl"
    lu.save(path, with_value(value, where, new))
    refused(path, check)
    with pytest.raises(ValueError, match=message):
        lu.load(path, check)


PICKLES = {what: pickle.dumps(value, protocol=5) for what, (value, _) in CHECKS.items()}
FILES = {what: gzip.compress(pickled, 1, mtime=0) for what, pickled in PICKLES.items()}
edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "insert", "delete", "cut"]),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)
opcodes = st.sampled_from(
    [
        getattr(pickle, name)
        for name in pickle.__all__
        if name.isupper() and isinstance(getattr(pickle, name), bytes)
    ]
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([np.arange(3), np.zeros((2, 2)), np.array([np.nan])]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=5,
)


def edited(data: bytes, edits) -> bytes:
    for place, kind, new in edits:
        at = int(place * len(data))
        data = {
            "flip": data[:at]
            + bytes([data[at] ^ new[0] if at < len(data) else 0])
            + data[at + 1 :],
            "insert": data[:at] + new + data[at:],
            "delete": data[:at] + data[at + len(new) :],
            "cut": data[:at],
        }[kind]
    return data


def places(value, where=()):
    """All paths of keys within a value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return [where, *(path for key, inner in items for path in places(inner, (*where, key)))]


def loads_or_is_refused(folder, content: bytes, check):
    path = folder / "file.pkl"
    path.write_bytes(content)
    try:
        with Within():
            lu.load(path, check)
    except ValueError as error:
        assert (
            "file.pkl" in str(error)
            and "get it again or delete it" in str(error)
            and len(str(error)) < 1000
        )


def fuzz(n_cases):
    return lambda test: settings(
        max_examples=n_cases,
        deadline=10_000,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(test)


@fuzz(1500)
@given(what=st.sampled_from(list(CHECKS)), edits=edits)
def test_fuzz_the_file(tmp_path_factory, what, edits):
    loads_or_is_refused(tmp_path_factory.getbasetemp(), edited(FILES[what], edits), CHECKS[what][1])


@fuzz(4000)
@given(what=st.sampled_from(list(CHECKS)), edits=edits)
def test_fuzz_the_pickle_within(tmp_path_factory, what, edits):
    loads_or_is_refused(
        tmp_path_factory.getbasetemp(),
        gzip.compress(edited(PICKLES[what], edits), 0),
        CHECKS[what][1],
    )


@fuzz(2500)
@given(
    what=st.sampled_from(list(CHECKS)),
    body=st.lists(
        opcodes
        | st.binary(max_size=4)
        | st.sampled_from([string("numpy"), string("dtype"), string("_frombuffer")]),
        max_size=30,
    ),
)
def test_fuzz_the_opcodes(tmp_path_factory, what, body):
    loads_or_is_refused(
        tmp_path_factory.getbasetemp(),
        gzip.compress(pickle.PROTO + b"\5" + b"".join(body) + pickle.STOP, 0),
        CHECKS[what][1],
    )


@fuzz(2000)
@given(what=st.sampled_from(list(CHECKS)), place=st.integers(0, 10**6), new=plain)
def test_fuzz_the_values(tmp_path_factory, what, place, new):
    value, check = CHECKS[what]
    all_places = places(value)
    path = tmp_path_factory.getbasetemp() / "file.pkl"
    lu.save(path, with_value(value, all_places[place % len(all_places)], new))
    loads_or_is_refused(path.parent, path.read_bytes(), check)
