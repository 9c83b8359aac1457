"""Time and memory of Visualise_Analyse on synthetic records of LLaVA-1.5-7B's shape. By hand:

    python tests/bench_visualise.py [number of images, default 100] [--size 7b|tiny]

`7b`: 33 layers, 576 patches, prompts of the six usual lengths, top-10, a vocabulary of 32,064 with
Cyrillic, CJK and byte tokens; the numbers are random. `tiny`: 9 layers, 36 patches, a vocabulary of
512, for thousands of images. Prints the size of a record, the seconds that saving one takes, and
seconds and peak memory of the executed notebook, which it leaves as a page in the folder that it
names.
"""

import argparse
import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import lens_data as ld  # noqa: E402
import lens_utils as lu  # noqa: E402

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


def make_tokens(rng) -> list[str]:
    """Labels of Llama-2's kinds: bytes, words with and without a leading space, Cyrillic, CJK."""
    alphabets = ["abcdefghijklmnop", "абвгдежзиклмнопр", "的一是不了人我在有他这中大来上"]
    tokens = ["<unk>", "<s>", "</s>", "dog", "▁dog"] + [f"<0x{byte:02X}>" for byte in range(256)]
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


def make_record(rng, name: str, jpeg: np.ndarray) -> dict:
    prompts = []
    for kind, truth in KINDS:
        n_prompt, n_answer = (40, 2) if kind != "description" else (12, 20)
        prompts.append(
            {
                "kind": kind,
                "question": f"A question of the kind {kind}?",
                "truth": truth,
                "categories": [],
                "answer": truth or "red",
                "token_ids": rng.integers(D_VOCAB, size=n_prompt + n_answer - 1),
                "n_prompt": n_prompt,
                "answer_ids": rng.integers(D_VOCAB, size=n_answer),
                "readings": make_readings(rng, n_prompt + n_answer - 1),
                "grey": {
                    "target_prob": rng.random(N_LAYERS, dtype=np.float32),
                    "target_rank": rng.integers(1, 99, N_LAYERS).astype(np.uint16),
                },
            }
        )
    return {
        "name": name,
        "image_digest": "0",
        "annotations_digest": "0",
        "objects": [
            {
                "category": f"dog{at}" if at else "dog",
                "box": [4.0, 4.0, 12.0 + 20 * at, 16.0],
                "crowd": False,
                "color": None,
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
                "several_tokens": False,
                "log2_probs": -20 * rng.random((N_LAYERS, GRID**2)).astype(np.float16),
            }
            for at in range(6)
        ],
    }


def make_run(rng) -> dict:
    return {
        "format_version": lu.FORMAT_VERSION,
        "model": "synthetic",
        "revision": "",
        "dtype": "float16",
        "packages": {},
        "n_layers": N_LAYERS - 1,
        "layers": ["emb", *map(str, range(1, N_LAYERS))],
        "segments": lu.SEGMENTS,
        "tokens": make_tokens(rng),
        "grid": GRID,
        "image_size": IMAGE_SIZE,
        "chat": ld.CHAT,
        "questions": ld.QUESTIONS,
        "own_prompts": [],
        "per_kind": 1,
        "seed": 0,
        "top_k": TOP_K,
        "max_new_tokens": 20,
        "last_layer_jsd": 0.0,
    }


def main() -> None:
    global N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=int, nargs="?", default=100)
    parser.add_argument("--size", choices=SIZES, default="7b")
    args = parser.parse_args()
    N_LAYERS, GRID, IMAGE_SIZE, D_VOCAB = SIZES[args.size]
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="bench_visualise_"))
    results, jpeg = lu.Results(folder / "results"), io.BytesIO()
    Image.effect_noise((IMAGE_SIZE, IMAGE_SIZE), 60).convert("RGB").save(jpeg, "JPEG")
    results.begin(make_run(rng))
    mean = rng.dirichlet(np.full(D_VOCAB, 0.01), size=(3, N_LAYERS)).astype(np.float32)
    seconds = 0.0
    for number in range(args.images):
        record = make_record(rng, f"{number:05}.jpg", np.frombuffer(jpeg.getvalue(), np.uint8))
        start = time.perf_counter()
        results.add(record, mean)
        seconds += time.perf_counter() - start
    size = sum(path.stat().st_size for path in results.folder.glob("images/*.pkl"))
    print(
        f"{args.images} images, {size / args.images / 1e6:.2f} MB per record, "
        f"{seconds / args.images:.3f} s to save one with the sums",
        flush=True,
    )
    for path in [*ROOT.glob("lens_*.py"), ROOT / "Visualise_Analyse.ipynb"]:
        shutil.copy(path, folder)
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
