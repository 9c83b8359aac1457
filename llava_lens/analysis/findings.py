"""What follows from the tables: each claim with its numbers, its outcome and its sentence."""

import itertools
import json
from math import comb

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from llava_lens.analysis import stats
from llava_lens.analysis.causal import changes_by_window
from llava_lens.analysis.curves import first_tokens
from llava_lens.analysis.grounding import COMPARED_WITH, SIZES, difference
from llava_lens.analysis.lenses import lenses
from llava_lens.analysis.per_kind import controls_table, settling_table
from llava_lens.analysis.presence import presence_areas, within_images
from llava_lens.analysis.stats import MEASURED, NOT_SHOWN, NOT_TESTED, SHOWN, UNDECIDED, finding
from llava_lens.files import write_whole
from llava_lens.kinds import KINDS
from llava_lens.schema import OF_OBJECTS, layer_label, layer_numbers, weights_label
from llava_lens.text import count_of, one_decimal, two_decimals

GAIN = "P above another image"


def findings(run: dict, tables) -> list[dict]:
    """All findings, from the `Tables` of `lens_utils.tabulate`: each a `finding`, with what the
    first screen says of it as its sentence."""
    found = measured(tables.answers) + order_of_kinds(tables.answers)
    found += own_words(run, tables.grounded) + present_or_absent(tables.confident)
    return found + lenses(run, tables.grounded) + where_taken(run, tables.knocked)


def save_findings(path, run: dict, found: list[dict]) -> None:
    """Write the `findings` of a run as JSON, so that a script can compare two runs."""
    about = {"model": run["model"], "weights": weights_label(run)}
    write_whole(path, json.dumps(about | {"findings": found}, indent=1).encode())


def measured(answers: pd.DataFrame) -> list[dict]:
    """The medians over images of where answers are, and what the image adds to P(answer)."""
    layers = "settling_layer", "readable_layer", "leaves_image", "handed_over", "mediated"
    tables = {column: settling_table(answers, column) for column in layers}
    gains = controls_table(answers).rename(columns={"gain": "value", "n_gain": "n"})
    tables[GAIN] = gains.reindex(tables["settling_layer"].index).fillna({"n": 0})
    return [
        finding(claim, kind, MEASURED if row["n"] else NOT_TESTED, **row)
        for claim, table in tables.items()
        for kind, row in table[["value", "low", "high", "n"]].iterrows()
    ]


# ---- The order of kinds ------------------------------------------------------------------------

COMPARED = [name for name, kind in KINDS.items() if kind.in_order]
LEVEL = 0.05 / comb(len(COMPARED), 2)  # Bonferroni over the pairs
ORDER = "an order of kinds"


def order_of_kinds(answers: pd.DataFrame) -> list[dict]:
    """Which kind of answer is handed to the last position first, for each pair with `in_order`:
    within images, by the median `handed_over` of right answers."""
    first = first_tokens(answers)
    known = first[first["right"].eq(True)].dropna(subset="handed_over")
    if known.empty:
        sentence = "Not tested: no right answer has a route."
        return [finding(ORDER, "all kinds", NOT_TESTED, sentence, n=0)]
    layers = known.groupby(["image", "kind"])["handed_over"].median().unstack("kind")
    layers = layers.reindex(columns=COMPARED)
    return [_order_of_two(layers[[a, b]].dropna()) for a, b in itertools.combinations(COMPARED, 2)]


def _order_of_two(layers: pd.DataFrame) -> dict:
    """Two kinds, from their layers `[image, kind]`, by Wilcoxon's test, which weighs sizes, and the
    sign test, which counts images: a few images that are far apart pass only the first. The sign
    test leaves out ties, so the median must differ too."""
    about, n = " and ".join(layers.columns), len(layers)
    a, b = (KINDS[kind].title for kind in layers.columns)
    if n < stats.MIN_IMAGES:
        both = f"{count_of(n, 'image')} with right answers about both that have a route"
        sentence = f"Not tested, {a} against {b}: {both}, a test needs {stats.MIN_IMAGES}."
        return finding(ORDER, about, NOT_TESTED, sentence, n=n)
    later, sign = (layers.iloc[:, 1] - layers.iloc[:, 0]).to_numpy(float), 1
    # The direction is the test's: the side with the larger ranks.
    if stats.signed_rank(later, "greater") > 0.5:
        a, b, later, sign = b, a, -later, -1
    n_later, n_earlier = (later > 0).sum(), (later < 0).sum()
    middle, (low, high) = np.median(later), stats.interval(later, "median")
    p = stats.signed_rank(later)
    signs = binomtest(n_later, max(n_later + n_earlier, 1), alternative="greater")
    p_signs = min(1, 2 * signs.pvalue)
    outcome, claim = NOT_SHOWN, f"No order is shown between {a} and {b}"
    if p < LEVEL and p_signs < LEVEL and middle > 0:
        outcome, claim = SHOWN, f"Answers about {a} are handed over before answers about {b}"
    elif p < LEVEL:
        outcome = UNDECIDED
        claim = f"Undecided: answers about {a} are handed over before {b} in some images only"
    when, ends = ("later", (-high, -low)) if middle < 0 else ("earlier", (low, high))
    by = f"{when} by {count_of(abs(middle), 'layer')} ({' to '.join(map(one_decimal, ends))})"
    sentence = (
        f"{claim}: {a} {by} in the median of {n} images, earlier in {n_later} and later in "
        f"{n_earlier} (Wilcoxon p = {p:.2g}, sign test p = {p_signs:.2g})."
    )
    low, high = sorted((sign * low, sign * high))
    return finding(
        ORDER, about, outcome, sentence, value=sign * middle, low=low, high=high, n=n, p=p
    )


# ---- Attention knockout ------------------------------------------------------------------------

GRADABLE = [name for name, kind in KINDS.items() if kind.meanings or kind.about_objects]
MOST_P = 0.05 / len(GRADABLE)  # Bonferroni over the kinds that have objects
LEAST_LOSS = 0.01  # of P, more than the control's: what is less can be sure and of no interest
WINDOW = "a window of blocks"


def where_taken(run: dict, knocked: pd.DataFrame) -> list[dict]:
    """In which window of blocks answers are taken from their objects' patches, from `knockouts`.
    A kind of fewer than MIN_IMAGES images is not tested, and has no sentence."""
    found, windows = [], run["knockout_windows"]
    for kind in GRADABLE:
        table = knocked[knocked["cut"].isin(OF_OBJECTS) & (knocked["kind"] == kind)]
        if (n := table["image"].nunique()) < stats.MIN_IMAGES:
            found.append(finding(WINDOW, kind, NOT_TESTED, n=n))
            continue
        own, control = (changes_by_window(table, run, cut).to_numpy() for cut in OF_OBJECTS)
        best, outcome, p, ends = window_of_use(control - own)
        peak, value = stats.peak_range(control - own), (control - own)[:, best].mean()
        where = "blocks {} to {}".format(*windows[best])
        rest = "" if peak or outcome == NOT_SHOWN else " No window stands out."
        if peak and peak[0] != peak[1]:
            where += f" (or another window of {windows[peak[0]][0]} to {windows[peak[1]][1]})"
        by = f"by {stats.with_interval(value, ends, two_decimals)} in {where}"
        says = {SHOWN: f" {by}", UNDECIDED: f": undecided, {by}"}
        says = says.get(outcome, ": not shown in any window")
        sentence = f"{KINDS[kind].title.capitalize()}{says}, on {n} images (p = {p:.2g}).{rest}"
        numbers = {"value": value, "low": ends[0], "high": ends[1], "n": n, "p": p}
        found.append(finding(WINDOW, kind, outcome, sentence, **numbers))
    return found


def window_of_use(more: np.ndarray) -> tuple[int, str, float, np.ndarray]:
    """The window in which `more` `[image, window]` is most in the mean, the outcome, p and the
    interval there, for how much more P falls without the object's patches than without as many
    others. Both allow for the choice of the window (Bonferroni), and both must agree."""
    n_windows, best = more.shape[1], int(more.mean(axis=0).argmax())
    p = min(1, n_windows * stats.signed_rank(more[:, best], "greater"))
    ends = stats.interval(more, n_chosen_from=n_windows)[:, best].clip(-1, 1)
    passed = int(p < MOST_P) + int(ends[0] > LEAST_LOSS)
    return best, (NOT_SHOWN, UNDECIDED, SHOWN)[passed], p, ends


# ---- Patches -----------------------------------------------------------------------------------

OWN = "own word marks its object"
THERE = "patches tell what is there"
NO_OBJECT = "no image's crop has an object whose category has a word of one token, but for crowds "
NO_OBJECT += "and objects that fill it"


def own_words(run: dict, grounded: pd.DataFrame) -> list[dict]:
    """Whether an object's own word marks its patches: in all, which is against all of
    COMPARED_WITH, then against each."""
    if grounded.empty:
        sentence = f"Not tested: {NO_OBJECT}."
        return [finding(OWN, "all controls", NOT_TESTED, sentence, n=0)]
    found = [_above(run, grounded, name) for name in COMPARED_WITH]
    outcomes = {each["outcome"] for each in found}
    outcome = outcomes.pop() if len(outcomes) == 1 else UNDECIDED
    start = f"{outcome.capitalize()}: an object's own word marks its patches."
    if outcome == SHOWN:
        start = f"The own word of {_sizes(grounded)} marks their patches."
    sentence = " ".join([start, *(each["sentence"] for each in found)])
    return [finding(OWN, "all controls", outcome, sentence), *found]


def _above(run: dict, grounded: pd.DataFrame, name: str) -> dict:
    """The own word's AUROC above a control's, at the layer where that is most; the interval allows
    for the choice of the layer."""
    above = difference(grounded, *COMPARED_WITH[name]).to_numpy()
    n = len(above)
    if n < stats.MIN_IMAGES:
        sentence = f"Not tested against {name} ({count_of(n, 'image')})."
        return finding(OWN, name, NOT_TESTED, sentence, n=n)
    best = above.mean(axis=0).argmax()
    value = above[:, best].mean()
    ends = stats.interval(above, n_chosen_from=above.shape[1])[:, best].clip(-1, 1)
    outcome, its = (SHOWN, "Its") if ends[0] > 0 else (NOT_SHOWN, "Not shown: its")
    by = stats.with_interval(value, ends, two_decimals)
    where = peak_layers(run, layer_numbers(run), above, 0.75) or "no layer in particular"
    sentence = f"{its} AUROC is higher by {by} than that of {name}, at {where}, on {n} images."
    return finding(OWN, name, outcome, sentence, value=value, low=ends[0], high=ends[1], n=n)


def peak_layers(run: dict, numbers, values: np.ndarray, widest: float = 0.5) -> str:
    """`layer 4`, `some layer from 4 to 6`: where `values` `[image, layer]` are largest, as far as
    it can be told (`peak_range`); empty where it can't."""
    peak = stats.peak_range(values, widest)
    if peak is None:
        return ""
    first, last = (layer_label(run, numbers[at]) for at in peak)
    return f"layer {first}" if first == last else f"some layer from {first} to {last}"


def _sizes(grounded: pd.DataFrame) -> str:
    """The sizes of objects for which the own word is shown to be above absent words."""
    sizes, shown, others = grounded["size"].unique(), [], []
    for size in filter(set(sizes).__contains__, SIZES):
        of_size = grounded[grounded["size"] == size]
        above = difference(of_size, "auroc", "auroc_absent").to_numpy()
        if (stats.interval(above, n_chosen_from=len(sizes) * above.shape[1])[0] > 0).any():
            shown.append(size)
        else:
            others.append(f"of {size} ones, on {count_of(len(above), 'image')}")
    rest = f" (not shown {' and '.join(others)})" if others else ""
    return f"{' and '.join(shown)} objects{rest}" if shown else "objects, at no size by itself,"


def present_or_absent(confident: pd.DataFrame) -> list[dict]:
    """Whether the largest P(word) tells what is in an image; from `category_confidence`. Two tests
    must agree: one category at a time over images, and one image at a time (`within_images`)."""
    if confident["present"].nunique() < 2:
        sentence = "Not tested: no watched category is there, or all of them are."
        return [finding(THERE, "all categories", NOT_TESTED, sentence, n=0)]
    area, (low, high) = presence_areas(confident)["within"]
    n, values = within_images(confident)
    above, scene = values["above"].to_numpy(), values["scene"].to_numpy()
    passed = int(low > 0.5) + int(stats.interval(above)[0] > 0)
    outcome = NOT_TESTED if n < stats.MIN_IMAGES else (NOT_SHOWN, UNDECIDED, SHOWN)[passed]
    claim = "the patches tell whether a category is there"
    claim = claim.capitalize() if outcome == SHOWN else f"{outcome.capitalize()}: {claim}"
    n_images = confident["image"].nunique()
    sentence = (
        f"{claim}. One category at a time, over {count_of(n_images, 'image')}, the AUROC of the "
        f"largest P(word) is {stats.with_interval(area, (low, high), two_decimals)}. "
    )
    if np.isnan(above).any():
        sentence += "Not known within images: too few have absent categories of the same scene."
    else:
        sentence += f"Within {count_of(n, 'image')}, P(word) of what is there is {_times(above)} "
        sentence += "that of absent categories of the same scene."
    if not np.isnan([above, scene]).any():
        sentence += f" Theirs is {_times(scene)} that of absent categories drawn at random."
    numbers = {"value": area, "low": low, "high": high, "n": n_images}
    return [finding(THERE, "all categories", outcome, sentence, **numbers)]


def _times(doublings: np.ndarray) -> str:
    """`4 (2 to 8) times`: the geometric mean."""
    mean, ends = doublings.mean(), stats.interval(doublings)
    return f"{stats.with_interval(2**mean, 2**ends, one_decimal)} times"
