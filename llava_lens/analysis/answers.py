"""Records to tables of answers and of layers."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from llava_lens.analysis.curves import SERIES, _by_kind, first_tokens, per_layer, whole_words
from llava_lens.analysis.grading import is_right
from llava_lens.analysis.stats import (
    best_rival,
    drawn_layers,
    interval,
    readable_layer,
    settling_layer,
)
from llava_lens.kinds import KINDS
from llava_lens.schema import layer_numbers
from llava_lens.text import require
from llava_lens.words import is_word


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
    is_a_word = np.array([is_word(token) for token in run["tokens"]])
    tokens, numbers = np.array(run["tokens"], dtype=object), layer_numbers(run)
    layers, answers = [], []
    for record in records:
        image = {"image": record["name"]}
        patches = {**image, "prompt": -1, "kind": "image", "segment": "image"}
        layers.append((patches, _means(record["patches"], slice(None), is_a_word)))
        for number, prompt in enumerate(record["prompts"]):
            about = {**image, "prompt": number, "kind": prompt["kind"], "right": None}
            n_prompt = prompt["n_prompt"]
            segments = ("prompt", slice(n_prompt)), ("answer", slice(n_prompt, None))
            for segment, positions in segments:
                if len(prompt["token_ids"][positions]):
                    means = _means(prompt["readings"], positions, is_a_word)
                    layers.append(({**about, "segment": segment}, means))
            if prompt["truth"] is not None:
                given = prompt["answer"], prompt["truth"]
                about["right"] = is_right(prompt["kind"], *given, run["categories"])
            answers += _answer_rows(about, prompt, tokens, numbers)
    return {"layers": per_layer(layers, numbers), "answers": per_layer(answers, numbers)}


def _means(readings: dict, positions: slice, is_a_word: np.ndarray) -> dict[str, np.ndarray]:
    """Per column the mean over positions `[layer]`."""
    means = {name: readings[name][:, positions].mean(axis=1) for name in SERIES}
    return {**means, "no_word": 1 - is_a_word[readings["top_ids"][:, positions, 0]].mean(axis=1)}


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
    rows, word_at = [], prompt["word_at"]  # before it are spaces
    for token, token_id in enumerate(prompt["answer_ids"][word_at:]):
        pos = prompt["n_prompt"] - 1 + word_at + token
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


def pieces_note(answers: pd.DataFrame) -> str:
    """The number of answers that `whole_words` leaves out, in all and by kind."""
    first = first_tokens(answers)
    pieces = first[~first["whole_word"].astype(bool)]
    n_of_kind = pieces["kind"].value_counts()
    by_kind = ", ".join(f"{kind} {n_of_kind[kind]}" for kind in KINDS if kind in n_of_kind)
    return (
        f"Left out: {len(pieces)} of {len(first)} answers, whose first word no token spells whole"
        f"{f' ({by_kind})' if by_kind else ''}."
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
