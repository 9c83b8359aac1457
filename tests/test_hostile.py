"""lens_utils: files that someone else made, or that something damaged: a clean load or one clear
error, and nothing runs."""

import contextlib
import copy
import copyreg
import gzip
import hashlib
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

from llava_lens import checks, pickles, schema, store

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
        "format_version": schema.FORMAT_VERSION,
        "model": "m",
        "revision": "r",
        "dtype": "float32",
        "packages": {},
        "n_layers": N_LAYERS - 1,
        "layers": ["emb", "1", "2"],
        "segments": schema.SEGMENTS,
        "tokens": [f"▁{i}" for i in range(D_VOCAB)],
        "grid": GRID,
        "image_size": 8,
        "chat": "USER: <image>\n{question} ASSISTANT:",
        "questions": {"object": "What is it?"},
        "own_prompts": [],
        "categories": ["dog", "cat"],
        "per_kind": 1,
        "seed": 0,
        "top_k": TOP_K,
        "max_new_tokens": 2,
        "knockout_windows": [[1, 1], [1, N_LAYERS - 1]],
        "last_layer_jsd": 0.0,
    }
    control = {
        "target_prob": np.full(N_LAYERS, 0.5, np.float32),
        "target_rank": np.ones(N_LAYERS, np.uint8),
        "word_prob": np.full(N_LAYERS, 0.5, np.float32),
        "word_rank": np.ones(N_LAYERS, np.uint8),
    }
    record = {
        "name": "a.jpg",
        "image_digest": "0",
        "annotations_digest": "0",
        "objects": [
            {
                "category": "dog",
                "box": [0.0, 1.0, 2.0, 3.0],
                "crowd": False,
                "color": None,
                "color_from": "",
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
                "truth_from": "",
                "categories": ["dog"],
                "way": "",
                "answer": "!",
                "token_ids": np.array([1, 2, 3]),
                "n_prompt": 2,
                "answer_ids": np.array([3, 4]),
                "word_ids": [3, 5],
                "word_prob": np.full(N_LAYERS, 0.5, np.float32),
                "word_rank": np.ones(N_LAYERS, np.uint8),
                "readings": make_readings(3),
                "grey": control,
                "other": copy.deepcopy(control),
                "knockout": {way: np.zeros(2, np.float32) for way in schema.KNOCKOUT},
            }
        ],
        "words": [
            {
                "category": "dog",
                "present": True,
                "token_ids": [3, 4],
                "way": "",
                "log2_probs": np.full((N_LAYERS, GRID**2), -3, np.float16),
            }
        ],
    }
    part = {
        "images": ["a.jpg"],
        "skipped": {"b.jpg": "it is damaged"},
        "n_images": np.ones(3, int),
        "sums": np.full((3, N_LAYERS, D_VOCAB), 1 / D_VOCAB),
    }
    return run, record, part


RUN, RECORD, PART = make_results()
CHECKS = {
    "run": (RUN, checks.check_run),
    "record": (RECORD, partial(checks.check_record, run=RUN, name="a.jpg")),
    "part": (PART, partial(checks.check_part, run=RUN)),
}


def write(folder, pickled: bytes):
    path = folder / "file.pkl"
    path.write_bytes(gzip.compress(pickled, 1))
    return path


def fast(kind, value, protocol) -> bytes:
    """A pickle without a memo."""
    file = io.BytesIO()
    pickler = kind(file, protocol)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def pickled(value) -> bytes:
    """As `save` writes it, but not looked at first."""
    return fast(pickles._Pickler, value, 5)


def refused(path, check=lambda value: None):
    """Assert that the file is refused with the one error that names it."""
    message = (
        r"file\.pkl.* is damaged, of another release, or no result of this project "
        r"\(.*get it again or delete it"
    )
    with pytest.raises(ValueError, match=message):
        pickles.load(path, check)


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


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_right_is_loaded(tmp_path, what):
    value, check = CHECKS[what]
    pickles.save(tmp_path / "file.pkl", value, check)
    assert pickles.load(tmp_path / "file.pkl", check).keys() == value.keys()


def test_a_link_a_folder_and_a_pipe_are_refused(tmp_path):
    """To open a pipe would wait for ever."""
    path = tmp_path / "file.pkl"
    pickles.save(tmp_path / "good.pkl", PART)
    path.symlink_to("good.pkl")
    refused(path)
    path.unlink()
    path.mkdir()
    refused(path)
    path.rmdir()
    os.mkfifo(path)
    with Within():
        refused(path)


# What the code of format version 2 made of a run: a plain pickle of protocol 5.
RUN_OF_FORMAT_2 = {
    "format_version": 2,
    "model": "demo/model",
    "revision": "unembedding 0123456789abcdef",
    "dtype": "float16",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "transformer-lens": "4.3.0"},
    "layers": ["emb", "1", "2"],
    "segments": ["image", "prompt", "answer"],
    "tokens": ["<unk>", "▁dog", "▁cat"],
    "grid": 2,
    "chat": "USER: <image>\n{question} ASSISTANT:",
    "prompts": {"own": [], "per_kind": 1, "seed": 0},
    "last_layer_jsd": 0.0,
    "top_k": 2,
    "max_new_tokens": 20,
    "definitions": {"layers": "residual stream: emb = embedding output, l = after block l"},
}


def test_format_2_is_refused_with_what_to_do(tmp_path):
    data = pickle.dumps(RUN_OF_FORMAT_2, protocol=5)
    # As in the file that the old code wrote.
    assert hashlib.sha256(data).hexdigest().startswith("5608b14adf188bbc")
    (tmp_path / "run.pkl").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError) as error:
        store.Results.find(tmp_path).run  # noqa: B018 (a property that raises)
    said = str(error.value)
    assert "run.pkl' is damaged, of another release" in said and "\n" not in said
    assert f"format version is an older one, this release reads {schema.FORMAT_VERSION}" in said
    assert "read the images again with Make_Analyse.ipynb, or take the release that made" in said
    assert said.count(". ") == 0 and said.endswith("get it again or delete it.")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/0.pkl").write_bytes(gzip.compress(pickle.dumps(PART, protocol=5)))
    for call in (
        lambda: store.Results(tmp_path).left({}),
        lambda: store.Results(tmp_path).begin(RUN),
        lambda: store.Results(tmp_path / "new").continue_from(tmp_path),
    ):
        with pytest.raises(ValueError, match=r"run\.pkl.* read the images again with Make_Analyse"):
            call()


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
    """Real attacks: each, loaded by pickle, makes the folder `mark`."""
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
        "shape of an array": Attack(np.ndarray, make, "<f4", bytes(4)),
        "dtype of an array": Attack(np.ndarray, [1], make, bytes(4)),
        "bytes of an array": Attack(np.ndarray, [1], "<f4", make),
        "state of an array of the new kind": Attack(
            np.ndarray, [1], "<f4", bytes(4), state=(1, (1,), dtype, False, [make])
        ),
        "default of a dict": __import__("collections").defaultdict(list, {"x": make}),
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
        (tmp_path / "file.pkl").write_bytes(attack)  # and as it is, without gzip
        refused(tmp_path / "file.pkl")
        assert not mark.exists()
    with contextlib.suppress(Exception):
        pickle.loads(attack)  # the attack is a real one
    assert mark.exists()


def body(value) -> bytes:
    """The pickle of a plain value without its beginning and end, to be put into another."""
    return fast(pickle.Pickler, value, 3)[2:-1]


def string(text):
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


NDARRAY = string("numpy") + string("ndarray") + pickle.STACK_GLOBAL


def whole(opcodes: bytes) -> bytes:
    return pickle.PROTO + b"\5" + opcodes + pickle.STOP


def array_of(shape, dtype, data) -> bytes:
    """The call that stands for an array; each argument is a plain value, or opcodes for one."""
    arguments = [arg if type(arg) is Opcodes else body(arg) for arg in (shape, dtype, data)]
    return whole(NDARRAY + b"".join(arguments) + pickle.TUPLE3 + pickle.REDUCE)


class Opcodes(bytes):
    pass


def test_the_arrays_made_by_hand_below_are_what_numpy_loads(tmp_path):
    by_hand = array_of([2], "<f4", bytes(8))
    assert pickle.loads(by_hand).tolist() == [0, 0]
    assert pickles.load(write(tmp_path, by_hand)).tolist() == [0, 0]
    assert unframed(pickled(np.zeros(2, "<f4"))) == array_of([2], Opcodes(string("<f4")), bytes(8))
    plain = pickle.loads(pickled(RECORD))
    np.testing.assert_array_equal(plain["patches"]["top_probs"], RECORD["patches"]["top_probs"])


POINTER = struct.pack("<Q", 0xDEADBEEF)


@pytest.mark.parametrize(
    "shape, dtype, data",
    [
        # Bytes taken for pointers, alone and as a part of what is there.
        ([1], "O", POINTER),
        ([1], "|O", POINTER),
        ([1], "|O8", POINTER),
        ([1], "O,f4", POINTER + bytes(4)),
        ([1], "(1,)O", POINTER),
        ([1], {"names": ["x"], "formats": ["O"]}, POINTER),
        ([1], [["x", "O"]], POINTER),
        ([1], "V8", bytes(8)),
        ([1], "|V8", bytes(8)),
        ([1], "(1000000,)f8", bytes(8)),
        ([1], "<U1", b"\xff\xff\xff\x7f"),
        ([1], "|S8", bytes(8)),
        ([1], "<M8[D]", bytes(8)),
        ([1], "<m8", bytes(8)),
        ([1], "<c8", bytes(8)),
        ([1], ">f4", bytes(4)),
        ([1], "f4", bytes(4)),
        ([1], "", bytes(8)),
        ([1], " <f4", bytes(4)),
        ([1], b"<f4", bytes(4)),
        ([1], None, bytes(8)),
        ([1], 7, bytes(8)),
        ([1], Opcodes(NDARRAY), bytes(8)),
        ([1], Opcodes(array_of([1], "<f4", bytes(4))[2:-1]), bytes(8)),
        # A shape that lies.
        ([10**12], "<f4", bytes(8)),
        ([2], "<f4", bytes(7)),
        ([3], "<f4", bytes(8)),
        ([1], "<f4", bytes(8)),
        ([], "<f4", bytes(8)),
        ([2**62, 4], "<f4", bytes(0)),
        ([2**63], "<f4", bytes(8)),
        ([10**30], "<f4", bytes(8)),
        ([-1], "<f4", bytes(8)),
        ([-2, -1], "<f4", bytes(8)),
        ([2.0], "<f4", bytes(8)),
        (["2"], "<f4", bytes(8)),
        ([True, 2], "<f4", bytes(8)),
        ([None], "<f4", bytes(8)),
        ([[2]], "<f4", bytes(8)),
        ([1] * 65, "<f4", bytes(4)),
        ([1] * 10**6, "<f4", bytes(4)),
        ((2,), "<f4", bytes(8)),
        ((1, 1, 2), "<f4", bytes(8)),
        (2, "<f4", bytes(8)),
        (None, "<f4", bytes(8)),
        ({"0": 2}, "<f4", bytes(8)),
        (Opcodes(array_of([1], "<i8", struct.pack("<q", 2))[2:-1]), "<f4", bytes(8)),
        # Something else than bytes, of which one numpy array would be a view of the other.
        ([2], "<f4", "12345678"),
        ([2], "<f4", [0] * 8),
        ([2], "<f4", None),
        ([2], "<f4", 8),
        ([2], "<f4", Opcodes(array_of([8], "|u1", bytes(8))[2:-1])),
        ([2], "<f4", Opcodes(pickle.BYTEARRAY8 + struct.pack("<Q", 8) + bytes(8))),
        ([2], "<f4", Opcodes(pickle.NEXT_BUFFER)),
    ],
)
def test_a_call_that_lies_is_refused(tmp_path, shape, dtype, data):
    with Within():
        refused(write(tmp_path, array_of(shape, dtype, data)))


@pytest.mark.parametrize(
    "opcodes",
    [
        NDARRAY,  # the function itself, not called
        NDARRAY + body([1]) + pickle.TUPLE1 + pickle.REDUCE,
        NDARRAY + body([1]) + body("<f4") + pickle.TUPLE2 + pickle.REDUCE,
        NDARRAY
        + pickle.MARK
        + b"".join(map(body, ([1], "<f4", bytes(4), 0, [4], "F")))
        + pickle.TUPLE
        + pickle.REDUCE,
        NDARRAY + body([]) + pickle.REDUCE,
        body([1]) + body("<f4") + body(bytes(4)) + pickle.TUPLE3,  # arguments that are not called
        body("numpy") + body([1]) + body("<f4") + body(bytes(4)) + pickle.TUPLE3 + pickle.REDUCE,
        NDARRAY + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        NDARRAY + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
        body({}) + NDARRAY + body(1) + pickle.SETITEM,  # a function as a key
        body({}) + body("x") + NDARRAY + pickle.SETITEM,  # and as a value
        NDARRAY + body("x") + body(1) + pickle.SETITEM,
        NDARRAY + body("x") + pickle.APPEND,
        array_of([2], "<f4", bytes(8))[2:-1] + body(0) + body(1.0) + pickle.SETITEM,
        array_of([2], "<f4", bytes(8))[2:-1] + body(1.0) + pickle.APPEND,
        body({}) + array_of([2], "<f4", bytes(8))[2:-1] + body(1) + pickle.SETITEM,
        *(
            string(module) + string(name) + pickle.STACK_GLOBAL + body([2]) + body("<f4")
            + body(bytes(8)) + pickle.TUPLE3 + pickle.REDUCE
            for module, name in [
                ("numpy", "memmap"),
                ("numpy", "ndarray.tofile"),
                ("numpy", "dtype"),
                ("numpy", "load"),
                ("numpy._core.numeric", "_frombuffer"),
                ("numpy._core.multiarray", "_reconstruct"),
                ("NUMPY", "ndarray"),
                ("builtins", "eval"),
                ("lens_utils", "_plain_array"),
            ]
        ),
    ],
)  # fmt: skip
def test_no_other_call_is_made(tmp_path, opcodes):
    refused(write(tmp_path, whole(opcodes)))


def laughs(key: bool) -> bytes:
    """Nested tuples, each twice the one before: small to hold, but to hash or to compare takes
    2**200 steps."""
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


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("what", CHECKS)
def test_a_bomb_takes_neither_time_nor_memory(tmp_path, name, what):
    path = write(tmp_path, BOMBS[name]())
    with Within():
        refused(path, CHECKS[what][1])


DEEP = pickle.EMPTY_LIST * 20_000 + pickle.APPEND * 19_999


@pytest.mark.parametrize("bomb", [laughs(key=False)[2:-1], DEEP], ids=["laughs", "deep lists"])
def test_a_bomb_as_a_value_takes_no_time(tmp_path, bomb):
    """In place of every value of a real file, so that it meets whatever is done with that."""
    mark = "the place of the bomb"
    for value, check in CHECKS.values():
        for where in places(value):
            good = pickled(with_value(value, where, mark))
            assert good.count(string(mark)) == 1
            # Without frames, whose lengths would be wrong now.
            path = write(tmp_path, unframed(good).replace(string(mark), bomb))
            with Within():
                refused(path, check)


def unframed(data: bytes) -> bytes:
    at = [pos for opcode, _, pos in pickletools.genops(data) if opcode.name == "FRAME"]
    for pos in reversed(at):
        data = data[:pos] + data[pos + 9 :]
    return data


def test_one_thing_in_many_places_is_refused(tmp_path):
    """A prompt three hundred thousand times is a file of some kB and takes hours to check."""
    many = {**RECORD, "prompts": RECORD["prompts"] * 300_000}
    with Within():
        refused(write(tmp_path, pickle.dumps(many, 5)), CHECKS["record"][1])
    many["prompts"] = many["prompts"][:80_000]
    with Within(), pytest.raises(ValueError, match="MiB.* Choose a smaller top_k or fewer prompts"):
        pickles.save(tmp_path / "big.pkl", many)
    assert os.listdir(tmp_path) == ["file.pkl"]


@pytest.mark.parametrize("field", ["prompts", "words", "objects"])
def test_as_much_as_a_file_may_hold_takes_no_time(tmp_path, field):
    """As many parts, each a right one, as there may be opcodes; then one more is refused."""
    n_opcodes = {}
    for times in (1, 2):
        data = pickled({**RECORD, field: RECORD[field] * times})
        n_opcodes[times] = sum(1 for _ in pickletools.genops(data))
    times = 1 + (pickles.MOST_OPCODES - n_opcodes[1]) // (n_opcodes[2] - n_opcodes[1] + 1)
    path = write(tmp_path, pickled({**RECORD, field: RECORD[field] * times}))
    with Within():
        assert len(pickles.load(path, CHECKS["record"][1])[field]) == times
    path = write(tmp_path, pickled({**RECORD, field: RECORD[field] * (times * 2)}))
    with Within():
        refused(path, CHECKS["record"][1])


@pytest.mark.parametrize(
    "attribute",
    ["__code__", "__defaults__", "__dict__", "__new__", "__init__", "__setstate__", "__class__"],
)
@pytest.mark.parametrize("module, name", [("numpy", "ndarray"), ("lens_utils", "_plain_array")])
def test_a_file_cannot_change_how_others_are_loaded(tmp_path, module, name, attribute):
    of_function = string(module) + string(name) + pickle.STACK_GLOBAL
    slots = pickle.EMPTY_DICT + string(attribute) + pickle.NONE + pickle.SETITEM
    for state in (pickle.NONE + slots + pickle.TUPLE2, slots):
        refused(write(tmp_path, whole(of_function + state + pickle.BUILD)))
        array = array_of([2], "<f4", bytes(8))[2:-1]
        refused(write(tmp_path, whole(array + state + pickle.BUILD)))
        pickles.save(tmp_path / "good.pkl", PART)
        assert pickles.load(tmp_path / "good.pkl", CHECKS["part"][1]).keys() == PART.keys()


def test_a_progressive_crop_is_refused(tmp_path):
    """One of a few kB whose last scan comes again and again takes hours to draw."""
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG", progressive=True)
    crop = np.frombuffer(jpeg.getvalue(), np.uint8)
    path = write(tmp_path, pickled({**RECORD, "crop": crop}))
    refused(path, CHECKS["record"][1])
    with pytest.raises(ValueError, match="crop is no plain image"):
        pickles.load(path, CHECKS["record"][1])


def with_value(value, where, new):
    """`value` with what is at `where` (a path of keys) replaced."""
    if not where:
        return new
    new_value = value.copy() if isinstance(value, (dict, list)) else list(value)
    new_value[where[0]] = with_value(value[where[0]], where[1:], new)
    return new_value


def changed(array, at, new):
    array = array.copy()
    array[at] = new
    return array


def a_crop(mode, size, encoding="JPEG"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, encoding)
    return np.frombuffer(file.getvalue(), np.uint8)


READINGS = RECORD["patches"]


@pytest.mark.parametrize(
    "what, where, new, message",
    [
        ("run", ["format_version"], 1, "format version is 1, this release reads 3"),
        ("run", ["grid"], 10**6, "grid"),
        ("run", ["top_k"], 21, "top_k"),
        ("run", ["tokens"], ["a", 1], "tokens"),
        ("run", ["layers"], ["emb", "1"], "layers"),
        ("run", ["layers"], ["emb", "3"], "layers"),
        ("run", ["segments"], ["image"], "segments"),
        ("run", ["last_layer_jsd"], float("nan"), "jsd"),
        ("run", ["model"], 3, "model"),
        ("run", ["top_k"], True, "top_k"),
        ("run", ["n_layers"], 3, "layers end before the last"),
        ("run", ["n_layers"], 10**9, "n_layers"),
        ("run", ["layers"], ["2"], "layers"),
        ("run", ["layers"], ["emb", "2", "1"], "layers"),
        ("run", ["image_size"], 1, "image_size"),
        ("run", ["image_size"], 10**6, "image_size"),
        ("run", ["tokens"], ["a" * 101], "tokens"),
        ("run", ["own_prompts"], {}, "own_prompts"),
        ("run", ["questions"], [], "questions"),
        ("run", ["seed"], "0", "seed"),
        ("run", ["packages"], None, "packages"),
        ("record", ["name"], "../../evil", "name"),
        ("record", ["objects", 0, "category"], 5, "category"),
        ("record", ["objects", 0, "box"], [0.0, 0.0, float("inf"), 1.0], "box"),
        ("record", ["objects", 0, "box"], (0.0, 0.0, 1.0, 1.0), "TUPLE"),
        ("record", ["objects", 0, "box"], [0.0, 0.0, 1.0], "box"),
        ("record", ["objects", 0, "box"], [0.0, 0.0, 1, 1.0], "box"),
        ("record", ["objects", 0, "visible"], 2.0, "visible"),
        ("record", ["objects", 0, "share"], float("nan"), "share"),
        ("record", ["objects", 0, "crowd"], 1, "crowd"),
        ("record", ["objects", 0, "color"], 1, "color"),
        ("record", ["prompts"], [], "no prompts"),
        ("record", ["prompts", 0, "kind"], "evil", "kind"),
        ("record", ["prompts", 0, "n_prompt"], 3, "lengths"),
        ("record", ["prompts", 0, "token_ids"], np.array([1, 2, 20]), "token_ids"),
        ("record", ["prompts", 0, "answer_ids"], np.array([3, -1]), "answer_ids"),
        ("record", ["prompts", 0, "question"], None, "question"),
        ("record", ["prompts", 0, "question"], " ", "question"),
        ("record", ["words", 0, "token_ids"], [20], "token_ids is no int from 0 to 19"),
        ("record", ["words", 0, "log2_probs"], np.ones((3, 4), np.float16), "log2_probs"),
        ("record", ["words", 0, "present"], 1, "words 0, present is no bool"),
        ("record", ["words", 0, "way"], "random", "word 0 has no known way"),
        ("record", ["prompts", 0, "way"], "evil", "prompt 0 has no known way"),
        ("record", ["prompts", 0, "word_ids"], [4], "word_ids of prompt 0 don't have the answer's"),
        ("record", ["prompts", 0, "other", "word_prob"], np.full(3, np.nan, "f4"), "other"),
        ("record", ["prompts", 0, "other"], None, "other is no dict"),
        ("record", ["prompts", 0, "knockout", "image"], np.zeros(3, np.float32), "knockout"),
        ("run", ["knockout_windows"], [[0, 2]], "knockout_windows"),
        ("run", ["categories"], ["dog", 1], "categories"),
        ("record", ["words", 0, "category"], " ", "words 0, category is no text"),
        ("record", ["words", 0, "category"], "cat", "word 0 is no object's"),
        ("record", ["words", 0, "token_ids"], [], "no tokens"),
        ("record", ["prompts", 0, "categories"], "dog", "categories is no list"),
        ("record", ["prompts", 0, "categories"], [1], "categories"),
        ("record", ["prompts", 0, "truth"], 1, "truth"),
        ("record", ["prompts", 0, "answer"], None, "answer"),
        ("record", ["prompts", 0, "grey", "target_prob"], np.full(3, np.nan), "grey"),
        ("record", ["objects"], np.zeros(0), "objects is no list"),
        ("part", ["images"], ("a.jpg",), "TUPLE1"),
        ("part", ["images"], {"a.jpg": 1}, "images is no list"),
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
        ("record", ["crop"], RECORD["crop"].astype(np.uint16), "crop is too large or no bytes"),
        ("record", ["crop"], a_crop("RGB", (16, 16)), "crop is no plain image"),
        ("record", ["crop"], a_crop("RGB", (8, 4)), "crop is no plain image"),
        ("record", ["crop"], a_crop("L", (8, 8)), "crop is no plain image"),
        ("record", ["crop"], a_crop("RGB", (8, 8), "PNG"), "cannot identify"),
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
    (value, check), path = CHECKS[what], tmp_path / "file.pkl"
    wrong = with_value(value, where, new)
    with pytest.raises(ValueError, match=message):
        pickles.save(path, wrong, check)
    assert not path.exists()
    write(tmp_path, pickled(wrong))
    refused(path, check)
    with pytest.raises(ValueError, match=message):
        pickles.load(path, check)


@pytest.mark.parametrize("what", CHECKS)
def test_what_is_missing_is_named(tmp_path, what):
    value, check = CHECKS[what]
    for where in places(value):
        if where and isinstance(where[-1], str) and where[0] not in ("packages", "questions"):
            holder = value
            for key in where[:-1]:
                holder = holder[key]
            less = {key: inner for key, inner in holder.items() if key != where[-1]}
            path = write(tmp_path, pickled(with_value(value, where[:-1], less)))
            if where[0] == "skipped" and where[1:] or where[-1] == "other":  # may be missing
                continue
            refused(path, check)
            with pytest.raises(ValueError, match=where[-1]):
                pickles.load(path, check)


PICKLES = {what: pickled(value) for what, (value, _) in CHECKS.items()}
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
# Calls of numpy.ndarray, whole and in parts, and what a call could be made of.
parts_of_arrays = st.sampled_from(
    [string("numpy"), string("ndarray"), NDARRAY, string("<f4"), string("|u1"), string("|O")]
    + [pickle.TUPLE3 + pickle.REDUCE, array_of([2], "<f4", bytes(8))[2:-1]]
    + [body(value) for value in ([2], [8], [], [-1], bytes(8), bytes(0), 2, "x", {}, [{}])]
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
            pickles.load(path, check)
    except ValueError as error:
        assert "file.pkl" in str(error) and "get it again or delete it" in str(error)
        assert len(str(error)) < 1000
        return False
    return True


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
    body=st.lists(opcodes | st.binary(max_size=4) | parts_of_arrays, max_size=30),
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
    all_places, folder = places(value), tmp_path_factory.getbasetemp()
    wrong = with_value(value, all_places[place % len(all_places)], new)
    is_loaded = loads_or_is_refused(folder, gzip.compress(pickled(wrong), 0), check)
    try:
        pickles.save(folder / "saved.pkl", wrong, check)
    except ValueError as error:
        assert not is_loaded and "saved.pkl" in str(error)
    else:
        assert is_loaded
        pickles.load(folder / "saved.pkl", check)
