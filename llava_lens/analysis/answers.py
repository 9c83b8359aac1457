"""Records to tables of answers and of layers."""

import csv
import io
import re
from functools import cache

import numpy as np
import pandas as pd

from llava_lens.analysis.causal import UNKNOWN, route_layers_of
from llava_lens.analysis.curves import SERIES_IN_BITS, repeat_over_layers
from llava_lens.analysis.grading import is_right
from llava_lens.analysis.stats import TINY, best_rival, readable_layer, stays_from
from llava_lens.files import write_whole
from llava_lens.schema import layer_numbers
from llava_lens.text import require
from llava_lens.words import is_word


def layer_positions(run: dict, numbers: list[int]) -> list[int]:
    """The positions of layer `numbers` on the layer axis; without any, five from first to last.
    Raises ValueError for a layer that was not read."""
    read = layer_numbers(run).tolist()
    known = ", ".join("0 (emb)" if number == 0 else str(number) for number in read)
    require(set(numbers) <= set(read), f"layers_shown is {numbers}: the layers are {known}.")
    five = np.linspace(0, len(read) - 1, 5).round().astype(int).tolist()
    return [read.index(number) for number in numbers] or five


def choose_prompt(record: dict, number: int) -> dict:
    """The prompt of that number. Raises ValueError, which says how many there are."""
    last = len(record["prompts"]) - 1
    there = f"{record['name']} has the prompts 0 to {last}"
    require(type(number) is int and 0 <= number <= last, f"prompt is {number!r}: {there}.")
    return record["prompts"][number]


def choose_words(record: dict, categories: list[str]) -> list[str]:
    """The watched `categories` to show; without any up to six that the image has, and as a control
    four that it has not. Raises ValueError, which names those that are watched, for another."""
    watched = {word["category"]: word["present"] for word in record["words"]}
    unknown = ", ".join(map(repr, set(categories) - set(watched)))
    known = ", ".join(watched) or "none"
    require(not unknown, f"{unknown} not watched in {record['name']}; watched categories: {known}.")
    present = [category for category, is_present in watched.items() if is_present]
    absent = [category for category, is_present in watched.items() if not is_present]
    return categories or present[:6] + absent[:4]  # a figure of ten rows is tall enough


def layer_rows(record: dict, run: dict) -> list[tuple[dict, dict]]:
    """For `layers_table`: a row per segment of a prompt, and one for the patches (prompt -1)."""
    patches = {"image": record["name"], "prompt": -1, "kind": "image", "segment": "image"}
    rows = [(patches, _means(record["patches"], slice(None), run))]
    for number, prompt in enumerate(record["prompts"]):
        about = {"image": record["name"], "prompt": number, "kind": prompt["kind"]}
        n_prompt = prompt["n_prompt"]
        for segment, positions in (("prompt", slice(n_prompt)), ("answer", slice(n_prompt, None))):
            if len(prompt["token_ids"][positions]):
                means = _means(prompt["readings"], positions, run)
                rows.append(({**about, "segment": segment}, means))
    return rows


def layers_table(rows: list[tuple[dict, dict]], run: dict) -> pd.DataFrame:
    """From the `layer_rows` of all records a row per image, prompt, segment and layer.

    Columns are means over the positions of the segment: `jsd_prev`, `jsd_final` and `entropy` in
    bits, and `no_word`, the share of positions whose top-1 token is no word.
    """
    return repeat_over_layers(rows, layer_numbers(run))


def _means(readings: dict, positions: slice, run: dict) -> dict[str, np.ndarray]:
    """Per column the mean over positions `[layer]`."""
    means = {name: readings[name][:, positions].mean(axis=1) for name in SERIES_IN_BITS}
    top1 = readings["top_ids"][:, positions, 0]  # [layer, pos]
    ids, where = np.unique(top1, return_inverse=True)
    # A word or a part of one, without the mark of a leading space; not a byte, a sign, a number or
    # a special token.
    words = np.array([is_word(run["tokens"][i]) for i in ids])
    return {**means, "no_word": 1 - words[where].reshape(top1.shape).mean(axis=1)}


def answer_rows(record: dict, run: dict) -> list[tuple[dict, dict]]:
    """For `answers_table`: a row per answer token of a prompt."""
    rows = []
    for number, prompt in enumerate(record["prompts"]):
        kind, truth, right = prompt["kind"], prompt["truth"], None
        if truth is not None:
            right = is_right(kind, prompt["answer"], truth, run["categories"])
        constant = {
            **{"image": record["name"], "prompt": number, "kind": kind, "right": right},
            **{name: prompt[name] for name in ("question", "truth", "answer")},
            "categories": tuple(prompt["categories"]),
            "whole_word": prompt["word_ids"] != [],
            "word_at": prompt["word_at"],
        }
        for token in range(len(prompt["answer_ids"])):
            of_token, columns = _token_row(prompt, token, run)
            rows.append(({**constant, **of_token}, columns))
    return rows


def answers_table(rows: list[tuple[dict, dict]], run: dict) -> pd.DataFrame:
    """From the `answer_rows` of all records a row per image, prompt, answer token and layer, read
    at the position before the token.

    - `probability`, `rank`: at the token `word_at` its word's (all tokens that spell it); at other
      tokens the token's own, as in `token_probability` and `token_rank`
    - `margin`: log of `probability` over its best rival's
    - `settling_layer`, `readable_layer`: layer numbers; one past the last for never
    - `right` (`is_right`): None where the truth is not known or the answer can't be graded
    - `whole_word`: whether the answer begins with a word, not a piece of one
    - `leaves_image`, `handed_over`, `mediated` (`route_layers_of`), and `grey_` and `other_`
      probability and rank, with the controls' images: only at the word, else NaN
    """
    return repeat_over_layers(rows, layer_numbers(run))


def _token_row(prompt: dict, token: int, run: dict) -> tuple[dict, dict]:
    """Of one answer token: values for all layers, and columns `[layer]`."""
    readings, token_id = prompt["readings"], prompt["answer_ids"][token]
    pos, at_word = prompt["n_prompt"] - 1 + token, token == prompt["word_at"]
    own_prob, own_rank = readings["target_prob"][:, pos], readings["target_rank"][:, pos]
    prob, rank, spellings = own_prob, own_rank, [token_id]
    if at_word:
        prob, rank = prompt["word_prob"], prompt["word_rank"]
        spellings = prompt["word_ids"] or spellings
    top_ids, top_probs = readings["top_ids"][:, pos], readings["top_probs"][:, pos]  # [layer, k]
    probs = np.stack([prob, best_rival(top_ids, top_probs, spellings)])
    margin = np.subtract(*np.log(np.maximum(probs, TINY)))
    numbers = layer_numbers(run)
    numbers = np.append(numbers, numbers[-1] + 1)  # by position on the layer axis, with never
    of_token = {
        "token": token,
        "token_id": int(token_id),
        "token_label": run["tokens"][token_id],
        "settling_layer": int(numbers[stays_from(rank == 1)]),
        "readable_layer": int(numbers[readable_layer(margin, prob)]),
        **(route_layers_of(prompt, run) if at_word else UNKNOWN),
    }
    columns = {
        "top1": np.array([run["tokens"][i] for i in top_ids[:, 0]], dtype=object),
        **{"probability": prob, "rank": rank.astype(int), "token_probability": own_prob},
        **{"token_rank": own_rank.astype(int), "margin": margin},
        **{name: readings[name][:, pos] for name in SERIES_IN_BITS},
    }
    for image in ("grey", "other"):
        read = prompt.get(image, {}) if at_word else {}
        for column, reading in (("probability", "word_prob"), ("rank", "word_rank")):
            values = read.get(reading, np.full(len(prob), np.nan))
            columns[f"{image}_{column}"] = values.astype(float)
    return of_token, columns


TEXT_COLUMNS = ["image", "kind", "question", "truth", "answer", "token_label", "top1"]


def save_summary(path, answers: pd.DataFrame) -> None:
    """Write `answers_table` as CSV; `load_summary` reads it.

    With any separator no cell is a formula: a `'` stands before each sign that could begin one. It
    stands for an empty text too, which is not the same as none.
    """

    @cache  # a text stands in many rows
    def as_cell(text):
        if text is None or text.strip("'"):
            return text and re.sub(r"(?<![^\W_])([=+\-@\t\r])", r"'\1", text)
        return f"'{text}"

    cells = {name: answers[name].map(as_cell) for name in TEXT_COLUMNS}
    cells["categories"] = answers["categories"].map(str).map(as_cell)
    table = io.BytesIO()  # a text of a 7B's answers would take four times its bytes
    answers.assign(**cells).to_csv(table, index=False, quoting=csv.QUOTE_NONNUMERIC)
    write_whole(path, table.getvalue())


def load_summary(path) -> pd.DataFrame:
    """What `save_summary` wrote."""

    def as_text(cell):
        return re.sub(r"'([=+\-@\t\r])", r"\1", cell) if cell.strip("'") else cell[1:]

    texts = dict.fromkeys(TEXT_COLUMNS, str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    plain = {name: table[name].map(as_text, na_action="ignore") for name in TEXT_COLUMNS}
    return table.assign(**plain)
