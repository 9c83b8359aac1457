"""Plant truths, let the report speak, and count what it claims.

    python benchmarks/simulate_report.py [data sets per cell, 200] [images, 12 24 100] > tables.md

prints the tables of docs/claims.md: how often each claim of the report is made where it is true and
where it is not, and how often intervals hold the true value. Each cell is written to `counts.csv`
as soon as it is counted, and a later start takes it from there: delete the file when the code has
changed. Routes and patches are made as Make_Analyse saves them, with timing, height and noise as
chosen, and go through the same tables and sentences as the notebook's.
`tests/benchmarks/test_simulate_report.py` runs a short form.
"""

import csv
import itertools
import os
import re
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from llava_lens.analysis import causal, findings, grounding, lenses, presence, report, stats
from llava_lens.data import crop
from llava_lens.text import markdown_table

N_LAYERS, GRID = 33, 6
CATEGORIES = [f"thing{number}" for number in range(12)]
TOKENS = ["▁word", *(f"▁rival{number}" for number in range(5)), *(f"▁{c}" for c in CATEGORIES)]
RUN = {
    "layers": ["emb", *map(str, range(1, N_LAYERS))],
    "n_layers": N_LAYERS - 1,
    "tokens": TOKENS,
    "grid": [GRID, GRID],
    "image_size": 60,
    "categories": CATEGORIES,
    "route_layers": [*range(0, N_LAYERS, 2)],
    "knockout_windows": [[block, block + 8] for block in range(1, 25, 3)] + [[1, 32]],
}
FEW_LAYERS = {**RUN, "layers": ["emb", "8", "16", "24", "32"]}  # of patches, to be fast


# ---- Answers and their route ---------------------------------------------------------------------

PLAIN = {
    "later": 0.0,  # layers
    "height": 0.9,  # of P(answer)
    "prior": 0.0,  # of the own answer, as a share of what the image adds
    "sharpen": 0.0,  # the last layers: how much more a sure state counts than an unsure one
    "wrong": 0.0,  # share of wrong answers, which come six layers later
    "noise": 0.3,  # in logits, on every patched run
}


def route_of(rng, layer: float, how: dict) -> dict:
    """ROUTE of an answer that is handed over at `layer` and leaves the image three layers before.

    The logit difference falls from what the image adds to its opposite: the counterfactual's
    answer is as high. What a layer's noise is, the next one's is in part.
    """
    layers, strength = (
        np.array(RUN["route_layers"]),
        np.log(how["height"] / (1 - how["height"]) * 5),
    )

    def patched(state):
        if how["sharpen"]:
            state = np.sinh(how["sharpen"] * state) / np.sinh(how["sharpen"])
        noise = rng.normal(0, how["noise"], len(layers))
        noise[1:] = 0.6 * noise[:-1] + 0.8 * noise[1:]
        noise[[0, -1]] = 0
        return strength * (state + how["prior"]) + noise

    last, gone = (1 / (1 + np.exp((at - layers) / 1.2)) for at in (layer, layer - 3))
    last, gone = ((rise - rise[0]) / (rise[-1] - rise[0]) for rise in (last, gone))
    own, counterfactual = strength * (1 + how["prior"]), strength * (how["prior"] - 1)
    return {
        "own": own,
        "counterfactual": counterfactual,
        "image": patched(2 * gone - 1),
        "question": patched(1 - 2 * (gone - last)),
        "last": patched(1 - 2 * last),
        "mediated": own,
    }


def answer(rng, layer: float, how: dict) -> dict:
    """The columns of `answers_table` that an order is made from, of an answer with a route."""
    is_wrong = rng.random() < how["wrong"]
    layer += how["later"](rng) if callable(how["later"]) else how["later"] + 6 * is_wrong
    found = causal.route_layers_of({"route": route_of(rng, layer, how)}, RUN)
    return {"right": not is_wrong, "token": 0, "word_at": 0, "layer": 0, **found}


def orders(number: int, n: int, colour=(), others=(), **images) -> set[str]:
    """The outcomes of the order of colours, objects and relations on `n` images: answers are PLAIN
    but for what `colour` and `others` (of the two other kinds) say.

    `images`: `image_effect`, how much layers vary between images (within them it is 1.5);
    `n_prompts` of each kind; `apart`, whether each image has one kind only.
    """
    image_effect, n_prompts = images.get("image_effect", 2.0), images.get("n_prompts", 1)
    plans = dict.fromkeys(findings.COMPARED, PLAIN | dict(others))
    plans["colour"] = PLAIN | dict(colour)
    rng, rows = np.random.default_rng([number, n]), []
    for image in range(n):
        middle = 16 + rng.normal(0, image_effect)
        kinds = [*plans][image % 3 :][:1] if images.get("apart") else [*plans]
        rows += [
            {"image": image, "kind": kind, **answer(rng, middle + rng.normal(0, 1.5), plans[kind])}
            for kind in kinds
            for _ in range(n_prompts)
        ]
    return {each["outcome"] for each in findings.order_of_kinds(pd.DataFrame(rows))}


def claims_an_order(number: int, n: int, **plan) -> bool:
    """Whether any order is claimed."""
    return findings.SHOWN in orders(number, n, **plan)


def half_and_half(rng) -> float:
    """Half of the answers six layers earlier, half six later."""
    return rng.choice([-6.0, 6.0])


def a_tenth(rng) -> float:
    """A tenth of the answers twelve layers later."""
    return 12.0 * (rng.random() < 0.1)


# ---- Patches -----------------------------------------------------------------------------------


NOTHING = {
    "own": 0.0,  # the own word, in its own boxes
    "any_word": 0.0,  # all words, in the boxes of all objects
    "objects": 0.0,  # the words of all objects of the image, in the boxes of all
    "place": 0.0,  # a word where most boxes of its category are
    "category": 0.0,  # times a constant of the category, everywhere
    "there": 0.0,  # the word of a category that the image has, everywhere
    "busy": 0.0,  # all words of images with three objects; the others have one
    "scene": 0.0,  # the words of an image's scene, whether the category is there or not
    "large_only": False,  # half of the objects are small, without `own`
    "one_layer": False,  # `own` at layer 16 alone
    "later_layers": False,  # `own` from layer 16 on
}


def chosen_categories(rng, chance, plan: dict) -> tuple[list[int], list[int]]:
    """Which categories an image has, and which absent ones are watched: a frequent companion
    (adversarial), then a random one. With `scene` three categories make a scene."""
    if plan["scene"]:
        of_scene = 3 * rng.integers(0, 4) + rng.permutation(3)
        others = np.setdiff1d(np.arange(len(CATEGORIES)), of_scene)
        return [*of_scene[:2]], [of_scene[2], rng.choice(others)]
    n_present = rng.choice([1, 3]) if plan["busy"] else 2
    chosen = rng.choice(len(CATEGORIES), n_present + 2, replace=False, p=chance)
    return [*chosen[:n_present]], [*chosen[n_present:]]


def patches_of(rng, n: int, **added) -> list:
    """Records of `n` images with objects and two absent words each. Added to the normal noise of
    log2 P(word), which the words of an image share in part: see NOTHING. Cosines are the same with
    as much noise of their own; two patches in each image are sinks."""
    added = NOTHING | added
    usual = rng.integers(0, 4, (len(CATEGORIES), 2)) * 10.0
    constant = rng.normal(0, 1, len(CATEGORIES))
    chance = np.arange(1, len(CATEGORIES) + 1) / sum(range(1, len(CATEGORIES) + 1))
    shape, records = (len(FEW_LAYERS["layers"]), GRID**2), []
    layers = [2] if added["one_layer"] else [*range(shape[0])]
    layers, own_noise = layers[2:] if added["later_layers"] else layers, rng.spawn(1)[0]
    for number in range(n):
        present, absent = chosen_categories(rng, chance, added)
        shared, objects, boxes = rng.normal(0, 1, shape), [], {}
        for at in present:
            corner = usual[at] if rng.random() < 0.5 else rng.integers(0, 4, 2) * 10.0
            boxes[at] = [*corner, 20.0, 20.0]
            share = rng.choice([0.005, 1 / 9]) if added["large_only"] else 1 / 9
            objects.append(
                {"category": CATEGORIES[at], "box": boxes[at], "share": share, "crowd": False}
            )
        inside = {at: patches_in(*box[:2]) for at, box in boxes.items()}
        anywhere, words = np.any(list(inside.values()), axis=0), []
        for position, at in enumerate([*present, *absent]):
            logs = -12 + 0.5 * shared + rng.normal(0, 1, shape) + added["category"] * constant[at]
            logs[:, anywhere] += added["any_word"]
            logs[:, patches_in(*usual[at])] += added["place"]
            logs += added["busy"] * (len(present) == 3)
            logs += added["scene"] * (position < 3)
            if at in boxes:
                is_seen = objects[position]["share"] > 0.1
                logs[np.ix_(layers, inside[at])] += added["own"] * is_seen
                logs[:, anywhere] += added["objects"]
                logs += added["there"]
            words.append({
                "category": CATEGORIES[at],
                "present": at in boxes,
                "absent_sampling": {-2: "adversarial", -1: "random"}.get(
                    position - len(present) - 2, ""
                ),
                "token_ids": [6 + at],
                "log2_probs": logs.clip(-126, 0).astype(np.float16),
                "cosines": (0.01 * (logs + own_noise.normal(0, 1, shape))).astype(np.float16),
            })  # fmt: skip
        top_ids = rng.integers(0, 6, (*shape, 1)).astype(np.uint16)
        norms = 1 + 9.0 * (own_noise.permutation(GRID**2) < 2)
        patches = {"top_ids": top_ids, "embedding_ids": top_ids}
        patches["norms"] = np.tile(norms, (shape[0], 1))
        records.append({"name": f"{number:03}", "objects": objects, "words": words, "prompts": [],
                        "patches": patches})  # fmt: skip
    return records


@cache
def patches_in(x: float, y: float) -> np.ndarray:
    """The patches `[patch]` in a box of 20 pixels, with this corner at the edges of patches."""
    return crop.patch_coverage([x, y, 20.0, 20.0], RUN) > 0.5


@cache  # several rows count what is said of one data set
def of_patches(number: int, n: int, claim: str, **plan) -> list[dict]:
    """The findings on patches with that name, of data set `number` with `n` images."""
    records = patches_of(np.random.default_rng([number, n]), n, **plan)
    if claim == THERE:
        confident = presence.category_confidence([presence.watched_of(each) for each in records])
        return findings.present_or_absent(confident)
    grounded = grounding.Grounding(FEW_LAYERS)
    for record in records:
        grounded.add(record)
    if claim == FINDS:
        return lenses.lenses(FEW_LAYERS, grounded.table())
    return findings.own_words(FEW_LAYERS, grounded.table())


def claims_where(number: int, n: int, claim: str, **plan) -> bool:
    """Whether the claim is made, against all its controls."""
    return of_patches(number, n, claim, **plan)[0]["outcome"] == findings.SHOWN


def says_of_own_words(number: int, n: int, pattern: str, **plan) -> bool:
    """Whether the claim on own words is made, in a sentence that has `pattern`."""
    found = of_patches(number, n, OWN, **plan)[0]
    return found["outcome"] == findings.SHOWN and bool(re.search(pattern, found["sentence"]))


OWN, THERE, FINDS = findings.OWN, findings.THERE, lenses.FINDS
SAME_BOXES = "absent words in the same boxes, at "


def lenses_find(number: int, n: int, first=(0, 32), **plan) -> list[bool]:
    """Whether each lens is said to find objects, at a first layer from one of `first` to the
    other."""
    found = [each for each in of_patches(number, n, FINDS, **plan) if each["claim"] == FINDS]
    assert len(found) == 2
    return [
        each["outcome"] == findings.SHOWN and first[0] <= each["value"] <= first[1]
        for each in found
    ]


def a_lens_finds(number: int, n: int, **plan) -> bool:
    return any(lenses_find(number, n, **plan))


def both_find(number: int, n: int, **plan) -> bool:
    return all(lenses_find(number, n, **plan))


# ---- Peaks and knockout ------------------------------------------------------------------------


def claims_a_peak(number: int, n: int, height=0.0, width=1) -> str:
    """Whether a peak is claimed of the change per layer; `wrong` if the true one lies outside."""
    rng = np.random.default_rng([number, n])
    change = rng.beta(1, 5, (n, N_LAYERS)) + rng.normal(0, 0.05, (n, 1))
    change[:, 16 : 16 + width] += height * rng.random((n, 1)) * 2
    layers = pd.DataFrame({
        "image": np.repeat(np.arange(n), N_LAYERS),
        "segment": "image",
        "layer": np.tile(np.arange(N_LAYERS), n),
        "jsd_prev": change.ravel(),
        "jsd_final": change.ravel(),
    })  # fmt: skip
    where = report.report_changes(RUN, layers).splitlines()[-1].split(" | ")[2]
    if "no clear" in where:
        return ""
    numbers = list(map(int, re.findall(r"\d+", where)))
    return "right" if numbers[0] <= 16 and 16 + width - 1 <= numbers[-1] else "wrong"


def names_a_window(number: int, n: int, effect=0.0) -> bool:
    """Whether the report names a window in which the object's patches matter."""
    rng, windows, rows = np.random.default_rng([number, n]), len(RUN["knockout_windows"]), []
    for cut in ("object", "background"):
        change = rng.standard_t(3, (n, windows)) * 0.05 + rng.normal(0, 0.05, (n, 1))
        if cut == "object":
            change[:, 3] -= effect * rng.random(n) * 2
        for window, layer in enumerate(causal.window_centres(RUN)):
            rows.append(pd.DataFrame({"image": np.arange(n), "prompt": 0, "kind": "colour",
                                      "cut": cut, "layer": layer,
                                      "change": change[:, window]}))  # fmt: skip
    found = findings.where_taken(RUN, pd.concat(rows))
    return any(each["outcome"] == findings.SHOWN for each in found)


# ---- Intervals ---------------------------------------------------------------------------------


def holds(number: int, n: int, kind: str, truth: float = 0.5) -> bool | None:
    """Whether an interval holds the true value; None where there is none."""
    rng = np.random.default_rng([number, n])
    if kind == "mean":  # of skewed values, of which three are in an image
        ends, truth = stats.interval(rng.beta(1, 9, (n, 3)).mean(axis=1)), 0.1
    elif kind == "change":  # of P, on a tenth of the images alone
        ends, truth = stats.interval(truth * 10 * (rng.random(n) < 0.1), "change"), truth
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
HIGH, LOW, LATER = {"height": 0.98}, {"height": 0.6}, {"later": 4.0}
NOISY = {"colour": HIGH | {"noise": 0.6}, "others": LOW | {"noise": 0.6}}
FALSE = [  # claim, what is planted, whether it is made in data set `number` with `n` images
    (ORDER, "equal layers", claims_an_order),
    (ORDER, "equal layers, several prompts of a kind", partial(claims_an_order, n_prompts=3)),
    (ORDER, "equal layers, large image effect", partial(claims_an_order, image_effect=6.0)),
    (ORDER, "equal layers, heights 0.98 and 0.6",
     partial(claims_an_order, colour=HIGH, others=LOW)),
    (ORDER, "the same, twice the noise", partial(claims_an_order, **NOISY)),
    (ORDER, "equal layers, the last ones sharpen one kind",
     partial(claims_an_order, colour={"sharpen": 3.0} | HIGH, others=LOW)),
    (ORDER, "equal layers, one kind has a prior", partial(claims_an_order, colour={"prior": 0.5})),
    (ORDER, "wrong answers six layers later, one kind has more",
     partial(claims_an_order, colour={"wrong": 0.05}, others={"wrong": 0.4})),
    (ORDER, "kinds on different images, four layers later",
     partial(claims_an_order, others=LATER, apart=True)),
    (ORDER, "half six layers earlier, half later",
     partial(claims_an_order, others={"later": half_and_half})),
    (ORDER, "a tenth twelve layers later", partial(claims_an_order, others={"later": a_tenth})),
    (OWN, "nothing", partial(claims_where, claim=OWN)),
    (OWN, "any word likelier on any object", partial(claims_where, claim=OWN, any_word=3.0)),
    (OWN, "objects' words likelier on all objects", partial(claims_where, claim=OWN, objects=3.0)),
    (OWN, "the word at its category's usual place", partial(claims_where, claim=OWN, place=3.0)),
    (OWN, "usual places, and any word on any object",
     partial(claims_where, claim=OWN, place=3.0, any_word=3.0)),
    (OWN, "usual places, and objects' words on all objects",
     partial(claims_where, claim=OWN, place=3.0, objects=3.0)),
    (OWN, "all three", partial(claims_where, claim=OWN, place=3.0, any_word=3.0, objects=3.0)),
    ("... small objects' words", "large objects' words alone",
     partial(says_of_own_words, pattern=r"^The own word of small|sizes", own=2.0, large_only=True)),
    ("... at some layer", "own word at all layers alike",
     partial(says_of_own_words, pattern=SAME_BOXES + "(layer|some)", own=2.0)),
    (THERE, "nothing", partial(claims_where, claim=THERE)),
    (THERE, "a constant per category", partial(claims_where, claim=THERE, category=2.0)),
    (THERE, "a busy scene raises every word", partial(claims_where, claim=THERE, busy=2.0)),
    (THERE, "both", partial(claims_where, claim=THERE, busy=2.0, category=2.0)),
    (THERE, "a scene raises its own words", partial(claims_where, claim=THERE, scene=2.0)),
    ("a peak of change", "none", lambda number, n: claims_a_peak(number, n) != ""),
    ("a peak at another layer", "one layer",
     lambda number, n: claims_a_peak(number, n, 0.2) == "wrong"),
    ("a part of a plateau", "four layers",
     lambda number, n: claims_a_peak(number, n, 0.2, 4) == "wrong"),
    ("a window of blocks", "no window", names_a_window),
    (FINDS, "nothing", a_lens_finds),
    (FINDS, "any word likelier on any object", partial(a_lens_finds, any_word=3.0)),
    (FINDS, "usual places, and any word on any object",
     partial(a_lens_finds, place=3.0, any_word=3.0)),
    (FINDS, "usual places, and objects' words on all objects",
     partial(a_lens_finds, objects=3.0, place=3.0)),
    (FINDS, "absent words rarer on any object",
     partial(a_lens_finds, any_word=-2.0, objects=2.0)),
    ("... from an earlier layer on", "own word from layer 16 on",
     partial(a_lens_finds, first=(0, 8), own=2.0, later_layers=True)),
]  # fmt: skip
TRUE = [
    (ORDER, "four layers later", partial(claims_an_order, others=LATER)),
    (ORDER, "four layers later, heights 0.98 and 0.6",
     partial(claims_an_order, colour=HIGH, others=LOW | LATER)),
    (ORDER, "four layers later, wrong answers six more",
     partial(claims_an_order, colour={"wrong": 0.05}, others=LATER | {"wrong": 0.4})),
    ("... not tested", "kinds on different images",
     lambda number, n: orders(number, n, apart=True) == {findings.NOT_TESTED}),
    (OWN, "own word likelier by two doublings", partial(claims_where, claim=OWN, own=2.0)),
    ("... large objects' words", "large objects' words alone",
     partial(says_of_own_words, pattern="^The own word of large objects", own=2.0,
             large_only=True)),
    ("... at no layer in particular", "own word at all layers alike",
     partial(says_of_own_words, pattern=SAME_BOXES + "no layer", own=2.0)),
    ("... at layer 16", "own word at layer 16",
     partial(says_of_own_words, pattern=SAME_BOXES + "layer 16", own=2.0, one_layer=True)),
    (THERE, "by two doublings", partial(claims_where, claim=THERE, there=2.0)),
    ("a peak of change", "one layer, 0.9 standard deviations",
     lambda number, n: claims_a_peak(number, n, 0.2) == "right"),
    ("a peak of change", "one layer, 1.3 standard deviations",
     lambda number, n: claims_a_peak(number, n, 0.4) == "right"),
    ("a window of blocks", "one that takes a fifth", partial(names_a_window, effect=0.2)),
    (FINDS, "own word likelier by two doublings", partial(both_find, own=2.0)),
    ("... from layer 16 on", "own word from layer 16 on",
     partial(both_find, first=(16, 16), own=2.0, later_layers=True)),
]  # fmt: skip
SHARES = ("share", "share of three prompts", "AUROC", "AUROC, image effect")
HELD = [  # the interval of what, its true value, whether it holds that
    (kind, truth, partial(holds, kind=kind, truth=truth))
    for kind, truth in (
        *(("mean", 0.1), ("change", 0.09), ("median", 16.0)),
        *itertools.product(SHARES, (0.5, 0.9, 0.98)),
    )
]


def count(rows: list, sizes: list[int], n_sets: int, path=os.devnull) -> pd.DataFrame:
    """In which share of `n_sets` data sets each of `rows` claims, per number of images; NaN where
    there is no interval. A cell that the file `path` has is taken from there, others are added."""
    with open(path, "a+", newline="") as file:
        file.seek(0)
        known = {tuple(cell[:4]): cell[4] for cell in csv.reader(file)}
        for (claim, plant, claims), n in itertools.product(rows, sizes):
            cell = claim, str(plant), str(n), str(n_sets)
            if cell not in known:
                made = [claims(number, n) for number in range(n_sets)]
                known[cell] = np.nan if None in made else sum(made)
                csv.writer(file).writerow([*cell, known[cell]])
                file.flush()
    table = [
        (
            claim,
            plant,
            *(float(known[claim, str(plant), str(n), str(n_sets)]) / n_sets for n in sizes),
        )
        for claim, plant, _ in rows
    ]
    return pd.DataFrame(table, columns=["claim", "planted", *sizes])


def main() -> None:
    n_sets = int(sys.argv[1]) if sys.argv[1:] else 200
    sizes = [int(size) for size in sys.argv[2:]] or [12, 24, 100]
    for title, rows, n in (
        ("made where it is false", FALSE, n_sets),
        ("made where it is true", TRUE, n_sets),
        ("holds the true value", HELD, 5 * n_sets),
    ):
        table = count(rows, sizes, n, "counts.csv")
        cells = [
            [
                claim,
                f"{plant}",
                *("none" if np.isnan(share) else f"{share:.1%}" for share in shares),
            ]
            for claim, plant, *shares in table.itertuples(index=False)
        ]
        print(
            f"\n{title}, of {n} data sets\n\n{markdown_table([*map(str, table)], cells)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
