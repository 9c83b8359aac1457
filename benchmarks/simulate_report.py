"""Plant truths, let the report speak, and count what it claims.

    python benchmarks/simulate_report.py [data sets per cell, 200] [images, 12 24 100] > tables.md

prints the tables of docs/claims.md: how often each claim of the report is made where it is true and
where it is not, and how often intervals hold the true value. It takes ten minutes. Routes and
patches are made as Make_Analyse saves them, with timing, height and noise as chosen, and go through
the same tables and sentences as the notebook's.
`tests/benchmarks/test_simulate_report.py` runs a short form.
"""

import itertools
import re
import sys
from collections.abc import Callable
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
    layers = np.array(RUN["route_layers"])
    strength = np.log(how["height"] / (1 - how["height"]) * 5)

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
            seen = {"category": CATEGORIES[at], "box": boxes[at], "share": share, "crowd": False}
            objects.append(seen)
        inside = {at: patches_in(*box[:2]) for at, box in boxes.items()}
        anywhere, words = np.any(list(inside.values()), axis=0), []
        samplings = [""] * len(present) + ["adversarial", "random"]
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
                "absent_sampling": samplings[position],
                "token_ids": [6 + at],
                "log2_probs": logs.clip(-126, 0).astype(np.float16),
                "cosines": (0.01 * (logs + own_noise.normal(0, 1, shape))).astype(np.float16),
            })  # fmt: skip
        top_ids = rng.integers(0, 6, (*shape, 1)).astype(np.uint16)
        norms = 1 + 9.0 * (own_noise.permutation(GRID**2) < 2)
        patches = {"top_ids": top_ids, "norms": np.tile(norms, (shape[0], 1))}
        read = {"objects": objects, "words": words, "prompts": [], "patches": patches}
        records.append({"name": f"{number:03}", **read})
    return records


@cache
def patches_in(x: float, y: float) -> np.ndarray:
    """The patches `[patch]` in a box of 20 pixels, with this corner at the edges of patches."""
    return crop.patch_coverage([x, y, 20.0, 20.0], RUN) > 0.5


@cache  # several rows count what is said of one data set
def of_patches(number: int, n: int, claim: str, **plan) -> list[dict]:
    """The findings on patches with that name, of data set `number` with `n` images."""
    records = patches_of(np.random.default_rng([number, n]), n, **plan)
    if claim == findings.THERE:
        confident = presence.category_confidence([presence.watched_of(each) for each in records])
        return findings.present_or_absent(confident)
    grounded = grounding.Grounding(FEW_LAYERS)
    for record in records:
        grounded.add(record)
    if claim == FINDS:
        return lenses.lenses(FEW_LAYERS, grounded.table())
    return findings.own_words(FEW_LAYERS, grounded.table())


def claims_where(number: int, n: int, claim: str, pattern="", **plan) -> bool:
    """Whether the claim is made, against all its controls, in a sentence that has `pattern`."""
    found = of_patches(number, n, claim, **plan)[0]
    return found["outcome"] == findings.SHOWN and bool(re.search(pattern, found["sentence"]))


def lenses_find(number: int, n: int, how=any, first=(0, 32), **plan) -> bool:
    """Whether any lens (or `all`) is said to find objects, at a first layer from one of `first` to
    the other."""
    found = [each for each in of_patches(number, n, FINDS, **plan) if each["claim"] == FINDS]
    assert len(found) == 2
    return how(
        each["outcome"] == findings.SHOWN and first[0] <= each["value"] <= first[1]
        for each in found
    )


# ---- Peaks and knockout ------------------------------------------------------------------------


def claims_a_peak(number: int, n: int, which="any", height=0.0, width=1) -> bool:
    """Whether a peak is claimed of the change per layer: `any`, the `right` one, or a `wrong` one,
    outside which the true one lies."""
    rng = np.random.default_rng([number, n])
    change = rng.beta(1, 5, (n, N_LAYERS)) + rng.normal(0, 0.05, (n, 1))
    change[:, 16 : 16 + width] += height * rng.random((n, 1)) * 2
    image, layer = np.indices(change.shape)
    columns = {"image": image.ravel(), "segment": "image", "layer": layer.ravel()}
    series = {"jsd_prev": change.ravel(), "jsd_final": change.ravel()}
    text = report.report_changes(RUN, pd.DataFrame({**columns, **series}))
    where = text.splitlines()[-1].split(" | ")[2]
    if "no clear" in where:
        return False
    numbers = list(map(int, re.findall(r"\d+", where)))
    is_right = numbers[0] <= 16 and 16 + width - 1 <= numbers[-1]
    return which == "any" or is_right == (which == "right")


def names_a_window(number: int, n: int, effect=0.0) -> bool:
    """Whether the report names a window in which the object's patches matter."""
    rng, centres, tables = np.random.default_rng([number, n]), causal.window_centres(RUN), []
    for cut in ("object", "background"):
        change = rng.standard_t(3, (n, len(centres))) * 0.05 + rng.normal(0, 0.05, (n, 1))
        if cut == "object":
            change[:, 3] -= effect * rng.random(n) * 2
        image, window = np.indices(change.shape)
        columns = {"image": image.ravel(), "layer": centres[window.ravel()]}
        table = pd.DataFrame({**columns, "change": change.ravel()})
        tables.append(table.assign(prompt=0, kind="colour", cut=cut))
    found = findings.where_taken(RUN, pd.concat(tables))
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
        values = effect * rng.normal(0, 1, n)[images]
        values += (1 - effect**2) ** 0.5 * rng.normal(0, 1, 6 * n)
        values += inside * 2**0.5 * {0.5: 0.0, 0.9: 1.2816, 0.98: 2.0537}[truth]
        ends = stats.interval(stats.auroc_by_image(values, inside, images), "share", 6 * n)
    return None if np.isnan(ends[0]) else bool(ends[0] <= truth <= ends[1])


# ---- The table ---------------------------------------------------------------------------------

ORDER, OWN, THERE, FINDS = findings.ORDER, findings.OWN, findings.THERE, lenses.FINDS
HIGH, LOW, LATER = {"height": 0.98}, {"height": 0.6}, {"later": 4.0}
PLACE, ANY, OBJECTS = {"place": 3.0}, {"any_word": 3.0}, {"objects": 3.0}
AT = "absent words in the same boxes, at "


def plants(claim: str, claims: Callable, plans: dict[str, dict]) -> list[tuple]:
    """A row per plan: the claim, what is planted, whether it is made in data set `number` with `n`
    images."""
    return [(claim, plant, partial(claims, **plan)) for plant, plan in plans.items()]


of_own_words, of_presence = (partial(claims_where, claim=claim) for claim in (OWN, THERE))
FALSE = [
    *plants(ORDER, claims_an_order, {
        "equal layers": {},
        "equal layers, several prompts of a kind": {"n_prompts": 3},
        "equal layers, large image effect": {"image_effect": 6.0},
        "equal layers, heights 0.98 and 0.6": {"colour": HIGH, "others": LOW},
        "the same, twice the noise":
            {"colour": HIGH | {"noise": 0.6}, "others": LOW | {"noise": 0.6}},
        "equal layers, the last ones sharpen one kind":
            {"colour": {"sharpen": 3.0} | HIGH, "others": LOW},
        "equal layers, one kind has a prior": {"colour": {"prior": 0.5}},
        "wrong answers six layers later, one kind has more":
            {"colour": {"wrong": 0.05}, "others": {"wrong": 0.4}},
        "kinds on different images, four layers later": {"others": LATER, "apart": True},
        "half six layers earlier, half later": {"others": {"later": half_and_half}},
        "a tenth twelve layers later": {"others": {"later": a_tenth}},
    }),
    *plants(OWN, of_own_words, {
        "nothing": {},
        "any word likelier on any object": ANY,
        "objects' words likelier on all objects": OBJECTS,
        "the word at its category's usual place": PLACE,
        "usual places, and any word on any object": PLACE | ANY,
        "usual places, and objects' words on all objects": PLACE | OBJECTS,
        "all three": PLACE | ANY | OBJECTS,
    }),
    *plants("... small objects' words", of_own_words, {
        "large objects' words alone":
            {"pattern": r"^The own word of small|sizes", "own": 2.0, "large_only": True},
    }),
    *plants("... at some layer", of_own_words, {
        "own word at all layers alike": {"pattern": AT + "(layer|some)", "own": 2.0},
    }),
    *plants(THERE, of_presence, {
        "nothing": {},
        "a constant per category": {"category": 2.0},
        "a busy scene raises every word": {"busy": 2.0},
        "both": {"busy": 2.0, "category": 2.0},
        "a scene raises its own words": {"scene": 2.0},
    }),
    ("a peak of change", "none", claims_a_peak),
    ("a peak at another layer", "one layer", partial(claims_a_peak, which="wrong", height=0.2)),
    ("a part of a plateau", "four layers",
     partial(claims_a_peak, which="wrong", height=0.2, width=4)),
    ("a window of blocks", "no window", names_a_window),
    *plants(FINDS, lenses_find, {
        "nothing": {},
        "any word likelier on any object": ANY,
        "usual places, and any word on any object": PLACE | ANY,
        "usual places, and objects' words on all objects": PLACE | OBJECTS,
        "absent words rarer on any object": {"any_word": -2.0, "objects": 2.0},
    }),
    *plants("... from an earlier layer on", lenses_find, {
        "own word from layer 16 on": {"first": (0, 8), "own": 2.0, "later_layers": True},
    }),
]  # fmt: skip
TRUE = [
    *plants(ORDER, claims_an_order, {
        "four layers later": {"others": LATER},
        "four layers later, heights 0.98 and 0.6": {"colour": HIGH, "others": LOW | LATER},
        "four layers later, wrong answers six more":
            {"colour": {"wrong": 0.05}, "others": LATER | {"wrong": 0.4}},
    }),
    ("... not tested", "kinds on different images",
     lambda number, n: orders(number, n, apart=True) == {findings.NOT_TESTED}),
    *plants(OWN, of_own_words, {"own word likelier by two doublings": {"own": 2.0}}),
    *plants("... large objects' words", of_own_words, {
        "large objects' words alone":
            {"pattern": "^The own word of large objects", "own": 2.0, "large_only": True},
    }),
    *plants("... at no layer in particular", of_own_words, {
        "own word at all layers alike": {"pattern": AT + "no layer", "own": 2.0},
    }),
    *plants("... at layer 16", of_own_words, {
        "own word at layer 16": {"pattern": AT + "layer 16", "own": 2.0, "one_layer": True},
    }),
    *plants(THERE, of_presence, {"by two doublings": {"there": 2.0}}),
    *plants("a peak of change", partial(claims_a_peak, which="right"), {
        "one layer, 0.9 standard deviations": {"height": 0.2},
        "one layer, 1.3 standard deviations": {"height": 0.4},
    }),
    ("a window of blocks", "one that takes a fifth", partial(names_a_window, effect=0.2)),
    *plants(FINDS, partial(lenses_find, how=all), {
        "own word likelier by two doublings": {"own": 2.0},
    }),
    *plants("... from layer 16 on", partial(lenses_find, how=all), {
        "own word from layer 16 on": {"first": (16, 16), "own": 2.0, "later_layers": True},
    }),
]  # fmt: skip
SHARES = ("share", "share of three prompts", "AUROC", "AUROC, image effect")
HELD = [  # the interval of what, its true value, whether it holds that
    (kind, truth, partial(holds, kind=kind, truth=truth))
    for kind, truth in (
        *(("mean", 0.1), ("change", 0.09), ("median", 16.0)),
        *itertools.product(SHARES, (0.5, 0.9, 0.98)),
    )
]


def count(rows: list, sizes: list[int], n_sets: int) -> pd.DataFrame:
    """In which share of `n_sets` data sets each of `rows` claims, per number of images; NaN where
    there is no interval."""
    table = pd.DataFrame([row[:2] for row in rows], columns=["claim", "planted"])
    for n in sizes:
        made = [[claims(number, n) for number in range(n_sets)] for *_, claims in rows]
        table[n] = [np.nan if None in each else np.mean(each) for each in made]
    return table


def main() -> None:
    n_sets = int(sys.argv[1]) if sys.argv[1:] else 200
    sizes = [int(size) for size in sys.argv[2:]] or [12, 24, 100]
    for title, rows, n in (
        ("made where it is false", FALSE, n_sets),
        ("made where it is true", TRUE, n_sets),
        ("holds the true value", HELD, 5 * n_sets),
    ):
        table = count(rows, sizes, n)
        shares = table[sizes].map(lambda share: "none" if np.isnan(share) else f"{share:.1%}")
        cells = table.astype(str)
        cells[sizes] = shares
        text = markdown_table([*map(str, table)], cells.to_numpy().tolist())
        print(f"\n{title}, of {n} data sets\n\n{text}", flush=True)


if __name__ == "__main__":
    main()
