"""Plant truths, let the report speak, and count what it claims.

    python benchmarks/simulate_report.py [number of data sets per row, 200]

prints the table of the README: how often each claim of the report is made where it is true and
where it is not, and how often intervals hold the true value. Records are made as Make_Analyse saves
them, with curves of P(word) whose timing, height and noise are chosen, and go through `lens_tables`
and `lens_report` as the notebook's do. `tests/test_simulation.py` runs a short form.
"""

import itertools
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from llava_lens.analysis import (
    answers,
    causal,
    curves,
    grounding,
    presence,
    report_causal,
    report_image,
    report_layers,
    stats,
)
from llava_lens.data import crop

N_LAYERS, GRID = 33, 6
CATEGORIES = [f"thing{number}" for number in range(12)]
TOKENS = ["▁word", *(f"▁rival{number}" for number in range(5)), *(f"▁{c}" for c in CATEGORIES)]
RUN = {
    "layers": ["emb", *map(str, range(1, N_LAYERS))],
    "n_layers": N_LAYERS - 1,
    "tokens": TOKENS,
    "grid": GRID,
    "image_size": 60,
    "categories": CATEGORIES,
    "knockout_windows": [[block, block + 8] for block in range(1, 25, 3)] + [[1, 32]],
}
FEW_LAYERS = {**RUN, "layers": ["emb", "8", "16", "24", "32"]}  # of patches, to be fast


def log_odds(prob):
    """Log-odds of a probability."""
    return np.log(prob / (1 - prob))


def prob_of(odds):
    """The probability of log-odds."""
    return 1 / (1 + np.exp(-odds))


# ---- Answers -----------------------------------------------------------------------------------


def noise(rng, sd: float) -> np.ndarray:
    """Of log-odds, per layer: what a layer has, the next has in part."""
    values = rng.normal(0, sd, N_LAYERS)
    for layer in range(1, N_LAYERS):
        values[layer] = 0.7 * values[layer - 1] + 0.714 * values[layer]
    return values


def curve(rng, layer: float, height: float, sd: float, scale: str = "odds") -> np.ndarray:
    """P(word) `[layer]` that rises from 0.01 to about `height` around `layer`, straight in `scale`:
    either half of the way in log-odds or half in probability is at `layer`."""
    rise = prob_of((np.arange(N_LAYERS) - layer) / 1.2)
    rise = (rise - rise[0]) / (rise[-1] - rise[0])
    start, end = log_odds(0.01), log_odds(height) + rng.normal(0, 0.3)
    odds = start + rise * (end - start)
    if scale == "probability":
        odds = log_odds(0.01 + rise * (prob_of(end) - 0.01))
    return prob_of(odds + noise(rng, sd))


def reading(prob: np.ndarray) -> dict:
    """READINGS at one position where the word has `prob` `[layer]`, and five rivals the rest."""
    probs = np.column_stack([prob, *(share * (1 - prob) for share in (0.6, 0.2, 0.1, 0.06, 0.04))])
    order = np.argsort(-probs, axis=1)[:, :5]
    rank = 1 + (probs > prob[:, None]).sum(axis=1)
    series = {name: np.zeros((N_LAYERS, 1)) for name in curves.SERIES_IN_BITS}
    return {
        "top_ids": order[:, None].astype(np.uint16),
        "top_probs": np.take_along_axis(probs, order, axis=1)[:, None],
        "target_prob": prob[:, None],
        "target_rank": rank[:, None],
        **series,
    }


def prompt(kind: str, prob: np.ndarray, control: np.ndarray) -> dict:
    """PROMPT with a one-word answer."""
    readings = reading(prob)
    rank = readings["target_rank"][:, 0]
    controlled = {"word_prob": control, "word_rank": rank}
    return {
        "kind": kind,
        "question": "?",
        "truth": None,
        "answer": "word",
        "categories": [],
        "token_ids": np.zeros(1, int),
        "n_prompt": 1,
        "answer_ids": np.zeros(1, int),
        "word_ids": [0],
        "word_prob": prob,
        "word_rank": rank,
        "readings": readings,
        "grey": controlled,
        "other": controlled,
        "knockout": {},
    }


def answers_of(rng, n: int, plan: dict, image_effect: float = 2.0, n_prompts: int = 1) -> list:
    """Records of `n` images: `plan` has per kind a function of `(rng, layer)` that makes the pair
    of curves, with the image and with the control's; `layer` varies between images by
    `image_effect` and within them by 1.5."""
    empty = {
        "top_ids": np.zeros((N_LAYERS, 1, 1), np.uint16),
        **{name: rng.random((N_LAYERS, 1)) for name in curves.SERIES_IN_BITS},
    }
    records = []
    for number in range(n):
        layer = 16 + rng.normal(0, image_effect)
        prompts = [
            prompt(kind, *make(rng, layer + rng.normal(0, 1.5)))
            for kind, make in plan.items()
            for _ in range(n_prompts)
        ]
        records.append({"name": f"{number:03}", "prompts": prompts, "patches": empty})
    return records


PLAIN = {"later": 0.0, "height": 0.9, "sd": 0.4, "scale": "odds", "control": None}


def planted(rng, layer, **how):
    """A curve and its control's, `how` as PLAIN: `later` by so many layers, up to a `height`, with
    noise `sd`, straight in `scale`; the control's ends at `control`, None: somewhere low."""
    how = PLAIN | how
    at = layer + (how["later"](rng) if callable(how["later"]) else how["later"])
    low = rng.uniform(0.02, 0.2) if how["control"] is None else how["control"]
    return tuple(curve(rng, at, end, how["sd"], how["scale"]) for end in (how["height"], low))


def half_and_half(rng) -> float:
    """Half of the images six layers earlier, half six later."""
    return rng.choice([-6.0, 6.0])


def first_answers(rng, n, colour=(), others=(), **images) -> pd.DataFrame:
    """A row per answer about colours and about the two other kinds, which are `planted` as `colour`
    and `others` say; `images` is for `answers_of`."""
    plan = {"colour": partial(planted, **dict(colour))}
    plan |= dict.fromkeys(("object", "relation"), partial(planted, **dict(others)))
    records = answers_of(rng, n, plan, **images)
    rows = [row for record in records for row in answers.answer_rows(record, RUN)]
    return curves.first_tokens(answers.answers_table(rows, RUN))


def claims_an_order(rng, n, **plan) -> bool:
    """Whether the report claims any order of `first_answers`."""
    sentences = report_causal.order_of_kinds(first_answers(rng, n, **plan))
    return any("are drawn from the image before" in sentence for sentence in sentences)


def orders_by(rng, n, column: str, **plan) -> bool:
    """Whether any order of `first_answers` would be claimed by one column alone."""
    layers = first_answers(rng, n, **plan).pivot(index="image", columns="kind", values=column)
    pairs = [layers[[a, b]].dropna().astype(float) for a, b in itertools.combinations(layers, 2)]
    p = [stats.signed_rank(pair.iloc[:, 0] - pair.iloc[:, 1]) for pair in pairs if len(pair) >= 12]
    return min(p, default=1) < report_causal.LEVEL


# ---- Patches -----------------------------------------------------------------------------------


NOTHING = {"own": 0.0, "any_word": 0.0, "place": 0.0, "category": 0.0, "there": 0.0}


def patches_of(rng, n: int, **added) -> list:
    """Records of `n` images with two objects and two absent words each. Added to the normal noise
    of log2 P(word), which the words of an image share in part (see NOTHING): `own` in the word's
    own boxes, `any_word` in the boxes of all, `place` where most boxes of its category are,
    `category` times a constant of the category, `there` everywhere if the image has the category.
    """
    added = NOTHING | added
    usual = rng.integers(0, 4, (len(CATEGORIES), 2)) * 10.0
    constant = rng.normal(0, 1, len(CATEGORIES))
    chance = np.arange(1, len(CATEGORIES) + 1) / sum(range(1, len(CATEGORIES) + 1))
    shape, records = (len(FEW_LAYERS["layers"]), GRID**2), []
    for number in range(n):
        chosen = rng.choice(len(CATEGORIES), 4, replace=False, p=chance)
        shared, objects, boxes = rng.normal(0, 1, shape), [], {}
        for at in chosen[:2]:
            corner = usual[at] if rng.random() < 0.5 else rng.integers(0, 4, 2) * 10.0
            boxes[at] = [*corner, 20.0, 20.0]
            objects.append({"category": CATEGORIES[at], "box": boxes[at], "share": 1 / 9})
        inside = {at: patches_in(box) for at, box in boxes.items()}
        words = []
        for position, at in enumerate(chosen):
            present = position < 2
            logs = -12 + 0.5 * shared + rng.normal(0, 1, shape) + added["category"] * constant[at]
            logs[:, np.any(list(inside.values()), axis=0)] += added["any_word"]
            logs[:, patches_in([*usual[at], 20.0, 20.0])] += added["place"]
            if present:
                logs[:, inside[at]] += added["own"]
                logs += added["there"]
            words.append({
                "category": CATEGORIES[at],
                "present": present,
                "absent_sampling": "" if present else "random",
                "token_ids": [6 + at],
                "log2_probs": logs.clip(-126, 0).astype(np.float16),
            })  # fmt: skip
        top_ids = rng.integers(0, 6, (*shape, 1)).astype(np.uint16)
        patches = {"top_ids": top_ids}
        records.append({"name": f"{number:03}", "objects": objects, "words": words, "prompts": [],
                        "patches": patches})  # fmt: skip
    return records


def patches_in(box) -> np.ndarray:
    """The patches `[patch]` in a box that ends at their edges."""
    return crop.patch_coverage(box, GRID, 60) > 0.5


def claims_where(rng, n, claim: str, **plan) -> bool:
    """Whether the sentence on patches begins with `claim`."""
    records = patches_of(rng, n, **plan)
    grounded = grounding.Grounding(FEW_LAYERS)
    for record in records:
        grounded.add(record)
    confident = presence.category_confidence([presence.watched_of(record) for record in records])
    lines = report_image.report_grounding(FEW_LAYERS, grounded.table(), confident)
    return any(line.startswith(claim) for line in lines)


OWN = "An object's own word marks its patches"
PLACE = "An object's word is read where the object is"
THERE = "The patches tell whether a category is there"

# ---- Peaks and knockout ------------------------------------------------------------------------


def claims_a_peak(rng, n, height=0.0, width=1) -> str:
    """Whether a peak is claimed of the change per layer; `wrong` if the true one lies outside."""
    change = rng.beta(1, 5, (n, N_LAYERS)) + rng.normal(0, 0.05, (n, 1))
    change[:, 16 : 16 + width] += height * rng.random((n, 1)) * 2
    layers = pd.DataFrame({
        "image": np.repeat(np.arange(n), N_LAYERS),
        "segment": "image",
        "layer": np.tile(np.arange(N_LAYERS), n),
        "jsd_prev": change.ravel(),
        "jsd_final": change.ravel(),
    })  # fmt: skip
    text = report_layers.report_changes(RUN, layers)
    if "change most" not in text:
        return ""
    numbers = list(map(int, re.findall(r"\d+", re.search("layer[^,]*", text)[0])))
    return "right" if numbers[0] <= 16 and 16 + width - 1 <= numbers[-1] else "wrong"


def names_a_window(rng, n, effect=0.0) -> bool:
    """Whether the report names a window in which the object's patches matter."""
    windows, rows = len(RUN["knockout_windows"]), []
    for cut in ("object", "background"):
        change = rng.standard_t(3, (n, windows)) * 0.05 + rng.normal(0, 0.05, (n, 1))
        if cut == "object":
            change[:, 3] -= effect * rng.random(n) * 2
        for window, layer in enumerate(causal.window_centres(RUN)):
            rows.append(pd.DataFrame({"image": np.arange(n), "prompt": 0, "kind": "colour",
                                      "cut": cut, "layer": layer,
                                      "change": change[:, window]}))  # fmt: skip
    answered = pd.DataFrame({"image": np.arange(n), "prompt": 0, "kind": "colour", "question": "?",
                            "token": 0, "word_at": 0, "layer": 0, "readable_layer": 20})  # fmt: skip
    return "falls most" in "".join(report_causal.report_knockout(RUN, pd.concat(rows), answered))


# ---- Intervals ---------------------------------------------------------------------------------


def holds(rng, n, kind: str, truth: float = 0.5) -> bool | None:
    """Whether an interval holds the true value; None where there is none."""
    if kind == "mean":  # of skewed values, of which three are in an image
        ends, truth = stats.interval(rng.beta(1, 9, (n, 3)).mean(axis=1)), 0.1
    elif kind == "median":  # of layers, with ties; the true median is 16
        ends, truth = stats.interval(16 + np.rint(rng.normal(0, 3, n)), "median"), 16
    elif kind == "share":
        ends = stats.interval(rng.random(n) < truth, "share", n)
    elif kind == "share of three prompts":
        image = rng.beta(4 * truth, 4 * (1 - truth), (n, 1))
        ends = stats.interval((rng.random((n, 3)) < image).mean(axis=1), "share", 3 * n)
    else:
        images, inside = np.repeat(np.arange(n), 6), np.tile([True] * 3 + [False] * 3, n)
        effect = {"AUROC": 0.0, "AUROC, image effect": 0.7}[kind]
        values = effect * rng.normal(0, 1, n)[images] + (1 - effect**2) ** 0.5 * rng.normal(
            0, 1, 6 * n
        )
        values += inside * 2**0.5 * {0.5: 0.0, 0.9: 1.2816, 0.98: 2.0537}[truth]
        ends = stats.interval(stats.auroc_by_image(values, inside, images), "share", 6 * n)
    return None if np.isnan(ends[0]) else bool(ends[0] <= truth <= ends[1])


# ---- The table ---------------------------------------------------------------------------------

ORDER = "an order of kinds"
EQUAL = {"colour": {"height": 0.98}, "others": {"height": 0.6}}
IN_PROBABILITY = {kind: how | {"scale": "probability"} for kind, how in EQUAL.items()}
NOISY = {kind: how | {"sd": 0.8} for kind, how in EQUAL.items()}
SAID_ANYWAY = {"height": 0.9, "control": 0.9}
SAID_ANYWAY = {"colour": SAID_ANYWAY, "others": SAID_ANYWAY | {"later": 6.0}}
LATER = {"others": {"later": 4.0}}
FALSE = [  # claim, what is planted, how it is counted
    (ORDER, "equal timing", claims_an_order),
    (ORDER, "equal timing, several prompts of a kind", partial(claims_an_order, n_prompts=3)),
    (ORDER, "equal timing, large image effect", partial(claims_an_order, image_effect=6.0)),
    (ORDER, "equal timing in odds, heights 0.98 and 0.6", partial(claims_an_order, **EQUAL)),
    (ORDER, "equal timing in probability, heights 0.98 and 0.6",
     partial(claims_an_order, **IN_PROBABILITY)),
    (ORDER, "equal timing in odds, more noise", partial(claims_an_order, **NOISY)),
    (ORDER, "six layers later, but said anyway", partial(claims_an_order, **SAID_ANYWAY)),
    (ORDER, "half six layers earlier, half later",
     partial(claims_an_order, others={"later": half_and_half})),
    (OWN, "nothing", partial(claims_where, claim=OWN)),
    (OWN, "any word likelier on any object", partial(claims_where, claim=OWN, any_word=3.0)),
    (PLACE, "nothing", partial(claims_where, claim=PLACE)),
    (PLACE, "the word at its category's usual place", partial(
        claims_where, claim=PLACE, place=3.0)),
    (THERE, "nothing", partial(claims_where, claim=THERE)),
    (THERE, "a constant per category", partial(claims_where, claim=THERE, category=2.0)),
    ("a peak of change", "none", lambda rng, n: claims_a_peak(rng, n) != ""),
    ("a peak at another layer", "one layer", lambda rng, n: claims_a_peak(rng, n, 0.2) == "wrong"),
    ("a part of a plateau", "four layers",
     lambda rng, n: claims_a_peak(rng, n, 0.2, 4) == "wrong"),
    ("a window of blocks", "no window", names_a_window),
]  # fmt: skip
TRUE = [
    (ORDER, "four layers later", partial(claims_an_order, **LATER)),
    (ORDER, "four layers later, heights 0.98 and 0.6",
     partial(claims_an_order, colour=EQUAL["colour"], others=EQUAL["others"] | LATER["others"])),
    (OWN, "own word likelier by two doublings", partial(claims_where, claim=OWN, own=2.0)),
    (PLACE, "own word likelier by two doublings", partial(claims_where, claim=PLACE, own=2.0)),
    (THERE, "by two doublings", partial(claims_where, claim=THERE, there=2.0)),
    ("a peak of change", "one layer", lambda rng, n: claims_a_peak(rng, n, 0.2) == "right"),
    ("a window of blocks", "one that takes a fifth", partial(names_a_window, effect=0.2)),
]  # fmt: skip
REJECTED = [  # what the order would be with one column of `tabulate` alone, none of it true
    (f"order by {column} alone", plant, partial(orders_by, column=column, **plan))
    for column in ("readable_layer", *report_causal.SCALES)
    for plant, plan in (("equal timing in odds, heights 0.98 and 0.6", EQUAL),
                        ("equal timing in probability, heights 0.98 and 0.6", IN_PROBABILITY))
]  # fmt: skip
HELD = [("mean", 0.1), ("median", 16)]
HELD += [
    (kind, truth)
    for kind in ("share", "share of three prompts", "AUROC", "AUROC, image effect")
    for truth in (0.5, 0.9, 0.98)
]


def count(rows: list, sizes: list[int], n_sets: int, seed: int = 0) -> pd.DataFrame:
    """How often each of `rows` claims, per number of images, in `n_sets` data sets."""
    table = []
    for claim, plant, claims in rows:
        rng = np.random.default_rng(seed)
        shares = [np.mean([bool(claims(rng, n)) for _ in range(n_sets)]) for n in sizes]
        table.append((claim, plant, *shares))
        print(*table[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(table, columns=["claim", "planted", *sizes])


def cover(sizes: list[int], n_sets: int, seed: int = 0) -> pd.DataFrame:
    """How often each interval holds the true value; NaN where there is none."""
    table = []
    for kind, truth in HELD:
        rng = np.random.default_rng(seed)
        held = [[holds(rng, n, kind, truth) for _ in range(n_sets)] for n in sizes]
        shares = [np.nan if None in each else np.mean(each) for each in held]
        table.append((kind, truth, *shares))
    return pd.DataFrame(table, columns=["interval of", "truth", *sizes])


if __name__ == "__main__":
    n_sets = int(sys.argv[1]) if sys.argv[1:] else 200
    for title, table in (
        ("made where it is false", count(FALSE, [8, 24, 100], n_sets)),
        ("made where it is true", count(TRUE, [8, 24, 100], n_sets)),
        ("not taken: made where it is false", count(REJECTED, [8, 24, 100], n_sets)),
        ("holds the true value", cover([8, 24, 100], 5 * n_sets)),
    ):
        print(f"\n{title}\n")
        print("|", " | ".join(map(str, table.columns)), "|")
        print("|", " | ".join(["---"] * table.shape[1]), "|")
        for row in table.itertuples(index=False):
            cells = [each if isinstance(each, str) else f"{each:g}" for each in row[:2]]
            cells += ["none" if np.isnan(share) else f"{share:.1%}" for share in row[2:]]
            print("|", " | ".join(cells), "|")
