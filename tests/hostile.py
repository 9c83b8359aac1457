"""The smallest results there can be, and pickles as only a stranger would write them."""

import copy
import gzip
import io
import pickle
import pickletools
import re
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llava_lens import checks, pickles, schema

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
    """`(run, record, part)` of a run."""
    run = {"format_version": schema.FORMAT_VERSION, "model": "m", "revision": "r", "words": "0"}
    run |= {"dtype": "float32", "quantize": None, "packages": {}, "segments": schema.SEGMENTS}
    run |= {"n_layers": N_LAYERS - 1, "layers": ["emb", "1", "2"], "last_layer_jsd": 0.0}
    run |= {"tokens": [f"▁{i}" for i in range(D_VOCAB)], "categories": ["dog", "cat"]}
    run |= {"image_size": 8, "grid": [GRID, GRID], "n_image_tokens": GRID**2}
    run |= {"chat": "USER: <image>\n{question} ASSISTANT:", "questions": {"object": "What is it?"}}
    run |= {"own_prompts": [], "per_kind": 1, "seed": 0, "top_k": TOP_K, "max_new_tokens": 2}
    run |= {"knockout_windows": [[1, 1], [1, N_LAYERS - 1]], "route_layers": []}
    run |= {"embedding_lens": True, "tied": False}
    word = {"word_prob": np.full(N_LAYERS, 0.5, "f4"), "word_rank": np.ones(N_LAYERS, np.uint8)}
    control = {"target_prob": word["word_prob"], "target_rank": word["word_rank"], **word}
    windows = np.zeros(len(run["knockout_windows"]), np.float32)
    cuts = {cut: windows if field.kind == "f" else 0.0 for cut, field in schema.KNOCKOUT.items()}
    prompt = {"kind": "own", "question": "?", "truth": None, "truth_from": "", "answer": "!"}
    prompt |= {"categories": ["dog"], "absent_sampling": "", "word_ids": [3, 5], "word_at": 0}
    prompt |= {"token_ids": np.array([1, 2, 3]), "n_prompt": 2, "answer_ids": np.array([3, 4])}
    prompt |= {**word, "readings": make_readings(3), "grey": control, "other": control}
    prompt["knockout"] = cuts
    seen = {"category": "dog", "box": [0.0, 1.0, 2.0, 3.0], "crowd": False, "cut_off": False}
    seen |= {"color": None, "color_from": "", "visible": 1.0, "share": 0.1}
    log2_probs = np.full((N_LAYERS, GRID**2), -3, np.float16)
    watched = {"category": "dog", "present": True, "token_ids": [3, 4], "absent_sampling": ""}
    watched["cosines"] = np.full_like(log2_probs, 0.1)
    cosines = np.full((2, GRID**2, schema.N_NEAREST), 0.1, np.float16)
    nearest = {"embedding_ids": np.zeros_like(cosines, np.uint8), "embedding_cosines": cosines}
    nearest["norms"] = np.full_like(log2_probs, 9)
    record = {"name": "a.jpg", "image_digest": "0", "annotations_digest": "0"}
    record |= {"objects": [seen], "words": [{**watched, "log2_probs": log2_probs}]}
    record |= {"patches": make_readings(GRID**2) | nearest, "prompts": [prompt]}
    record["crop"] = np.zeros((8, 8, 3), np.uint8)
    part = {
        "images": ["a.jpg"],
        "skipped": {"b.jpg": "it is damaged"},
        "n_images": np.ones(3, int),
        "sums": np.full((3, N_LAYERS, D_VOCAB), 1 / D_VOCAB),
    }
    return run, copy.deepcopy(record), part


RUN, RECORD, PART = make_results()
RUN["route_layers"] = [0, 1, 2]
LD = np.array([2.5, 0, -2.5], np.float32)
NAMES = {"other": "china.jpg", "other_answer": "cat", "own_id": 3, "other_id": 4}
ROUTE = {**NAMES, "own": 2.5, "counterfactual": -2.5, "mediated": 0.5}
RECORD["prompts"][0]["route"] = ROUTE | dict.fromkeys(("image", "question", "last"), LD)
CHECKS = {
    "run": (RUN, checks.check_run),
    "record": (RECORD, partial(checks.check_record, run=RUN, name="a.jpg")),
    "part": (PART, partial(checks.check_part, run=RUN)),
}


def save_results(folder, texts, names=None):
    """Save results with a record per text, that text in every place where a text can be."""
    run, record, part = make_results()
    singles = ("model", "revision", "dtype", "chat")
    run |= {name: texts[at % len(texts)] for at, name in enumerate(singles)}
    run["packages"] = run["questions"] = {text: text for text in texts[:3]}
    run["categories"] = texts
    asked = {"kind": "own", "question": texts[0], "truth": texts[1], "categories": [texts[-1]]}
    run["own_prompts"] = [asked | {"truth_from": texts[2 % len(texts)], "absent_sampling": ""}]
    labels = (texts if names is None else names) * 20
    run["tokens"] = [label[: schema.MOST_LABEL] for label in labels[:D_VOCAB]]
    pickles.save(folder / "run.pkl", run, checks.check_run)
    part["images"] = [
        f"{at:02}" + re.sub(r"[/\\]", "|", name) for at, name in enumerate(names or texts)
    ]
    for at, (name, text) in enumerate(zip(part["images"], texts, strict=True)):
        said = {"question": text, "truth": text, "truth_from": text, "categories": [text]}
        prompt = record["prompts"][0] | said | {"answer": text + "!"}
        (seen,), (word,) = record["objects"], record["words"]
        absent = {"category": texts[at - 1], "present": False, "absent_sampling": "random"}
        saved = record | {
            "name": name,
            "objects": [seen | {"category": text, "color": text, "color_from": text}],
            "prompts": [prompt | {"kind": kind} for kind in ("presence", "colour")],
            "words": [word | {"category": text}, word | absent],
        }
        check = partial(checks.check_record, run=run, name=name)
        pickles.save(folder / "images" / f"{name}.pkl", saved, check)
    part |= {"skipped": dict(zip(texts, texts, strict=True)), "sums": part["sums"] * len(texts)}
    pickles.save(folder / "parts/0.pkl", part | {"n_images": part["n_images"] * len(texts)})
    return folder


def peak() -> int:
    """Of this process's memory, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@contextmanager
def within(seconds=20):
    """What is done within takes at most so long of the processor, and 1 GB of memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak()
    signal.signal(signal.SIGPROF, lambda *_: pytest.fail(f"it takes more than {seconds} s"))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert peak() - before < 10**6


def write(folder, pickled: bytes):
    path = folder / "file.pkl"
    path.write_bytes(gzip.compress(pickled, 1))
    return path


def refused(path, check=lambda value: None, why=""):
    """Assert that the file is refused with the one error that names it."""
    what = r"file\.pkl.* is damaged, of another release, or no result of this project "
    with pytest.raises(ValueError, match=rf"{what}\(.*(?:{why}).*get it again, or read"):
        pickles.load(path, check)


def pickled(value, protocol=5) -> bytes:
    """A pickle without a memo, as `save` writes it, but not looked at."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.fast, pickler.dispatch_table = True, {np.ndarray: pickles._as_call}
    pickler.dump(value)
    return file.getvalue()


def unframed(data: bytes) -> bytes:
    at = [pos for opcode, _, pos in pickletools.genops(data) if opcode.name == "FRAME"]
    for pos in reversed(at):
        data = data[:pos] + data[pos + 9 :]
    return data


class Opcodes(bytes):
    """Stands for a value that can't be pickled plainly."""


def body(value) -> bytes:
    """The pickle of a plain value without its beginning and end, to be put into another."""
    return value if type(value) is Opcodes else pickled(value, 3)[2:-1]


def string(text):
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def whole(*opcodes: bytes) -> bytes:
    return pickle.PROTO + b"\5" + b"".join(opcodes) + pickle.STOP


def call_of(module, name, *arguments) -> Opcodes:
    """The opcodes of a call with three arguments."""
    function = string(module) + string(name) + pickle.STACK_GLOBAL
    return Opcodes(function + b"".join(map(body, arguments)) + pickle.TUPLE3 + pickle.REDUCE)


NDARRAY = Opcodes(string("numpy") + string("ndarray") + pickle.STACK_GLOBAL)
ARRAY = call_of("numpy", "ndarray", [2], "<f4", bytes(8))  # two zeros


def with_value(value, where, new):
    """`value` with what is at `where` (a path of keys) replaced."""
    if not where:
        return new
    new_value = value.copy()
    new_value[where[0]] = with_value(value[where[0]], where[1:], new)
    return new_value


def places(value, where=()):
    """All paths of keys within a value."""
    items = value.items() if isinstance(value, dict) else []
    items = enumerate(value) if isinstance(value, list) else items
    return [where, *(path for key, inner in items for path in places(inner, (*where, key)))]
