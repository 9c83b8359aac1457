"""What follows from the tables: each claim with its numbers, its outcome and its sentence."""

import itertools
import json
from math import comb

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from llava_lens.analysis.causal import changes_by_window
from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.grounding import COMPARED_WITH, SIZES, differences
from llava_lens.analysis.lenses import lenses
from llava_lens.analysis.per_kind import controls_table, settling_table
from llava_lens.analysis.presence import presence_areas, within_images
from llava_lens.analysis.stats import MIN_IMAGES, interval, peak_range, signed_rank, with_interval
from llava_lens.files import write_whole
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS, layer_label, layer_numbers
from llava_lens.text import count_of, two_decimals

SHOWN, NOT_SHOWN, UNDECIDED = "shown", "not shown", "undecided"
NOT_TESTED, MEASURED = "not tested", "measured"


def finding(claim: str, about: str, outcome: str, sentence: str = "", **numbers) -> dict:
    """A claim, named as in docs/claims.md. `numbers`: `value`, `low`, `high`, `n` (images), `p`."""
    known = dict.fromkeys(("value", "low", "high", "n", "p")) | numbers
    known = {name: None if pd.isna(value) else float(value) for name, value in known.items()}
    known["n"] = None if known["n"] is None else int(known["n"])
    return {"claim": claim, "about": about, "outcome": outcome, **known, "sentence": sentence}


def findings(run: dict, tables) -> list[dict]:
    """All findings, from the `Tables` of `lens_utils.tabulate`."""
    found = measured(tables.answers) + order_of_kinds(tables.answers)
    found += own_words(run, tables.grounded) + present_or_absent(tables.confident)
    found += [finding(**each) for each in lenses(run, tables.grounded)]
    return found + where_taken(run, tables.knocked)


def save_findings(path, run: dict, tables) -> None:
    """Write `findings` as JSON, so that a script can compare two runs."""
    text = json.dumps({"model": run["model"], "findings": findings(run, tables)}, indent=1)
    write_whole(path, text.encode())


def measured(answers: pd.DataFrame) -> list[dict]:
    """The medians over images of where answers are, and what the image adds to P(answer)."""
    found = []
    for column in ("readable_layer", "leaves_image", "handed_over", "mediated"):
        for kind, row in settling_table(answers, column).iterrows():
            ends = row[["median", "low", "high"]].set_axis(["value", "low", "high"])
            found.append(finding(column, kind, MEASURED, n=row["n_images_with_layer"], **ends))
    for kind, row in controls_table(answers).iterrows():
        numbers = row[["gain", "low", "high", "images"]].set_axis(["value", "low", "high", "n"])
        found.append(finding("P above another image", kind, MEASURED, **numbers))
    return found


# ---- The order of kinds ------------------------------------------------------------------------

COMPARED = [name for name, kind in KINDS.items() if kind.in_order]
LEVEL = 0.05 / comb(len(COMPARED), 2)  # Bonferroni over the pairs
ORDER = "an order of kinds"


def order_of_kinds(answers: pd.DataFrame) -> list[dict]:
    """Which kind of answer is handed to the last position first, for each pair with `in_order`.

    Pairs are compared within images, by the median `handed_over` of right answers. Wrong ones can
    come late: a kind that has more of them would seem later. Empty where none has a route.
    """
    first = first_tokens(answers)
    known = first[first["right"].eq(True)].dropna(subset="handed_over")
    if known.empty:
        return []
    layers = known.groupby(["image", "kind"])["handed_over"].median().unstack("kind")
    layers = layers.reindex(columns=COMPARED)
    return [_order_of_two(layers[[a, b]].dropna()) for a, b in itertools.combinations(COMPARED, 2)]


def _order_of_two(layers: pd.DataFrame) -> dict:
    """Two kinds, from their layers `[image, kind]`, by Wilcoxon's test, which weighs sizes, and the
    sign test, which counts images: a few images that are far apart pass only the first. The sign
    test leaves out ties, so the median must differ too."""
    about, n = " and ".join(layers.columns), len(layers)
    a, b = (KINDS[kind].title for kind in layers.columns)
    if n < MIN_IMAGES:
        have = f"{count_of(n, 'image')} {'has' if n == 1 else 'have'} right answers about both"
        sentence = f"Not tested, {a} against {b}: {have}, a test needs {MIN_IMAGES}."
        return finding(ORDER, about, NOT_TESTED, sentence, n=n)
    later = (layers.iloc[:, 1] - layers.iloc[:, 0]).to_numpy(float)
    # The direction is the test's: the side with the larger ranks.
    is_first, sign = signed_rank(later, "greater") <= 0.5, 1
    if not is_first:
        a, b, later, sign = b, a, -later, -1
    middle, p, n_later = np.median(later), signed_rank(later), (later > 0).sum()
    signs = binomtest(n_later, max((later != 0).sum(), 1), alternative="greater")
    p_signs = min(1, 2 * signs.pvalue)
    outcome, claim = NOT_SHOWN, f"No order is shown between {a} and {b}"
    if p < LEVEL and p_signs < LEVEL and middle > 0:
        outcome, claim = SHOWN, f"Answers about {a} are handed over before answers about {b}"
    elif p < LEVEL:
        outcome = UNDECIDED
        claim = f"Undecided: in some images only, answers about {a} are handed over before {b}"
    sentence = (
        f"{claim}: by {count_of(middle, 'layer')} in the median of {n} images, {a} earlier on "
        f"{n_later} and later on {(later < 0).sum()} (p = {p:.2g}, by signs alone {p_signs:.2g})."
    )
    low, high = sorted(sign * interval(later, "median"))
    numbers = {"value": sign * middle, "low": low, "high": high}
    return finding(ORDER, about, outcome, sentence, n=n, p=p, **numbers)


# ---- Attention knockout ------------------------------------------------------------------------

GRADABLE = [name for name, kind in KINDS.items() if kind.meanings or kind.about_objects]
MOST_P = 0.05 / len(GRADABLE)  # Bonferroni over the kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest
WINDOW = "a window of blocks"


def where_taken(run: dict, knocked: pd.DataFrame) -> list[dict]:
    """In which window of blocks answers are taken from their objects' patches, from `knockouts`,
    for each kind of MIN_IMAGES images or more."""
    found, of_objects = [], knocked[knocked["cut"].isin(OF_OBJECTS)]
    for kind in GRADABLE:
        table = of_objects[of_objects["kind"] == kind]
        if table["image"].nunique() >= MIN_IMAGES:
            cuts = (changes_by_window(table, run, cut).to_numpy() for cut in OF_OBJECTS)
            found.append(_where_taken(run, kind, *cuts))
    return found


def window_of_use(own: np.ndarray, control: np.ndarray) -> tuple[int, str, float]:
    """The window in which the mean losses differ most, the outcome and p; from the changes
    `[image, window]` for the object's patches and for as many others.

    Two tests must agree: the largest loss over windows is larger for the object's patches
    (Wilcoxon, one-sided), and the difference in the window has an `interval` above LEAST_LOSS.
    """
    p, more = signed_rank(control.min(axis=1) - own.min(axis=1), "greater"), control - own
    best = int(more.mean(axis=0).argmax())
    passed = int(p < MOST_P) + int(interval(more[:, best])[0] > LEAST_LOSS)
    return best, (NOT_SHOWN, UNDECIDED, SHOWN)[passed], p


def _where_taken(run: dict, kind: str, own: np.ndarray, control: np.ndarray) -> dict:
    best, outcome, p = window_of_use(own, control)
    more, windows = control - own, run["knockout_windows"]
    ends = interval(more[:, best], "change")
    where = "blocks {} to {}".format(*windows[best])
    peak = peak_range(more)
    if peak is None:
        where += ", but no window in particular"
    elif peak[0] != peak[1]:
        where += f" (or another window of {windows[peak[0]][0]} to {windows[peak[1]][1]})"
    by = f"by {with_interval(more[:, best].mean(), ends, two_decimals)} in {where}"
    says = {SHOWN: by, UNDECIDED: f"undecided, {by}", NOT_SHOWN: "not shown in any window"}
    sentence = f"{KINDS[kind].title}, {says[outcome]}, on {len(own)} images (p = {p:.2g})."
    sentence = sentence[0].upper() + sentence[1:]
    numbers = {"value": more[:, best].mean(), "low": ends[0], "high": ends[1]}
    return finding(WINDOW, kind, outcome, sentence, n=len(own), p=p, **numbers)


# ---- Patches -----------------------------------------------------------------------------------

OWN = "own word marks its object"
THERE = "patches tell what is there"


def own_words(run: dict, grounded: pd.DataFrame) -> list[dict]:
    """Whether an object's own word marks its patches: in all, then against each of COMPARED_WITH.

    It does where it does against all of them.
    """
    if grounded.empty:
        return []
    found = [_above(run, grounded, name) for name in COMPARED_WITH]
    outcomes = {each["outcome"] for each in found}
    outcome = outcomes.pop() if len(outcomes) == 1 else UNDECIDED
    start = f"{outcome.capitalize()}: an object's own word marks its patches"
    if outcome == SHOWN:
        start = f"The own word of {_sizes(grounded)} marks their patches"
    sentence = ". ".join([start, *(each["sentence"] for each in found)])
    return [finding(OWN, "all controls", outcome, f"{sentence}."), *found]


def _above(run: dict, grounded: pd.DataFrame, name: str) -> dict:
    """The own word's AUROC above a control's, at the layer where that is most; the interval allows
    for the choice of the layer."""
    above = differences(grounded, name).to_numpy()
    n = len(above)
    if n < MIN_IMAGES:
        sentence = f"Not tested against {name} ({count_of(n, 'image')})"
        return finding(OWN, name, NOT_TESTED, sentence, n=n)
    best = above.mean(axis=0).argmax()
    low, high = interval(above, n_chosen_from=above.shape[1])[:, best]
    outcome = SHOWN if low > 0 else NOT_SHOWN
    by = with_interval(above[:, best].mean(), (low, high), two_decimals)
    sentence = f"{outcome.capitalize()} against {name}, an AUROC higher by {by}"
    sentence += f" {_layers(run, above)} on {n} images"
    return finding(
        OWN, name, outcome, sentence, value=above[:, best].mean(), low=low, high=high, n=n
    )


def _layers(run: dict, above: np.ndarray) -> str:
    """Where a difference `[image, layer]` is largest, as far as it can be told."""
    peak, numbers = peak_range(above, 0.75), layer_numbers(run)
    if peak is None:
        return "at no layer in particular"
    first, last = (layer_label(run, numbers[at]) for at in peak)
    return f"at layer {first}" if first == last else f"at some layer from {first} to {last}"


def _sizes(grounded: pd.DataFrame) -> str:
    """The sizes of objects for which the own word is shown to be above absent words."""
    by_size = {
        size: differences(grounded[grounded["size"] == size], next(iter(COMPARED_WITH))).to_numpy()
        for size in SIZES
    }
    by_size = {size: above for size, above in by_size.items() if len(above)}
    is_shown = {
        size: (interval(above, n_chosen_from=3 * above.shape[1])[0] > 0).any()
        for size, above in by_size.items()
    }
    shown, others = ([size for size in by_size if is_shown[size] == each] for each in (True, False))
    if not shown:
        return "objects, at no size by itself,"
    counts = (f"{size}, {count_of(len(by_size[size]), 'image')}" for size in others)
    rest = f" (not shown: {'. '.join(counts)})" if others else ""
    return f"{' and '.join(shown)} objects{rest}"


def present_or_absent(confident: pd.DataFrame) -> list[dict]:
    """Whether the largest P(word) tells what is in an image; from `category_confidence`.

    Two tests must agree. One category at a time, images that have it are above those that don't
    (what a scene raises passes too). One image at a time, what is there is above absent categories
    of the same scene (`within_images`).
    """
    if confident["present"].nunique() < 2:
        return []
    area, (low, high) = presence_areas(confident)["within"]
    n, values = within_images(confident)
    above, scene = values["above"].to_numpy(), values["scene"].to_numpy()
    passed = int(low > 0.5) + int(interval(above)[0] > 0)
    outcome = (NOT_SHOWN, UNDECIDED, SHOWN)[passed]
    if n < MIN_IMAGES:
        outcome = NOT_TESTED
    claim = "the patches tell whether a category is there"
    claim = claim.capitalize() if outcome == SHOWN else f"{outcome.capitalize()}: {claim}"
    parts = [
        f"{claim}. One category at a time, the AUROC of the largest P(word) is "
        f"{with_interval(area, (low, high), two_decimals)}",
        f"Within {count_of(n, 'image')}, what is there is above absent categories of the "
        f"same scene by {_doublings(above)}",
        f"The scene alone raises a word by {_doublings(scene)}",
    ]
    numbers = {"value": area, "low": low, "high": high, "n": confident["image"].nunique()}
    return [finding(THERE, "all categories", outcome, f"{'. '.join(parts)}.", **numbers)]


def _doublings(values: np.ndarray) -> str:
    return f"{with_interval(values.mean(), interval(values), two_decimals)} doublings"
