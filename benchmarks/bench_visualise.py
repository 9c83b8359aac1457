"""Time and memory of Visualise_Analyse on synthetic records of LLaVA-1.5-7B's shape. By hand:

    python benchmarks/bench_visualise.py [number of images, default 100] [--size 7b|tiny]
                                    [--values realistic|random]

`7b`: 33 layers, 576 patches, prompts of the six usual lengths, top-10, a vocabulary of 32,064 with
Cyrillic, CJK and byte tokens. `tiny`: 9 layers, 36 patches, a vocabulary of 512, for thousands of
images. `realistic` values are made after published readings of LLaVA-1.5-7B
(JadenFiotto-Kaufman/CVPR2026-HOW): top-1 from 0.005 to 0.6, the same few tokens in most patches of
the background, an object's word in several spellings; `random` ones hardly compress. Prints the
size of a record, the seconds that saving one takes, and seconds and peak memory of the executed
notebook, which it leaves as a page in the folder that it names.
"""

import argparse
import functools
import io
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
KINDS = [
    ("object", "dog"),
    ("presence", "yes"),
    ("presence", "no"),
    ("colour", None),
    ("relation", "left"),
    ("description", None),
]


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
# Boxes on the crop of china.jpg as shares of its side.
BOXES = [("temple", 0, 0.06, 0.62, 0.9), ("tree", 0.5, 0.65, 0.5, 0.35),
         ("tree", 0, 0.78, 0.45, 0.22), ("boat", 0.74, 0.52, 0.19, 0.05)]  # fmt: skip


def use(size: str) -> None:
    """Set the shape of all that is made here."""
    global N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB
    N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB = SIZES[size]


@functools.cache
def known_tokens() -> list[str]:
    """Labels that stand at the start of the vocabulary, whatever its size."""
    spellings = [token for word in SPELLINGS.values() for token in word]
    tokens = ["<unk>", "<s>", "</s>", "dog", *REPEATED, *ODD, *spellings]
    return list(dict.fromkeys(tokens))


def ids_of(tokens) -> list[int]:
    return [known_tokens().index(token) for token in tokens]


def make_tokens(rng) -> list[str]:
    """Labels of Llama-2's kinds: bytes, words with and without a leading space, Cyrillic, CJK."""
    alphabets = ["abcdefghijklmnop", "абвгдежзиклмнопр", "的一是不了人我在有他这中大来上"]
    tokens = known_tokens() + [f"<0x{byte:02X}>" for byte in range(256)]
    while len(tokens) < D_VOCAB:
        letters = alphabets[rng.choice(3, p=[0.75, 0.2, 0.05])]
        tokens.append(
            "▁" * rng.integers(2) + "".join(rng.choice(list(letters), rng.integers(1, 9)))
        )
    return tokens


def make_readings(rng, n_pos: int) -> dict:
    shape, jsd = (N_LAYERS, n_pos), rng.random((N_LAYERS, n_pos), dtype=np.float32)
    # Tokens become steadier and surer towards the last layer.
    own = rng.integers(D_VOCAB, size=(n_pos, TOP_K))
    top_ids = np.where(
        np.arange(N_LAYERS)[:, None, None] > rng.integers(N_LAYERS // 3, N_LAYERS, (1, n_pos, 1)),
        own,
        rng.integers(D_VOCAB, size=(*shape, TOP_K)),
    )
    probs = (
        -np.sort(-rng.random((*shape, TOP_K), dtype=np.float32))
        * np.linspace(0.05, 0.9, N_LAYERS, dtype=np.float32)[:, None, None]
        / TOP_K
    )
    rank = np.where(
        np.arange(N_LAYERS)[:, None] > rng.integers(N_LAYERS // 3, N_LAYERS, (1, n_pos)),
        1,
        rng.integers(2, D_VOCAB, shape),
    )
    return {
        "top_ids": top_ids.astype(np.uint16),
        "top_probs": probs,
        "jsd_prev": np.where(np.arange(N_LAYERS)[:, None] > 0, jsd, np.float32(np.nan)),
        "jsd_final": jsd[::-1].copy(),
        "entropy": np.float32(np.log2(D_VOCAB)) * jsd,
        "target_prob": jsd,
        "target_rank": rank.astype(np.uint16),
    }


def coverage(category: str) -> np.ndarray:
    """The share of each patch `[patch]` that the category's boxes in BOXES cover."""
    covers = [
        data_crop.patch_coverage([side * IMAGE_SIZE for side in box], GRID, IMAGE_SIZE)
        for name, *box in BOXES
        if name == category
    ]
    return np.sum(covers, axis=0).clip(0, 1) if covers else np.zeros(GRID**2)


def realistic_words(rng) -> dict[str, np.ndarray]:
    """P(word) `[layer, patch]` by category: it rises from a third of the layers on, has its peak
    at three quarters, and is a tenth to a thousandth of that where the object is not."""
    depth = np.linspace(0, 1, N_LAYERS)[:, None]
    strength = 0.6 * np.exp(-(((depth - 0.78) / 0.2) ** 2))
    words = {}
    for category in SPELLINGS:
        cover = coverage(category)
        there = cover * rng.beta(1.2, 3, GRID**2) + 1e-4 * rng.lognormal(0, 1, GRID**2)
        words[category] = np.maximum(strength * there, 1e-6 * rng.lognormal(size=there.shape))
    return words


def realistic_patches(rng, words: dict[str, np.ndarray]) -> dict:
    """The readings of the patches, with P(word) `words`."""
    shape, candidates = (N_LAYERS, GRID**2), []

    def add(token_ids, probs):
        ids = np.broadcast_to(token_ids, shape)
        candidates.append((ids, np.broadcast_to(probs, shape) * rng.lognormal(0, 0.1, shape)))

    for k in range(TOP_K):
        add(rng.integers(300, D_VOCAB, shape), 0.006 * 0.85**k)
    background = rng.random(GRID**2) < 0.7
    for token, prob in REPEATED.items():
        add(ids_of([token])[0], prob * background)
    # Neighbours share an odd token, which changes every few layers.
    columns, rows = np.arange(GRID**2) % GRID // 3, np.arange(GRID**2) // GRID // 2
    odd = (columns * 7 + rows * 5 + np.arange(N_LAYERS)[:, None] // 6 * 3) % len(ODD)
    add(np.array(ids_of(ODD))[odd], rng.exponential(0.02, GRID**2) * ~background)
    for category, spellings in SPELLINGS.items():
        for token, share in spellings.items():
            add(ids_of([token])[0], share * words[category])
    ids, probs = (np.stack(part, axis=-1) for part in zip(*candidates, strict=True))
    order = np.argsort(-probs, axis=-1)
    ids, probs = (np.take_along_axis(part, order, axis=-1) for part in (ids, probs))
    target = ids[-1, :, 0]
    is_target = (ids == target[:, None]) & (probs > 0)
    rank = np.where(is_target.any(-1), is_target.argmax(-1) + 1, rng.integers(40, D_VOCAB, shape))
    return {
        **make_readings(rng, GRID**2),
        "top_ids": ids[..., :TOP_K].astype(np.uint16),
        "top_probs": probs[..., :TOP_K].astype(np.float32),
        "target_prob": np.maximum((probs * is_target).sum(-1), 1e-6).clip(0, 1).astype(np.float32),
        "target_rank": rank.astype(np.uint16),
    }


def realistic_text(rng, n_pos: int) -> dict:
    """The readings of a text: flat at first, and from a layer of its own on each position is sure
    of a token."""
    readings, depth = make_readings(rng, n_pos), np.arange(N_LAYERS)[:, None] / N_LAYERS
    sure = 1 / (1 + np.exp(-25 * (depth - rng.uniform(0.4, 0.9, n_pos)))) * rng.beta(2, 1, n_pos)
    top_probs = 0.004 * 0.8 ** np.arange(TOP_K) * rng.lognormal(0, 0.1, (N_LAYERS, n_pos, 1))
    top_probs[..., 0] = np.maximum(top_probs[..., 0], sure)
    is_sure = (sure > 0.004)[..., None]
    readings["top_ids"] = np.where(is_sure, readings["top_ids"][-1], readings["top_ids"])
    readings["target_rank"] = np.where(is_sure[..., 0], 1, readings["target_rank"]).astype("u2")
    readings["top_probs"] = top_probs.astype(np.float32)
    readings["target_prob"] = np.where(is_sure[..., 0], top_probs[..., 0], 1e-5).astype(np.float32)
    return readings


def make_record(rng, name: str, jpeg: np.ndarray, realistic: bool = False) -> dict:
    record = random_record(rng, name, jpeg)
    if not realistic:
        return record
    words = realistic_words(rng)
    there = {category for category, *_ in BOXES}
    record["objects"] = [
        {
            "category": category,
            "box": [float(side * IMAGE_SIZE) for side in box],
            "crowd": False,
            "cut_off": False,
            "color": None,
            "color_from": "",
            "visible": 1.0,
            "share": float(box[2] * box[3]),
        }
        for category, *box in BOXES
    ]
    record["words"] = [
        {
            "category": category,
            "present": category in there,
            "token_ids": sorted(ids_of([token for token, share in tokens.items() if share > 0.25])),
            "absent_sampling": "" if category in there else "random",
            "log2_probs": np.log2(
                words[category] * sum(share for share in tokens.values() if share > 0.25)
            ).astype(np.float16),
        }
        for category, tokens in SPELLINGS.items()
    ]
    record["patches"] = realistic_patches(rng, words)
    for prompt in record["prompts"]:
        prompt["readings"] = realistic_text(rng, len(prompt["token_ids"]))
        prompt["answer_ids"][:] = prompt["readings"]["top_ids"][-1, prompt["n_prompt"] - 1 :, 0]
        prompt["word_ids"] = [int(prompt["answer_ids"][0])]
    return record


def make_control(rng) -> dict:
    probs = {f"{of}_prob": rng.random(N_LAYERS, dtype=np.float32) for of in ("target", "word")}
    ranks = {f"{of}_rank": rng.integers(1, 99, N_LAYERS).astype("u2") for of in ("target", "word")}
    return {**probs, **ranks}


def random_record(rng, name: str, jpeg: np.ndarray) -> dict:
    prompts = []
    for kind, truth in KINDS:
        n_prompt, n_answer = (40, 2) if kind != "description" else (12, 20)
        prompts.append(
            {
                "kind": kind,
                "question": f"A question of the kind {kind}?",
                "truth": truth,
                "truth_from": "user" if truth else "",
                "categories": [],
                "absent_sampling": "",
                "answer": truth or "red",
                "token_ids": rng.integers(D_VOCAB, size=n_prompt + n_answer - 1),
                "n_prompt": n_prompt,
                "answer_ids": rng.integers(D_VOCAB, size=n_answer),
                "readings": make_readings(rng, n_prompt + n_answer - 1),
                "word_at": 0,
                "word_ids": [],  # set below
                "word_prob": rng.random(N_LAYERS, dtype=np.float32),
                "word_rank": rng.integers(1, 99, N_LAYERS).astype(np.uint16),
                "grey": make_control(rng),
                "other": make_control(rng),
                "knockout": {},
                "route": {},
            }
        )
    for prompt in prompts:
        prompt["word_ids"] = [int(prompt["answer_ids"][0])]
    return {
        "name": name,
        "image_digest": "0",
        "annotations_digest": "0",
        "objects": [
            {
                "category": f"dog{at}" if at else "dog",
                "box": [4.0, 4.0, 12.0 + 20 * at, 16.0],
                "crowd": False,
                "cut_off": False,
                "color": None,
                "color_from": "",
                "visible": 1.0,
                "share": 0.05 * at,
            }
            for at in range(3)
        ],
        "patches": make_readings(rng, GRID**2),
        "prompts": prompts,
        "crop": jpeg,
        "words": [  # three categories that are there, as COCO's images have, and three that are not
            {
                "category": f"dog{at}" if at else "dog",
                "present": at < 3,
                "token_ids": [4],
                "absent_sampling": "" if at < 3 else "random",
                "log2_probs": -20 * rng.random((N_LAYERS, GRID**2)).astype(np.float16),
            }
            for at in range(6)
        ],
    }


def make_crop() -> np.ndarray:
    """The centre of a photograph that scikit-learn ships, as a JPEG's bytes."""
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg") as photograph:
        crop, jpeg = ImageOps.fit(photograph, (IMAGE_SIZE, IMAGE_SIZE)), io.BytesIO()
    crop.save(jpeg, "JPEG", quality=90)
    return np.frombuffer(jpeg.getvalue(), np.uint8)


def make_run(rng) -> dict:
    return {
        "format_version": schema.FORMAT_VERSION,
        "model": "synthetic",
        "revision": "",
        "dtype": "float16",
        "packages": {},
        "n_layers": N_LAYERS - 1,
        "layers": ["emb", *map(str, range(1, N_LAYERS))],
        "segments": schema.SEGMENTS,
        "tokens": make_tokens(rng),
        "grid": GRID,
        "image_size": IMAGE_SIZE,
        "chat": kinds.CHAT,
        "questions": {name: kind.template for name, kind in kinds.KINDS.items() if kind.template},
        "own_prompts": [],
        "categories": ["dog"],
        "per_kind": 1,
        "seed": 0,
        "top_k": TOP_K,
        "max_new_tokens": 20,
        "knockout_windows": [],
        "route_layers": [],
        "last_layer_jsd": 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=int, nargs="?", default=100)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--values", choices=["realistic", "random"], default="realistic")
    args = parser.parse_args()
    use(args.size)
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="bench_visualise_"))
    results, jpeg = store.Results(folder / "results"), make_crop()
    results.begin(make_run(rng))
    mean = rng.dirichlet(np.full(D_VOCAB, 0.01), size=(3, N_LAYERS)).astype(np.float32)
    seconds = 0.0
    for number in range(args.images):
        record = make_record(rng, f"{number:05}.jpg", jpeg, args.values == "realistic")
        start = time.perf_counter()
        results.add(record, mean)
        seconds += time.perf_counter() - start
    size = sum(path.stat().st_size for path in results.folder.glob("images/*.pkl"))
    print(
        f"{args.images} images, {size / args.images / 1e6:.2f} MB per record, "
        f"{seconds / args.images:.3f} s to save one with the sums",
        flush=True,
    )
    for name in ("lens_utils.py", "Visualise_Analyse.ipynb"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "llava_lens", folder / "llava_lens")
    start = time.perf_counter()
    execute = ["nbconvert", "--execute", "--to", "html", "Visualise_Analyse.ipynb"]
    subprocess.run([sys.executable, "-m", "jupyter", *execute], cwd=folder, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"Visualise_Analyse: {time.perf_counter() - start:.0f} s, peak {peak:.2f} GiB, "
        f"page in {folder}"
    )


if __name__ == "__main__":
    main()
