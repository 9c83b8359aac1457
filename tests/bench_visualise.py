"""Time and memory of Visualise_Analyse on synthetic records of LLaVA-1.5-7B's real shape. Run by hand:

    python tests/bench_visualise.py [number of images, default 100]

33 layers, 576 patches, prompts of the six usual lengths, top-10, a vocabulary of 32,064 with Cyrillic, CJK and byte tokens; the numbers are random.
Prints seconds and peak memory of the executed notebook and leaves it as a page in the folder that it names.
"""
import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import lens_utils as lu  # noqa: E402

N_LAYERS, GRID, D_VOCAB, TOP_K = 33, 24, 32_064, 10
KINDS = [("object", "dog"), ("presence", "yes"), ("presence", "no"), ("colour", None), ("relation", "left"), ("description", None)]


def make_tokens(rng) -> list[str]:
    """Labels of Llama-2's kinds: bytes, words with and without a leading space, Cyrillic, CJK."""
    alphabets = ["abcdefghijklmnop", "абвгдежзиклмнопр", "的一是不了人我在有他这中大来上"]
    tokens = ["<unk>", "<s>", "</s>", "dog", "▁dog"] + [f"<0x{byte:02X}>" for byte in range(256)]
    while len(tokens) < D_VOCAB:
        letters = alphabets[rng.choice(3, p=[0.75, 0.2, 0.05])]
        tokens.append("▁" * rng.integers(2) + "".join(rng.choice(list(letters), rng.integers(1, 9))))
    return tokens


def make_readings(rng, n_pos: int) -> dict:
    shape, jsd = (N_LAYERS, n_pos), rng.random((N_LAYERS, n_pos), dtype=np.float32)
    # Tokens become steadier and surer towards the last layer.
    own = rng.integers(D_VOCAB, size=(n_pos, TOP_K))
    top_ids = np.where(np.arange(N_LAYERS)[:, None, None] > rng.integers(10, 30, (1, n_pos, 1)), own, rng.integers(D_VOCAB, size=(*shape, TOP_K)))
    sure = np.linspace(0.05, 0.9, N_LAYERS, dtype=np.float32)[:, None, None]
    rank = np.where(np.arange(N_LAYERS)[:, None] > rng.integers(10, 30, (1, n_pos)), 1, rng.integers(2, D_VOCAB, shape))
    return {
        "top_ids": top_ids.astype(np.uint16), "top_probs": (sure * 0.5 ** np.arange(TOP_K) * np.ones((*shape, 1))).astype(np.float32),
        "jsd_prev": jsd, "jsd_final": jsd[::-1], "entropy": 15 * jsd, "target_prob": jsd, "target_rank": rank.astype(np.int32),
    }


def make_record(rng, name: str, jpeg: np.ndarray) -> dict:
    prompts = []
    for kind, truth in KINDS:
        n_prompt, n_answer = (40, 2) if kind != "description" else (12, 20)
        prompts.append({
            "kind": kind, "question": f"A question of the kind {kind}?", "truth": truth, "answer": truth or "red",
            "token_ids": rng.integers(D_VOCAB, size=n_prompt + n_answer - 1), "n_prompt": n_prompt, "answer_ids": rng.integers(D_VOCAB, size=n_answer),
            "readings": make_readings(rng, n_prompt + n_answer - 1),
        })
    # Flat early layers keep the whole vocabulary, peaked late ones a few hundred tokens.
    rows = [scipy.sparse.random_array((1, D_VOCAB), density=1.0 if layer < 16 else 0.01, rng=rng, dtype=np.float32) for layer in range(N_LAYERS)] * 3
    mean = scipy.sparse.csr_array(scipy.sparse.vstack(rows)) / D_VOCAB
    return {
        "name": name, "objects": [{"category": "dog", "box": (40.0, 40.0, 120.0, 160.0), "crowd": False, "color": None, "visible": 1.0, "share": 0.17}],
        "patches": make_readings(rng, GRID**2), "prompts": prompts, "crop": jpeg,
        "mean_probability": {
            "data": mean.data.astype(np.float32), "indices": mean.indices.astype(np.uint16), "indptr": mean.indptr,
            "n_positions": np.array([GRID**2, 212, 25]),
        },
    }


def main(n_images: int) -> None:
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="bench_visualise_"))
    jpeg = io.BytesIO()
    Image.effect_noise((336, 336), 60).convert("RGB").save(jpeg, "JPEG")
    run = {
        "format_version": lu.FORMAT_VERSION, "model": "synthetic", "dtype": "float16", "last_layer_jsd": 0.0, "grid": GRID, "top_k": TOP_K,
        "layers": ["emb", *map(str, range(1, N_LAYERS))], "segments": lu.SEGMENTS, "tokens": make_tokens(rng),
    }
    lu.start_run(folder / "results", run)
    for number in range(n_images):
        lu.save(lu.record_path(folder / "results", f"{number:05}.jpg"), make_record(rng, f"{number:05}.jpg", np.frombuffer(jpeg.getvalue(), np.uint8)))
    size = sum(path.stat().st_size for path in lu.record_paths(folder / "results"))
    for name in ("lens_utils.py", "Visualise_Analyse.ipynb"):
        shutil.copy(ROOT / name, folder)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "html", "Visualise_Analyse.ipynb"], cwd=folder, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{n_images} images, {size / n_images / 1e6:.1f} MB each: {time.perf_counter() - start:.0f} s, peak {peak:.2f} GiB, page in {folder}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
