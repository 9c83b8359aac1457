"""Records to tables: what the lens reads, in columns.

It is given records, one after the other, and the dict `run` that they have in common. It knows
nothing of models, of sentences, of drawing, or of where results lie on disk; its statistics are
those of `lens_stats`.

A layer has a number (0 is the embedding output, l the state after block l) and a position on the
layer axis of the arrays; these differ where not every layer was read. Arrays are indexed by
position; every column of a table that tells of layers holds numbers.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lens_format import COLOURS, KINDS, OF_OBJECTS, SEGMENTS, require
from lens_stats import (
    best_rival,
    drawn_layers,
    interval,
    kl_bits,
    readable_layer,
    settling_layer,
    signed_rank,
)
from lens_utils import WORDS, names_of, plural_of

__all__ = [
    "layer_numbers", "layer_label", "layer_positions", "choose_prompt", "choose_words",
    "is_right", "MEANINGS", "tabulate", "save_summary", "load_summary",
    "top_tokens", "first_tokens", "whole_words",
    "pieces_note", "per_image", "layer_curve", "bias_curve", "answer_curves", "settling_table",
    "controls_table", "right_and_wrong", "knockouts", "knockout_curves", "changes_by_window",
    "readable_and_used", "median_lead",
]  # fmt: skip

# ---- Layers, and the choice of what to look at -------------------------------------------------


def layer_numbers(run: dict) -> np.ndarray:
    """The number of each layer that was read `[layer]`."""
    return np.array([0 if label == "emb" else int(label) for label in run["layers"]])


def layer_label(run: dict, number: float) -> str:
    """The label of a layer number; a median may lie between two. One past the last is `never`."""
    if np.isnan(number):
        return "not known"
    if number >= layer_numbers(run)[-1] + 1:
        return "never"
    return "emb" if number == 0 else f"{number:.1f}".removesuffix(".0")


def layer_positions(run: dict, numbers: list[int]) -> list[int]:
    """The positions of layer `numbers` on the layer axis; where there are none, of five from the
    first layer to the last. Raises ValueError for a layer that was not read."""
    read = layer_numbers(run).tolist()
    known = ", ".join("0 (emb)" if number == 0 else str(number) for number in read)
    require(set(numbers) <= set(read), f"layers_shown is {numbers}: the layers are {known}.")
    five = np.linspace(0, len(read) - 1, 5).round().astype(int).tolist()
    return [read.index(number) for number in numbers] or five


def choose_prompt(record: dict, number: int) -> dict:
    """The prompt of that number. Raises ValueError, which tells how many there are."""
    last = len(record["prompts"]) - 1
    there = f"{record['name']} has the prompts 0 to {last}"
    require(0 <= number <= last, f"prompt is {number}: {there}.")
    return record["prompts"][number]


def choose_words(record: dict, categories: list[str]) -> list[str]:
    """The watched `categories` to show; where there are none, up to six that the image has and, as
    a control, up to four that it does not have.

    Raises ValueError, which names the watched categories, for a category that is not watched.
    """
    watched = {word["category"]: word["present"] for word in record["words"]}
    unknown = ", ".join(map(repr, set(categories) - set(watched)))
    known = ", ".join(watched) or "none"
    require(not unknown, f"{unknown} not watched in {record['name']}; watched categories: {known}.")
    present = [category for category, is_present in watched.items() if is_present]
    absent = [category for category, is_present in watched.items() if not is_present]
    return categories or present[:6] + absent[:4]  # a figure of ten rows is tall enough


# ---- Records to tables -------------------------------------------------------------------------


SERIES = ("jsd_prev", "jsd_final", "entropy")  # of a record's readings


# What the words of an answer mean, by kind of prompt; objects have the names of categories.
MEANINGS = {
    "presence": {"yes": "yes", "no": "no", "not": "no"},
    "colour": {**{term: term for term in COLOURS}, "grey": "gray"},
    "relation": {
        "left": "left", "right": "right", "above": "above", "over": "above", "on top": "above",
        "below": "below", "under": "below", "beneath": "below",
    },
}  # fmt: skip


def is_right(kind: str, answer: str, truth: str, categories: Iterable[str] = ()) -> bool | None:
    """Whether an answer is right; None where it can't be graded.

    By its first sentence, without case. Presence: the first of yes, no and not. Colour and
    relation: the one term of `MEANINGS` that it has; none or two can't be graded, nor white against
    gray, between which light decides. Object: the first name of one of `categories` or COCO's
    (`names_of`), the longest first, so that a hot dog is no dog. Where the truth has no such term,
    as with own prompts, it is the exact text, but for a full stop.

    Source of the double words: CHAIR (Rohrbach et al., arXiv 1809.02156).
    """
    meanings = _names(categories) if kind == "object" else MEANINGS.get(kind, {})
    true = _meant(kind, truth, meanings)
    if true is None:
        return answer.strip().rstrip(".").lower() == truth.lower()
    said = _meant(kind, re.split("[.!?\n]", answer.strip())[0], meanings)
    return None if said is None or {said, true} == {"white", "gray"} else said == true


def _names(categories: Iterable[str]) -> dict[str, str]:
    """The category by each of its names; none by the phrases that are no category's."""
    known = [*WORDS["categories"], *categories]
    names = {name: category.lower() for category in known for name in names_of(category)}
    no_names = [text for phrase in WORDS["no_category"] for text in (phrase, plural_of(phrase))]
    return names | dict.fromkeys(no_names, "")


def _meant(kind: str, text: str, meanings: dict[str, str]) -> str | None:
    """What `text` says in the terms of `meanings`, None where it says none, or several at once."""
    terms = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True)))
    found = [meanings[term] for term in re.findall(rf"\b(?:{terms})\b", text.lower()) if term]
    found = [meaning for meaning in found if meaning]
    one = kind in ("presence", "object") or len(set(found)) == 1
    return found[0] if found and one else None


def tabulate(records: Iterable[dict], run: dict) -> dict[str, pd.DataFrame]:
    """Two tables from one pass over the records, so that one record is in memory at a time.

    - `layers`: a row per image, prompt (-1 for the patches), segment and layer. Over the positions
      of the segment: mean `jsd_prev`, `jsd_final` and `entropy` in bits, and `no_word`, the share
      of positions whose top-1 token is no word
    - `answers`: a row per image, prompt, answer token and layer, read at the position before the
      token. `probability` and `rank` are, at the first token, those of its word (all tokens that
      spell it), then and in `token_probability` and `token_rank` the token's own; `margin` is the
      logarithm of `probability` to its best rival's. Layer numbers, one past the last for never,
      are `settling_layer` and, for a half, a quarter and three quarters of the last margin,
      `readable_layer`, `readable_quarter` and `readable_three_quarters`. `right` (`is_right`) is
      None where the truth is not known or the answer can't be graded. `whole_word`: whether the
      first token is a word, not a piece of one. Of the first token alone, else NaN: probability
      and rank with the controls' images (`grey_`, `other_`), `drawn_layer` and
      `drawn_layer_by_probability` (`drawn_layers`, against the other image or, without one, grey)

    Raises ValueError for a damaged record.
    """
    # A word or a part of one, without the mark of a leading space; not a byte, a sign, a number or
    # a special token.
    is_word = np.array([token.lstrip("▁Ġ").isalpha() for token in run["tokens"]])
    tokens, numbers = np.array(run["tokens"], dtype=object), layer_numbers(run)
    layers, answers = [], []
    for record in records:
        image = {"image": record["name"]}
        patches = {**image, "prompt": -1, "kind": "image", "segment": "image"}
        layers.append((patches, _means(record["patches"], slice(None), is_word)))
        for number, prompt in enumerate(record["prompts"]):
            about = {**image, "prompt": number, "kind": prompt["kind"], "right": None}
            n_prompt = prompt["n_prompt"]
            segments = ("prompt", slice(n_prompt)), ("answer", slice(n_prompt, None))
            for segment, positions in segments:
                if len(prompt["token_ids"][positions]):
                    means = _means(prompt["readings"], positions, is_word)
                    layers.append(({**about, "segment": segment}, means))
            if prompt["truth"] is not None:
                given = prompt["answer"], prompt["truth"]
                about["right"] = is_right(prompt["kind"], *given, run["categories"])
            answers += _answer_rows(about, prompt, tokens, numbers)
    return {"layers": per_layer(layers, numbers), "answers": per_layer(answers, numbers)}


def _means(readings: dict, positions: slice, is_word: np.ndarray) -> dict[str, np.ndarray]:
    """Per column the mean over positions `[layer]`."""
    means = {name: readings[name][:, positions].mean(axis=1) for name in SERIES}
    return {**means, "no_word": 1 - is_word[readings["top_ids"][:, positions, 0]].mean(axis=1)}


def _answer_rows(about: dict, prompt: dict, tokens: np.ndarray, numbers: np.ndarray) -> list:
    """For `per_layer`, per answer token of a prompt: what holds at all layers, and the readings
    `[layer]` at the position before the token."""
    readings = prompt["readings"]
    ends = np.append(numbers, numbers[-1] + 1)  # by position, with never
    constant = {
        **about,
        **{name: prompt[name] for name in ("question", "truth", "answer")},
        "categories": tuple(prompt["categories"]),
        "whole_word": prompt["word_ids"] != [],
    }
    rows = []
    for token, token_id in enumerate(prompt["answer_ids"]):
        pos = prompt["n_prompt"] - 1 + token
        of_token = readings["target_prob"][:, pos], readings["target_rank"][:, pos]
        prob, rank = of_token if token else (prompt["word_prob"], prompt["word_rank"])
        spellings = [token_id] if token or not prompt["word_ids"] else prompt["word_ids"]
        top_ids, top_probs = (readings[name][:, pos] for name in ("top_ids", "top_probs"))
        probs = np.stack([prob, best_rival(top_ids, top_probs, spellings)])
        margin = np.subtract(*np.log(np.maximum(probs, 2.0**-126)))
        controls, drawn = _against_controls(prompt, token, prob, ends)
        of_answer = {
            "token": token,
            "token_id": int(token_id),
            "token_label": tokens[token_id],
            "settling_layer": int(ends[settling_layer(rank)]),
            "readable_layer": int(ends[readable_layer(margin)]),
            "readable_quarter": int(ends[readable_layer(margin, 0.25)]),
            "readable_three_quarters": int(ends[readable_layer(margin, 0.75)]),
        }
        columns = {
            "top1": tokens[top_ids[:, 0]],
            "probability": prob,
            "rank": rank.astype(int),
            "token_probability": of_token[0],
            "token_rank": of_token[1].astype(int),
            "margin": margin,
            **controls,
            **{name: readings[name][:, pos] for name in SERIES},
        }
        rows.append(({**constant, **of_answer, **drawn}, columns))
    return rows


def _against_controls(
    prompt: dict, token: int, prob: np.ndarray, ends: np.ndarray
) -> tuple[dict, dict]:
    """The columns of `tabulate` on the controls: those by layer, and those that hold at all."""
    unknown, by_layer = np.full(len(prob), np.nan), {}
    for name in ("grey", "other"):
        control = prompt.get(name) if token == 0 else None
        for series in ("probability", "rank"):
            reading = f"word_{series[:4]}"  # word_prob, word_rank
            by_layer[f"{name}_{series}"] = control[reading].astype(float) if control else unknown
    drawn = np.full(2, np.nan)
    if token == 0:
        at = drawn_layers(prob, prompt.get("other", prompt["grey"])["word_prob"])
        drawn = at if np.isnan(at[0]) else ends[at.astype(int)].astype(float)
    names = ("drawn_layer", "drawn_layer_by_probability")
    return by_layer, dict(zip(names, map(float, drawn), strict=True))


def per_layer(rows: list[tuple[dict, dict]], numbers: np.ndarray) -> pd.DataFrame:
    """A table of a row per one of `rows` and layer; each of `rows` is its values that hold at all
    layers and its columns `[layer]`."""
    constants, columns = zip(*rows, strict=True)
    table = {}
    for name, value in constants[0].items():
        # Not pandas' own kind of text, which would copy a question to all rows: these refer to it.
        dtype = type(value) if type(value) in (int, float) else object
        values = np.array([constant[name] for constant in constants], dtype=dtype)
        table[name] = np.repeat(values, len(numbers))
    table["layer"] = np.tile(numbers, len(rows))
    for name in columns[0]:
        table[name] = np.concatenate([column[name] for column in columns])
    series = {name: pd.Series(values, dtype=values.dtype) for name, values in table.items()}
    return pd.DataFrame(series)


def top_tokens(mean: np.ndarray, run: dict, n: int = 30) -> pd.DataFrame:
    """The `n` tokens with the largest mean probability over all layers, from `mean`
    `[layer, d_vocab]`.

    Columns: `token`, `id`, `mean` over the layers, then one column per layer, by label.
    """
    over_layers = mean.mean(axis=0)
    ids = np.argsort(-over_layers, kind="stable")[:n]
    columns = {"token": [run["tokens"][i] for i in ids], "id": ids, "mean": over_layers[ids]}
    per_layer = dict(zip(run["layers"], mean[:, ids], strict=True))
    return pd.DataFrame({**columns, **per_layer})


def first_tokens(answers: pd.DataFrame) -> pd.DataFrame:
    """A row per image and prompt: of the columns of `answers` (`tabulate`), those that don't vary
    by layer are the first answer token's."""
    return answers[(answers["token"] == 0) & (answers["layer"] == answers["layer"].min())]


def whole_words(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `answers` on first tokens that are a whole word. Where it is a piece, it may be
    one of another word, and says nothing about the answer's."""
    return answers[(answers["token"] == 0) & answers["whole_word"].astype(bool)]


def pieces_note(answers: pd.DataFrame) -> str:
    """The number of answers that `whole_words` leaves out."""
    whole = first_tokens(answers)["whole_word"].astype(bool)
    pieces = (~whole).sum()
    return (
        f"Left out: {pieces} of {len(whole)} answers, which begin with a piece of a word or a sign."
    )


TEXT_COLUMNS = ["image", "kind", "question", "truth", "answer", "token_label", "top1"]


def save_summary(path, answers: pd.DataFrame) -> None:
    """Write `answers` of `tabulate` as CSV, to be read by `load_summary`. A text that is empty, or
    that a spreadsheet would take for a formula, gets a leading `'`."""

    def as_cell(text):
        return f"'{text}" if text is not None and text[:1] in ("", *"=+-@'\t\r") else text

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = answers.assign(**{name: answers[name].map(as_cell) for name in TEXT_COLUMNS})
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def load_summary(path) -> pd.DataFrame:
    """What `save_summary` wrote."""
    texts = dict.fromkeys(TEXT_COLUMNS, str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    plain = {name: table[name].str.removeprefix("'") for name in TEXT_COLUMNS}
    return table.assign(**plain)


# ---- Means over images, and their intervals ----------------------------------------------------


def per_image(table: pd.DataFrame, column: str, by: str = "layer") -> pd.DataFrame:
    """The mean of `column` within each image `[image, by]`: images, not rows, are independent."""
    return table.groupby(["image", by])[column].mean().unstack(by).astype(float)


def layer_curve(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    """The mean of `column` over images per group and layer, with its interval.

    Columns: `by`, `layer` (number), `mean`, `low` and `high` (`interval`; NaN for a group of fewer
    than MIN_IMAGES images). A layer without values, such as JSD to the layer before the first, is
    left out.
    """
    curves = [pd.DataFrame(columns=[by, "layer", "mean", "low", "high"])]
    for group, rows in table.groupby(by, sort=False):
        values = per_image(rows, column).dropna(how="all").dropna(axis=1, how="all")
        if values.empty:
            continue
        low, high = interval(values.to_numpy())
        mean = values.mean().to_numpy()
        curve = {by: group, "layer": values.columns, "mean": mean, "low": low, "high": high}
        curves.append(pd.DataFrame(curve))
    return pd.concat(curves[1:] or curves, ignore_index=True)


def bias_curve(mean_probability: np.ndarray, run: dict) -> pd.DataFrame:
    """The lens's own bias at each layer, per segment: the Kullback-Leibler divergence, in bits, of
    the mean distribution there from the mean distribution at the last layer, `[segment, layer,
    d_vocab]`.

    A lens that prefers some tokens whatever the input has a large one. Columns: `segment`, `layer`,
    `bias`. Source: Belrose et al., arXiv 2303.08112.
    """
    rows = []
    for segment, mean in zip(SEGMENTS, mean_probability, strict=True):
        if mean.any():  # a run of one-token answers has no answer positions
            bias = kl_bits(mean[-1], mean)
            rows += zip([segment] * len(bias), layer_numbers(run), bias, strict=True)
    return pd.DataFrame(rows, columns=["segment", "layer", "bias"])


def answer_curves(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curves (`layer_curve`) of the answer's first word (`whole_words`) by `kind`.

    - `probability`, `control_probability`: mean probability with the image and with another one (a
      grey one, where there is no other)
    - `rank`, `control_rank`: mean log10 of its rank, so 10 to its power is the geometric mean
    """
    first = whole_words(answers)
    control = {c: first[f"other_{c}"].fillna(first[f"grey_{c}"]) for c in ("probability", "rank")}
    first = first.assign(
        control_probability=control["probability"],
        rank=np.log10(first["rank"]),
        control_rank=np.log10(control["rank"]),
    )
    columns = ("probability", "control_probability", "rank", "control_rank")
    return {column: layer_curve(first, column, "kind") for column in columns}


def _by_kind(first: pd.DataFrame, row_of) -> pd.DataFrame:
    """A row per kind of prompt that there is: `row_of(its rows)`."""
    kinds = filter(set(first["kind"]).__contains__, KINDS)
    return pd.DataFrame.from_dict(
        {kind: row_of(first[first["kind"] == kind]) for kind in kinds}, orient="index"
    )


def settling_table(answers: pd.DataFrame, column: str = "settling_layer") -> pd.DataFrame:
    """Per kind of prompt: numbers of images, answers, graded answers and those with a truth that
    can't be graded, the share of the graded that is `right` with its interval `right_low` and
    `right_high`, the share of the most frequent truth (`majority`, what always giving that answer
    would get), and `column` of the answer's first word (`whole_words`).

    `median` is over images (of the mean within an image that has several prompts of the kind) that
    have the column, `with_column` in number; `low` and `high` are its `interval`.
    """

    def row_of(of_kind):
        whole = of_kind[of_kind["whole_word"].astype(bool)]
        layers = whole.groupby("image")[column].mean().dropna().to_numpy(float)
        graded = of_kind.dropna(subset="right").astype({"right": float})
        right = graded.groupby("image")["right"].mean().to_numpy(float)
        low, high = interval(layers, "median")
        right_low, right_high = interval(right, "share", len(graded))
        return {
            "images": of_kind["image"].nunique(),
            "answers": len(of_kind),
            "graded": len(graded),
            "not_gradable": of_kind["truth"].notna().sum() - len(graded),
            "right": right.mean() if len(right) else np.nan,
            "right_low": right_low,
            "right_high": right_high,
            "majority": of_kind["truth"].value_counts(normalize=True).max(),
            "with_column": len(layers),
            "median": np.median(layers) if len(layers) else np.nan,
            "low": low,
            "high": high,
        }

    return _by_kind(first_tokens(answers), row_of)


def controls_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt, P of the answer's first word (`whole_words`) at the last layer, means
    over images: `probability`, `other_probability` (NaN where there is no other image) and
    `grey_probability`, and `gain`, P minus that with another image (without one, a grey one), with
    its `interval` `low` and `high`."""

    def row_of(rows):
        columns = ["probability", "other_probability", "grey_probability"]
        of_image = rows.groupby("image")[columns].mean().astype(float)
        control = of_image["other_probability"].fillna(of_image["grey_probability"])
        gain = (of_image["probability"] - control).to_numpy()
        low, high = interval(gain).clip(-1, 1)
        return {**of_image.mean(), "gain": gain.mean(), "low": low, "high": high}

    whole = whole_words(answers)
    return _by_kind(whole[whole["layer"] == whole["layer"].max()], row_of)


def right_and_wrong(answers: pd.DataFrame) -> pd.DataFrame:
    """Right and wrong answers apart: a row per kind of prompt that has both and per `right`.

    Columns: the number of `images` (of each the mean counts), of `readable_layer` of the first word
    (`whole_words`) the median, `low` and `high`, and of `gain` (P minus that with another image, at
    the last layer) the mean, `gain_low` and `gain_high` (`interval`).
    """
    whole = whole_words(answers).dropna(subset="right")
    last = whole[whole["layer"] == whole["layer"].max()].astype({"right": bool})
    control = last["other_probability"].fillna(last["grey_probability"])
    last = last.assign(gain=last["probability"] - control)
    rows = []
    for kind in filter(set(last["kind"]).__contains__, KINDS):
        of_kind = last[last["kind"] == kind]
        if of_kind["right"].nunique() < 2:
            continue
        for right, group in of_kind.groupby("right"):
            of_image = group.groupby("image")[["readable_layer", "gain"]].mean().astype(float)
            layers, gains = of_image["readable_layer"], of_image["gain"]
            row = kind, right, len(of_image), layers.median(), *interval(layers, "median")
            rows.append((*row, gains.mean(), *interval(gains).clip(-1, 1)))
    columns = ["kind", "right", "images", "readable_layer", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "gain", "gain_low", "gain_high"])


# ---- Attention knockout ------------------------------------------------------------------------


def knockouts(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """What cutting attention does to P(first answer token): a row per image, prompt, way (KNOCKOUT)
    and window.

    - `layer`: the centre of the window's blocks, block l making layer l; one past the last layer
      for the window of all blocks
    - `change`: P with the cut minus P without; not as a share of P, which nothing would bound
    """
    rows = []
    for record in records:
        for number, prompt in enumerate(record["prompts"]):
            about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
            undisturbed = prompt["readings"]["target_prob"][-1, prompt["n_prompt"] - 1]
            for way, probs in prompt["knockout"].items():
                rows.append(({**about, "way": way}, {"change": probs - undisturbed}))
    if rows:
        return per_layer(rows, _centres(run))
    return pd.DataFrame(columns=["image", "prompt", "kind", "way", "layer", "change"])


def _centres(run: dict) -> np.ndarray:
    """`layer` of `knockouts` `[window]`."""
    centres = np.mean(run["knockout_windows"], axis=1)
    return np.append(centres[:-1], run["n_layers"] + 1)


def knockout_curves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The mean change by way (`layer_curve` of `knockouts`), for each kind of prompt there is."""
    kinds = filter(set(table["kind"]).__contains__, KINDS)
    return {kind: layer_curve(table[table["kind"] == kind], "change", "way") for kind in kinds}


def changes_by_window(table: pd.DataFrame, run: dict, way: str, rows=("image",)) -> pd.DataFrame:
    """The mean change `[*rows, window]` of a way in the windows of some blocks; columns are
    `layer`."""
    moved = table[(table["way"] == way) & (table["layer"] <= run["n_layers"])]
    return moved.groupby([*rows, "layer"])["change"].mean().unstack("layer")


def readable_and_used(table: pd.DataFrame, answers: pd.DataFrame, run: dict) -> pd.DataFrame:
    """A row per answer that some window's cut to its object's patches lowers by more than any
    window's cut to the control's changes it, from `knockouts` and `answers` of `tabulate`.

    `used` is the centre of the window that lowers it most, `readable` its readable layer (first
    token), `lead` by how many layers it is used before it is readable.
    """
    own, control = (changes_by_window(table, run, way, ("image", "prompt")) for way in OF_OBJECTS)
    own = own[-own.min(axis=1) > control.abs().max(axis=1)]
    found = first_tokens(answers).set_index(["image", "prompt"]).loc[own.index]
    found = found[["kind", "question", "readable_layer"]].rename(
        columns={"readable_layer": "readable"}
    )
    found["used"] = own.idxmin(axis=1).astype(float) if len(own) else 0.0
    return found.assign(lead=found["readable"] - found["used"]).reset_index()


def median_lead(used: pd.DataFrame) -> tuple[float, np.ndarray, float]:
    """Of `readable_and_used` the median over images of the mean `lead`, its `interval` `[2]`, and p
    of Wilcoxon's signed-rank test, two-sided."""
    lead = used.groupby("image")["lead"].mean()
    if lead.empty:
        return np.nan, np.full(2, np.nan), 1.0
    return lead.median(), interval(lead.to_numpy(), "median"), signed_rank(lead)
