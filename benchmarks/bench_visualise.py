"""Time and memory of Visualise_Analyse on synthetic records of LLaVA-1.5-7B's shape. By hand:

    python benchmarks/bench_visualise.py [number of images, default 100] [--size 7b|tiny]

`7b`: 33 layers, 576 patches, top-10, a vocabulary of 32,064. `tiny`: 9 layers, 36 patches, a
vocabulary of 512, for thousands of images. Values are made after published readings of LLaVA-1.5-7B
(JadenFiotto-Kaufman/CVPR2026-HOW): top-1 from 0.005 to 0.6, the same few tokens in most patches of
the background, an object's word in several spellings. Prints the size of a record, the seconds that
saving one takes, and time and peak memory of the executed notebook, which it leaves as a page.
"""

import argparse
import itertools
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image, ImageOps

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from llava_lens import kinds, schema, store
from llava_lens.data import crop as data_crop

SIZES = {"7b": (33, 24, 336, 32_064), "tiny": (9, 6, 84, 512)}
TOP_K = 10
KINDS = [("object", "dog"), ("presence", "yes"), ("presence", "no"), ("colour", None),
         ("relation", "left"), ("description", None)]  # with their truths  # fmt: skip

# Tokens and their probabilities in most patches of the background, and others that came up there.
REPEATED = {"olas": 0.018, "▁steps": 0.016, "▁dust": 0.012, "steps": 0.008, "atia": 0.008,
            "sa": 0.0075, "anden": 0.007, "XY": 0.006}  # fmt: skip
ODD = ["AXI", "cus", "chev", "Ξ", "uela", "▁spole", "Gill", "FIX", "ish", "ael", "eti", "&=\\",
       "▁totalité", "фев", "▁anchor", "rugu"]  # fmt: skip
# The spellings of a word, with their shares of its probability.
SPELLINGS = {
    "temple": {"▁tem": 0.4, "▁temple": 0.3, "ples": 0.2, "▁Temple": 0.06, "Tem": 0.04},
    "tree": {"▁tree": 0.5, "▁trees": 0.36, "▁branches": 0.08, "▁Tree": 0.02, "tree": 0.04},
    "boat": {"▁boat": 0.6, "▁boats": 0.4},
    "dog": {"▁dog": 0.6, "▁dogs": 0.4},
    "kite": {"▁kite": 0.7, "▁kites": 0.3},
    "person": {"▁person": 0.5, "▁people": 0.5},
}
# Labels that stand at the start of the vocabulary, whatever its size.
KNOWN = ["<unk>", "<s>", "</s>", "dog", *REPEATED, *ODD, *itertools.chain(*SPELLINGS.values())]
KNOWN = list(dict.fromkeys(KNOWN))
# Boxes on the crop of china.jpg as shares of its side.
BOXES = [("temple", 0, 0.06, 0.62, 0.9), ("tree", 0.5, 0.65, 0.5, 0.35),
         ("tree", 0, 0.78, 0.45, 0.22), ("boat", 0.74, 0.52, 0.19, 0.05)]  # fmt: skip


def use(size: str) -> None:
    """Set the shape of all that is made here."""
    global N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB
    N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB = SIZES[size]


def make_tokens(rng) -> list[str]:
    """Labels of Llama-2's kinds: bytes, words with and without a leading space, Cyrillic, CJK."""
    alphabets = ["abcdefghijklmnop", "абвгдежзиклмнопр", "的一是不了人我在有他这中大来上"]
    tokens = KNOWN + [f"<0x{byte:02X}>" for byte in range(256)]
    while len(tokens) < D_VOCAB:
        letters = list(alphabets[rng.choice(3, p=[0.75, 0.2, 0.05])])
        word = "".join(rng.choice(letters, rng.integers(1, 9)))
        tokens.append("▁" * rng.integers(2) + word)
    return tokens


def make_readings(rng, top_ids, top_probs, target_prob, target_rank) -> dict:
    """Readings of these top-k `[layer, pos, top_k]` and of these targets `[layer, pos]`."""
    jsd = rng.random(target_prob.shape, dtype=np.float32)
    jsd_prev = jsd.copy()
    jsd_prev[0] = np.nan
    return {
        "top_ids": top_ids.astype(np.uint16),
        "top_probs": top_probs.astype(np.float32),
        "jsd_prev": jsd_prev,
        "jsd_final": jsd[::-1].copy(),
        "entropy": np.float32(np.log2(D_VOCAB)) * jsd,
        "target_prob": target_prob.astype(np.float32),
        "target_rank": target_rank.astype(np.uint16),
    }


def places() -> dict:
    """RUN's fields about the patches."""
    return {"grid": [GRID, GRID], "image_size": IMAGE_SIZE, "n_image_tokens": GRID**2}


def word_probs(rng) -> dict[str, np.ndarray]:
    """P(word) `[layer, patch]` by category: it rises from a third of the layers on, has its peak
    at three quarters, and is a tenth to a thousandth of that where the object is not."""
    depth = np.linspace(0, 1, N_LAYERS)[:, None]
    strength = 0.6 * np.exp(-(((depth - 0.78) / 0.2) ** 2))
    words = {}
    for category in SPELLINGS:
        cover = np.zeros(GRID**2)
        for name, *box in BOXES:
            if name == category:
                cover += data_crop.patch_coverage(np.multiply(box, IMAGE_SIZE), places())
        there = cover.clip(0, 1) * rng.beta(1.2, 3, GRID**2)
        there += 1e-4 * rng.lognormal(0, 1, GRID**2)
        words[category] = np.maximum(strength * there, 1e-6 * rng.lognormal(size=there.shape))
    return words


def patch_readings(rng, words: dict[str, np.ndarray]) -> dict:
    """The readings of the patches, with P(word) `words`."""
    shape, candidates = (N_LAYERS, GRID**2), []

    def add(token_ids, probs):
        ids = np.broadcast_to(token_ids, shape)
        candidates.append((ids, np.broadcast_to(probs, shape) * rng.lognormal(0, 0.1, shape)))

    for k in range(TOP_K):
        add(rng.integers(300, D_VOCAB, shape), 0.006 * 0.85**k)
    background = rng.random(GRID**2) < 0.7
    for token, prob in REPEATED.items():
        add(KNOWN.index(token), prob * background)
    # Neighbours share an odd token, which changes every few layers.
    columns, rows = np.arange(GRID**2) % GRID // 3, np.arange(GRID**2) // GRID // 2
    odd = (columns * 7 + rows * 5 + np.arange(N_LAYERS)[:, None] // 6 * 3) % len(ODD)
    add(
        np.array([KNOWN.index(token) for token in ODD])[odd],
        rng.exponential(0.02, GRID**2) * ~background,
    )
    for category, spellings in SPELLINGS.items():
        for token, share in spellings.items():
            add(KNOWN.index(token), share * words[category])
    ids, probs = (np.stack(part, axis=-1) for part in zip(*candidates, strict=True))
    order = np.argsort(-probs, axis=-1)
    ids, probs = (np.take_along_axis(part, order, axis=-1) for part in (ids, probs))
    target = ids[-1, :, 0]
    is_target = (ids == target[:, None]) & (probs > 0)
    rank = np.where(is_target.any(-1), is_target.argmax(-1) + 1, rng.integers(40, D_VOCAB, shape))
    target_prob = np.maximum((probs * is_target).sum(-1), 1e-6).clip(0, 1)
    return make_readings(rng, ids[..., :TOP_K], probs[..., :TOP_K], target_prob, rank)


def text_readings(rng, n_pos: int) -> dict:
    """The readings of a text: flat at first, and from a layer of its own on each position is sure
    of a token."""
    shape, depth = (N_LAYERS, n_pos), np.arange(N_LAYERS)[:, None] / N_LAYERS
    sure = 1 / (1 + np.exp(-25 * (depth - rng.uniform(0.4, 0.9, n_pos)))) * rng.beta(2, 1, n_pos)
    probs = 0.004 * 0.8 ** np.arange(TOP_K) * rng.lognormal(0, 0.1, (*shape, 1))
    probs[..., 0] = np.maximum(probs[..., 0], sure)
    is_sure = sure > 0.004
    is_sure[-1] = True
    ids = rng.integers(D_VOCAB, size=(*shape, TOP_K))
    ids = np.where(is_sure[..., None], ids[-1], ids)
    rank = np.where(is_sure, 1, rng.integers(2, D_VOCAB, shape))
    return make_readings(rng, ids, probs, np.where(is_sure, probs[..., 0], 1e-5), rank)


def make_object(category: str, *sides: float) -> dict:
    """An object with its box: x, y, width and height, in shares of the crop's side."""
    box = [float(side * IMAGE_SIZE) for side in sides]
    about = {"crowd": False, "color": None, "color_from": "", "visible": 1.0, "cut_off": False}
    return {"category": category, "box": box, "share": float(sides[2] * sides[3]), **about}


def make_control(rng) -> dict:
    probs = {f"{of}_prob": rng.random(N_LAYERS, dtype=np.float32) for of in ("target", "word")}
    ranks = {f"{of}_rank": rng.integers(1, 99, N_LAYERS).astype("u2") for of in ("target", "word")}
    return probs | ranks


def route_layers() -> np.ndarray:
    """The layers that are patched: all of up to 13, else 17."""
    return np.linspace(0, N_LAYERS - 1, N_LAYERS if N_LAYERS <= 13 else 17).round().astype(int)


def make_route(rng) -> dict:
    """The image hands its answer to the question, and the question to the last position, each
    around a depth of its own. LD is `own` for the own answer, and its negative for the other's."""
    own, depth = rng.uniform(2, 12), route_layers() / (N_LAYERS - 1)
    leaves = rng.normal(0.35, 0.1)
    left = 1 / (1 + np.exp(-20 * (depth - leaves)))
    handed = 1 / (1 + np.exp(-20 * (depth - leaves - rng.uniform(0.05, 0.3))))
    effects = {"image": 1 - left, "question": left * (1 - handed), "last": handed}
    route = {"other": "00000.jpg", "other_answer": "blue", "own_id": 1, "other_id": 2}
    route |= {"own": own, "counterfactual": -own, "mediated": own * rng.uniform(-1, 1)}
    return route | {name: (own * (1 - 2 * e)).astype("f4") for name, e in effects.items()}


def knockout_windows() -> list[list[int]]:
    """Ten windows of a quarter of the blocks, and all blocks."""
    width = (N_LAYERS - 1) // 4
    firsts = np.unique(np.linspace(1, N_LAYERS - width, 10).round().astype(int)).tolist()
    return [[first, first + width - 1] for first in firsts] + [[1, N_LAYERS - 1]]


def make_knockout(rng, has_objects: bool) -> dict:
    windows = rng.random((2, len(knockout_windows())), dtype=np.float32)
    of_objects = dict(zip(schema.OF_OBJECTS, windows, strict=True)) if has_objects else {}
    return of_objects | {cut: rng.random() for cut in ("image", "image_last", "question_last")}


def make_prompt(rng, kind: str, truth: str | None) -> dict:
    n_prompt, n_answer = (40, 2) if kind != "description" else (12, 20)
    readings = text_readings(rng, n_prompt + n_answer - 1)
    answer_ids = readings["top_ids"][-1, n_prompt - 1 :, 0].astype(int)
    about = {"kind": kind, "question": f"A question of the kind {kind}?", "categories": []}
    about |= {"truth": truth, "truth_from": "user" if truth else "", "absent_sampling": ""}
    return {
        **about,
        "answer": truth or "red",
        "token_ids": rng.integers(D_VOCAB, size=n_prompt + n_answer - 1),
        "n_prompt": n_prompt,
        "answer_ids": answer_ids,
        "readings": readings,
        "word_at": 0,
        "word_ids": [int(answer_ids[0])],
        **{name: values for name, values in make_control(rng).items() if "word" in name},
        "grey": make_control(rng),
        "other": make_control(rng),
        "knockout": make_knockout(rng, kind != "description"),
        "route": make_route(rng),
    }


def make_record(rng, name: str, crop: np.ndarray) -> dict:
    probs, words = word_probs(rng), []
    for category, tokens in SPELLINGS.items():
        whole = {token: share for token, share in tokens.items() if share > 0.25}
        present = category in {box[0] for box in BOXES}
        log2_probs = np.log2(probs[category] * sum(whole.values())).astype(np.float16)
        about = {
            "category": category,
            "present": present,
            "token_ids": sorted(map(KNOWN.index, whole)),
        }
        sampling = "" if present else "random"
        words.append({**about, "absent_sampling": sampling, "log2_probs": log2_probs})
    patches = patch_readings(rng, probs)
    add_embedding_lens(rng, patches, words)
    return {
        "name": name,
        "image_digest": "0",
        "annotations_digest": "0",
        "objects": [make_object(*box) for box in BOXES],
        "patches": patches,
        "prompts": [make_prompt(rng, *asked) for asked in KINDS],
        "crop": crop,
        "words": words,
    }


def add_embedding_lens(rng, patches: dict, words: list[dict]) -> None:
    """The logit lens's tokens with small cosines, and norms that grow; a patch in a hundred is a
    sink."""
    shape = patches["top_ids"].shape[:2]
    cosines = np.sort(rng.normal(0.05, 0.02, (*shape, schema.N_NEAREST)))[:, :, ::-1]
    patches["embedding_ids"] = patches["top_ids"][::2, :, : schema.N_NEAREST]
    patches["embedding_cosines"] = cosines[::2].astype(np.float16)
    norms = rng.lognormal(0, 0.2, shape) * np.linspace(1, 60, shape[0])[:, None]
    norms[:, rng.random(shape[1]) < 0.01] *= 9
    patches["norms"] = norms.astype(np.float16)
    for word in words:
        noise = rng.normal(0, 0.01, shape)
        word["cosines"] = (0.1 + word["log2_probs"] / 300 + noise).astype(np.float16)


def make_crop() -> np.ndarray:
    """The centre of a photograph that scikit-learn ships `[row, column, rgb]`."""
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg") as photograph:
        return np.asarray(ImageOps.fit(photograph, (IMAGE_SIZE, IMAGE_SIZE)))


def make_run(rng) -> dict:
    fixed = {"model": "synthetic", "revision": "", "dtype": "float16", "quantize": None}
    fixed |= {"packages": {}, "own_prompts": [], "categories": ["dog"], "per_kind": 1, "seed": 0}
    return {
        **fixed,
        "top_k": TOP_K,
        "format_version": schema.FORMAT_VERSION,
        "n_layers": N_LAYERS - 1,
        "layers": ["emb", *map(str, range(1, N_LAYERS))],
        "segments": schema.SEGMENTS,
        "tokens": make_tokens(rng),
        **places(),
        "chat": kinds.CHAT,
        "words": "",
        "questions": {name: kind.template for name, kind in kinds.KINDS.items() if kind.template},
        "max_new_tokens": 20,
        "embedding_lens": True,
        "tied": False,
        "knockout_windows": knockout_windows(),
        "route_layers": route_layers().tolist(),
        "last_layer_jsd": 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=int, nargs="?", default=100)
    parser.add_argument("--size", choices=SIZES, default="7b")
    args = parser.parse_args()
    use(args.size)
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="bench_visualise_"))
    results, crop = store.Results(folder / "results"), make_crop()
    results.begin(make_run(rng))
    mean = rng.dirichlet(np.full(D_VOCAB, 0.01), size=(3, N_LAYERS)).astype(np.float32)
    seconds = 0.0
    for number in range(args.images):
        record = make_record(rng, f"{number:05}.jpg", crop)
        start = time.perf_counter()
        results.add(record, mean)
        seconds += time.perf_counter() - start
    size = sum(path.stat().st_size for path in results.folder.glob("images/*.pkl"))
    print(f"{args.images} images, {size / args.images / 1e6:.2f} MB per record", end=", ")
    print(f"{seconds / args.images:.3f} s to save one with the sums", flush=True)
    for name in ("lens_utils.py", "Visualise_Analyse.ipynb"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "llava_lens", folder / "llava_lens")
    start = time.perf_counter()
    execute = ["nbconvert", "--execute", "--to", "html", "--template", "classic"]
    command = [sys.executable, "-m", "jupyter", *execute, "Visualise_Analyse.ipynb"]
    subprocess.run(command, cwd=folder, check=True)
    used, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    print(f"Visualise_Analyse: {seconds:.0f} s, {cpu:.0f} s of CPU, peak {peak:.2f} GiB", end=", ")
    print(f"page in {folder}")


if __name__ == "__main__":
    main()
