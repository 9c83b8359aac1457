"""Records to tables, tables to sentences.

Holds the statistics of what the lens reads (settling layers, AUROC against boxes, means over images
with their intervals) and the written report, in which every number is computed from the results.
It knows nothing of models, of drawing, or of where results lie on disk: it is given records, one
after the other, and the dict `run` that they have in common.

A layer has a number (0 is the embedding output, l the state after block l) and a position on the
layer axis of the arrays; these differ where not every layer was read. Arrays are indexed by
position; every column of a table that tells of layers holds numbers.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import binomtest, rankdata, wilcoxon

from lens_utils import DEMO_NOTE, KINDS, SEGMENTS, UNIT, printable, require

__all__ = [
    "layer_numbers", "layer_label", "layer_positions",
    "choose_prompt", "choose_words",
    "settling_layer", "readable_layer", "is_right", "tabulate", "top_tokens", "first_tokens",
    "MIN_IMAGES", "per_image", "interval", "layer_curve", "answer_curves",
    "settling_table", "first_tokens_at_end",
    "SIZES", "ALL_SIZES", "OTHER_BOXES", "NO_WORD", "word_probability", "patch_coverage",
    "patches_of", "auroc", "grounding", "grounding_curves", "best_and_worst",
    "category_confidence", "presence_answers", "presence_auroc", "roc_curve",
    "as_code", "with_interval", "order_of_kinds", "report", "report_grounding",
]  # fmt: skip

# ---- Layers, and the choice of what to look at -------------------------------------------------


def layer_numbers(run: dict) -> np.ndarray:
    """The number of each layer that was read `[layer]`."""
    return np.array([0 if label == "emb" else int(label) for label in run["layers"]])


def layer_label(run: dict, number: float) -> str:
    """The label of a layer number; a median may lie between two. One past the last is `never`."""
    if number >= layer_numbers(run)[-1] + 1:
        return "never"
    return "emb" if number == 0 else f"{number:g}"


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
    """The watched `categories` to show; where there are none, up to three that the image has and,
    as a control, one that it does not have.

    Raises ValueError, which names the watched categories, for a category that is not watched.
    """
    watched = {word["category"]: word["present"] for word in record["words"]}
    unknown = ", ".join(map(repr, set(categories) - set(watched)))
    known = ", ".join(watched) or "none"
    require(not unknown, f"{unknown} not watched in {record['name']}; watched categories: {known}.")
    present = [category for category, is_present in watched.items() if is_present]
    absent = [category for category, is_present in watched.items() if not is_present]
    return categories or present[:3] + absent[:1]


# ---- Records to tables -------------------------------------------------------------------------


SERIES = ("jsd_prev", "jsd_final", "entropy")  # of a record's readings


def settling_layer(target_rank: np.ndarray) -> np.ndarray:
    """The first position on the layer axis `[...]` from which on the target stays top-1 to the
    end, from its rank `[layer, ...]`; one past the last if it is not top-1 even there (two tokens
    within the rounding of float16)."""
    return len(target_rank) - np.cumprod((target_rank == 1)[::-1], axis=0).sum(axis=0)


def readable_layer(target_prob: np.ndarray) -> np.ndarray:
    """The first position on the layer axis `[...]` from which on the target keeps 90 % of its last
    probability, from that probability `[layer, ...]`. Unlike `settling_layer` this is hardly ever
    reached by luck, which is common among few possible answers."""
    return settling_layer(np.where(target_prob >= 0.9 * target_prob[-1], 1, 0))


def is_right(answer: str, truth: str) -> bool:
    """Whether an answer equals the truth, but for case and a full stop. Synonyms count as wrong
    ("man" for "person")."""
    return answer.strip().rstrip(".").lower() == truth.lower()


def tabulate(records: Iterable[dict], run: dict) -> dict[str, pd.DataFrame]:
    """Two tables from one pass over the records, so that one record is in memory at a time.

    - `layers`: a row per image, prompt (-1 for the patches), segment and layer. Over the positions
      of the segment: mean `jsd_prev`, `jsd_final` and `entropy` in bits, and `no_word`, the share
      of positions whose top-1 token is no word
    - `answers`: a row per image, prompt, answer token and layer, read at the position before the
      token. `settling_layer` and `readable_layer` are layer numbers, one past the last for never;
      `grey_probability` and `grey_rank` (with a grey image) are NaN after the first token

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
            about = {**image, "prompt": number, "kind": prompt["kind"]}
            n_prompt = prompt["n_prompt"]
            segments = ("prompt", slice(n_prompt)), ("answer", slice(n_prompt, None))
            for segment, positions in segments:
                if len(prompt["token_ids"][positions]):
                    means = _means(prompt["readings"], positions, is_word)
                    layers.append(({**about, "segment": segment}, means))
            answers += _answer_rows(about, prompt, tokens, numbers)
    return {"layers": _per_layer(layers, numbers), "answers": _per_layer(answers, numbers)}


def _means(readings: dict, positions: slice, is_word: np.ndarray) -> dict[str, np.ndarray]:
    """Per column the mean over positions `[layer]`."""
    means = {name: readings[name][:, positions].mean(axis=1) for name in SERIES}
    return {**means, "no_word": 1 - is_word[readings["top_ids"][:, positions, 0]].mean(axis=1)}


def _answer_rows(about: dict, prompt: dict, tokens: np.ndarray, numbers: np.ndarray) -> list:
    """For `_per_layer`, per answer token of a prompt: what holds at all layers, and the readings
    `[layer]` at the position before the token."""
    readings, truth, unknown = prompt["readings"], prompt["truth"], np.full(len(numbers), np.nan)
    ends = np.append(numbers, numbers[-1] + 1)  # by position, with never
    settled = ends[settling_layer(readings["target_rank"])]
    readable = ends[readable_layer(readings["target_prob"])]
    rows = []
    for token, token_id in enumerate(prompt["answer_ids"]):
        pos = prompt["n_prompt"] - 1 + token
        constant = {
            **about,
            **{name: prompt[name] for name in ("question", "truth", "answer")},
            "right": None if truth is None else is_right(prompt["answer"], truth),
            "token": token,
            "token_id": int(token_id),
            "token_label": tokens[token_id],
            "settling_layer": int(settled[pos]),
            "readable_layer": int(readable[pos]),
        }
        columns = {
            "top1": tokens[readings["top_ids"][:, pos, 0]],
            "probability": readings["target_prob"][:, pos],
            "rank": readings["target_rank"][:, pos].astype(int),
            "grey_probability": unknown if token else prompt["grey"]["target_prob"],
            "grey_rank": unknown if token else prompt["grey"]["target_rank"].astype(float),
            **{name: readings[name][:, pos] for name in SERIES},
        }
        rows.append((constant, columns))
    return rows


def _per_layer(rows: list[tuple[dict, dict]], numbers: np.ndarray) -> pd.DataFrame:
    """A table of a row per one of `rows` and layer; each of `rows` is its values that hold at all
    layers and its columns `[layer]`."""
    constants, columns = zip(*rows, strict=True)
    table = {}
    for name, value in constants[0].items():
        # Not pandas' own kind of text, which would copy a question to all rows: these refer to it.
        dtype = int if type(value) is int else object
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


# ---- Means over images, and their intervals ----------------------------------------------------

# For an interval: of five values not even the range from least to largest covers 95 %.
MIN_IMAGES = 6


def per_image(table: pd.DataFrame, column: str, by: str = "layer") -> pd.DataFrame:
    """The mean of `column` within each image `[image, by]`: images, not rows, are independent."""
    return table.groupby(["image", by])[column].mean().unstack(by).astype(float)


def interval(values: np.ndarray, statistic: Callable) -> np.ndarray:
    """The bootstrap 95 % interval over images (percentile method) of `statistic`, `[2, ...]`.

    `statistic` maps `[image, ...]`, drawn from `values`, to `[...]`; draws for which it is NaN
    don't count. NaN below MIN_IMAGES. The bounds are drawn statistics, so those of a layer are
    layers. Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993).
    """
    if len(values) < MIN_IMAGES:
        return np.full((2, *np.shape(statistic(values))), np.nan)
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    drawn = np.array([statistic(values[draw]) for draw in draws], dtype=float)
    return np.nanpercentile(drawn, [2.5, 97.5], axis=0, method="nearest")


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
        low, high = interval(values.to_numpy(), lambda drawn: drawn.mean(axis=0))
        mean = values.mean().to_numpy()
        curve = {by: group, "layer": values.columns, "mean": mean, "low": low, "high": high}
        curves.append(pd.DataFrame(curve))
    return pd.concat(curves[1:] or curves, ignore_index=True)


def answer_curves(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The first answer token's curves (`layer_curve`) by `kind`.

    - `probability`, `grey_probability`: mean probability with the image and with a grey one
    - `rank`, `grey_rank`: mean log10 of its rank, so 10 to its power is the geometric mean
    """
    first = answers[answers["token"] == 0]
    first = first.assign(rank=np.log10(first["rank"]), grey_rank=np.log10(first["grey_rank"]))
    columns = ("probability", "grey_probability", "rank", "grey_rank")
    return {column: layer_curve(first, column, "kind") for column in columns}


def settling_table(answers: pd.DataFrame, column: str = "settling_layer") -> pd.DataFrame:
    """Per kind of prompt: numbers of images, answers and known truths, the share that is right, and
    `column` of the first answer token.

    `median` is over images (of the mean within an image that has several prompts of the kind);
    `low` and `high` are its `interval`.
    """
    first, rows = first_tokens(answers), {}
    for kind in KINDS:
        of_kind = first[first["kind"] == kind]
        if of_kind.empty:
            continue
        layers = per_image(of_kind, column, "kind")[kind].to_numpy()
        graded = of_kind["right"].dropna()
        low, high = interval(layers, np.median)
        rows[kind] = {
            "images": len(layers),
            "answers": len(of_kind),
            "graded": len(graded),
            "right": graded.mean() if len(graded) else np.nan,
            "median": np.median(layers),
            "low": low,
            "high": high,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def first_tokens_at_end(answers: pd.DataFrame) -> pd.DataFrame:
    """Per kind of prompt, what the image brings to the first answer token at the last layer.

    Columns: `probability` and `grey_probability` (means over images), their difference `brings`,
    and `half_layer`, the first layer from which on at least half of that difference is there.
    """
    first, rows = answers[answers["token"] == 0], {}
    for kind in KINDS:
        of_kind = first[first["kind"] == kind]
        if of_kind.empty:
            continue
        columns = ("probability", "grey_probability")
        means = pd.DataFrame({column: per_image(of_kind, column).mean() for column in columns})
        means["brings"] = means["probability"] - means["grey_probability"]
        has_half = means["brings"].to_numpy() >= means["brings"].iloc[-1] / 2
        ends = np.append(means.index, means.index[-1] + 1)  # by position, with never
        half_layer = ends[settling_layer(np.where(has_half, 1, 0))]
        rows[kind] = {**means.iloc[-1], "half_layer": half_layer}
    return pd.DataFrame.from_dict(rows, orient="index")


# ---- Against the annotations -------------------------------------------------------------------

# Of an object: below 1 %, below 10 %, and from 10 % of the crop.
SIZES = ["small", "medium", "large"]
# The other groups of `grounding_curves`.
ALL_SIZES, OTHER_BOXES = "all sizes", "control: another image's boxes"
NO_WORD = "all patches: no word at all"


def word_probability(record: dict, category: str) -> np.ndarray:
    """P(word) `[layer, patch]` of a watched category, from the full distribution."""
    word = next(word for word in record["words"] if word["category"] == category)
    return 2.0 ** word["log2_probs"].astype(float)


def patch_coverage(box, grid: int, image_size: int) -> np.ndarray:
    """The share (0 to 1) of each patch `[grid * grid]`, row by row, that a box covers.

    `box` is x, y, width and height in pixels of the crop, which has `image_size` along a side.
    """
    edges = np.linspace(0, image_size, grid + 1)
    x, y, width, height = box
    columns = np.clip(np.minimum(edges[1:], x + width) - np.maximum(edges[:-1], x), 0, None)
    rows = np.clip(np.minimum(edges[1:], y + height) - np.maximum(edges[:-1], y), 0, None)
    return np.outer(rows, columns).ravel() * (grid / image_size) ** 2


def patches_of(record: dict, run: dict, category: str) -> np.ndarray:
    """Mask `[grid * grid]` of a category's patches: those at least half covered by one of its boxes
    (crowd regions too); a box too small for that gets the patch that it overlaps most."""
    coverages = [
        patch_coverage(item["box"], run["grid"], run["image_size"])
        for item in record["objects"]
        if item["category"] == category
    ]
    # The small number is for rounding: an exact half counts.
    masks = [cover >= min(0.5, cover.max()) - 1e-9 for cover in coverages if cover.max() > 0]
    return np.any(masks, axis=0)


def auroc(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The chance `[...]` that a value inside is larger than one outside (ties count half), from
    `values` `[..., n]` and the mask `inside` `[n]`.

    The area under the ROC curve. Source: Mann and Whitney's U (1947).
    """
    n_inside, n_outside = inside.sum(), (~inside).sum()
    rank_sum = rankdata(values, axis=-1)[..., inside].sum(-1)
    return (rank_sum - n_inside * (n_inside + 1) / 2) / (n_inside * n_outside)


def grounding(records: Iterable[dict], run: dict) -> pd.DataFrame:
    """How well P(word) tells a category's patches (`patches_of`) from the others: a row per image,
    category that it has, and layer. A category that fills the crop is left out.

    - `size` (SIZES) of its largest object; `several_tokens` as of the record
    - `auroc`: of P(word) in its patches against P(word) in the others
    - `named`: the share of its patches whose top-1 token is its word
    - `auroc_other_image`, `named_other_image`: controls, the same readings against the boxes of the
      image before; NaN for the first image

    Sources: AUROC against boxes is this project's; patches that decode to the word of their object:
    Neo et al., arXiv 2410.07149.
    """
    columns = ["auroc", "named", "auroc_other_image", "named_other_image"]
    rows, masks_before = [], []
    for record in records:
        masks = []
        for word in filter(lambda word: word["present"], record["words"]):
            category, inside = word["category"], patches_of(record, run, word["category"])
            if inside.all():
                continue
            share = max(o["share"] for o in record["objects"] if o["category"] == category)
            about = {
                "image": record["name"],
                "category": category,
                "several_tokens": word["several_tokens"],
                "size": SIZES[int(share >= 0.01) + int(share >= 0.1)],
            }
            other = masks_before[len(masks) % len(masks_before)] if masks_before else None
            values = [*_against(record, word, inside), *_against(record, word, other)]
            rows.append((about, dict(zip(columns, values, strict=True))))
            masks.append(inside)
        masks_before = masks or masks_before
    if rows:
        return _per_layer(rows, layer_numbers(run))
    return pd.DataFrame(columns=["image", "category", "several_tokens", "size", "layer", *columns])


def _against(record: dict, word: dict, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of P(word) in the patches of `mask`, and their share named, `[layer]`; NaN for None."""
    is_named = np.isin(record["patches"]["top_ids"][:, :, 0], word["token_ids"])
    if mask is None:
        return (np.full(len(is_named), np.nan),) * 2
    return auroc(word["log2_probs"], mask), is_named[:, mask].mean(axis=1)


def grounding_curves(table: pd.DataFrame, layers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`auroc` and `named` of `grounding` as curves (`layer_curve`) by `size`.

    Groups: SIZES, ALL_SIZES, the control OTHER_BOXES and, among `named`, NO_WORD: the share of all
    patches that decode to no word, from `layers` of `tabulate`.
    """
    control = table.dropna(subset="auroc_other_image").assign(
        auroc=lambda rows: rows["auroc_other_image"],
        named=lambda rows: rows["named_other_image"],
        size=OTHER_BOXES,
    )
    rows = pd.concat([table, table.assign(size=ALL_SIZES), control])
    patches = layers[layers["segment"] == "image"]
    no_word = patches.assign(size=NO_WORD, named=patches["no_word"])
    return {
        "auroc": layer_curve(rows, "auroc", "size"),
        "named": layer_curve(pd.concat([rows, no_word]), "named", "size"),
    }


def best_and_worst(table: pd.DataFrame, layer: int, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `n` rows of `grounding` at a layer with the largest AUROC and the `n` with the smallest,
    each of another image."""
    ordered = table[table["layer"] == layer].sort_values("auroc", ascending=False, kind="stable")
    best = ordered.drop_duplicates("image").head(n)
    return best, ordered.drop(best.index)[::-1].drop_duplicates("image").head(n)


def category_confidence(records: Iterable[dict]) -> pd.DataFrame:
    """A row per image and watched category, with `present`, `several_tokens` and

    - `confidence`: the largest P(word) over all layers and patches
    - `said_yes`: the model's answer when asked about the category, 1 for yes and 0 for no; NaN
      where it was not asked

    Source of the confidence: Jiang et al., arXiv 2410.02762.
    """
    rows = []
    for record in records:
        said_yes = {
            prompt["categories"][0]: float(is_right(prompt["answer"], "yes"))
            for prompt in record["prompts"]
            if prompt["kind"] == "presence" and prompt["categories"]
        }
        for word in record["words"]:
            about = [word[name] for name in ("category", "present", "several_tokens")]
            confidence = 2.0 ** float(word["log2_probs"].max())
            answered = said_yes.get(word["category"], np.nan)
            rows.append((record["name"], *about, confidence, answered))
    columns = ["image", "category", "present", "several_tokens", "confidence", "said_yes"]
    return pd.DataFrame(rows, columns=columns)


def presence_answers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `category_confidence` that the model was asked about: its answer `said_yes`
    beside the `confidence` read from the patches."""
    return table.dropna(subset="said_yes")


def presence_auroc(table: pd.DataFrame, column: str = "confidence") -> tuple[float, np.ndarray]:
    """AUROC of `column` for present against absent categories, and its `interval` `[2]`.

    NaN where all categories are present or all absent.
    """
    present, values = table["present"].to_numpy(bool), table[column].to_numpy()
    rows_of = list(table.groupby("image").indices.values())

    def of_images(numbers):
        rows = np.concatenate([rows_of[number] for number in numbers])
        one_kind = present[rows].all() or not present[rows].any()
        return np.nan if one_kind else float(auroc(values[rows], present[rows]))

    images = np.arange(len(rows_of))
    whole = of_images(images)
    return whole, np.full(2, np.nan) if np.isnan(whole) else interval(images, of_images)


def roc_curve(table: pd.DataFrame, column: str) -> np.ndarray:
    """Shares `[2, threshold]` of the absent and of the present categories whose `column` reaches a
    threshold, from the highest threshold down."""
    ordered = table.sort_values(column, ascending=False)
    is_last = ordered[column].ne(ordered[column].shift(-1)).to_numpy()  # ties are one step
    present = ordered["present"].to_numpy(bool)
    counts = np.cumsum([~present, present], axis=1)
    return np.insert(counts[:, is_last] / counts[:, -1:], 0, 0, axis=1)


# ---- Sentences ---------------------------------------------------------------------------------


def as_code(text: str) -> str:
    """The start of any text as code in Markdown and HTML: every special character is an entity, so
    that none is mark-up, mathematics or a tag."""
    text = text if len(text) <= 200 else text[:199] + "…"
    return "<code>" + re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", text) + "</code>"


def with_interval(value: float, ends: np.ndarray, show: Callable[[float], str]) -> str:
    """`6 (5 to 7)`: a statistic with its `interval`, each written by `show`."""
    low, high = ends
    if np.isnan(low):
        return f"{show(value)} (too few images for an interval)"
    return f"{show(value)} ({show(low)} to {show(high)})"


def _share(right: pd.Series) -> str:
    """`67% of 24 (47 to 82%)`: the share of True with its 95 % interval (Wilson)."""
    ends = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return f"{right.mean():.0%} of {len(right)} ({100 * ends.low:.0f} to {ends.high:.0%})"


def _peak(run: dict, values: pd.DataFrame) -> str:
    """`6 (5 to 7)`: the layer with the largest mean over images of `values` `[image, layer]`."""
    values = values.dropna(axis=1, how="all")

    def largest(drawn):
        return values.columns[np.nanargmax(drawn.mean(axis=0))]

    table = values.to_numpy()
    return with_interval(largest(table), interval(table, largest), partial(layer_label, run))


def report(run: dict, tables: dict, mean_probability: np.ndarray) -> str:
    """The written report as Markdown, from `tabulate` and the mean probability
    `[segment, layer, d_vocab]`."""
    layers, answers = tables["layers"], tables["answers"]
    first = first_tokens(answers)
    graded = first[first["right"].notna()].astype({"right": bool})
    demo = f" {DEMO_NOTE}" if run["model"] == "demo/model" else ""
    sections = [
        f"**What was read.** {layers['image'].nunique()} images with {len(first)} prompts, "
        f"{as_code(run['model'])} in {as_code(run['dtype'])}, {run['n_layers']} layers. On the "
        f"first image the lens at the last layer was {run['last_layer_jsd']:.1g} {UNIT} from the "
        f"model's own distribution.{demo}",
        _when_readable(run, answers, graded),
        _section(
            "**In which order.** An order is claimed only at p < 0.017 (0.05, Bonferroni over "
            "three pairs).",
            order_of_kinds(first),
        ),
        _section("**Where predictions change.**", _where_changes(run, layers)),
        _section(
            "**What image patches decode to** (largest mean probability over all patches and "
            "images)**.**",
            _patch_tokens(run, mean_probability[SEGMENTS.index("image")]),
        ),
        _section(
            "**Seen or guessed** (mean probability of the answer's first token at the last layer; "
            "in brackets with a grey image instead: what the language tower would say anyway)**.**",
            _seen_or_guessed(run, answers),
        ),
        _what_was_wrong(graded),
    ]
    return "\n\n".join(section for section in sections if section)


def _section(title: str, sentences: list[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in sentences)]) if sentences else ""


def _when_readable(run: dict, answers: pd.DataFrame, graded: pd.DataFrame) -> str:
    lines = [
        "**When answers become readable.** *Settles*: the layer from which on the first answer "
        "token stays the lens's top-1; among few possible answers an early layer can be right by "
        "luck. *Readable*: the layer from which on the token keeps 90 % of its last probability. "
        "Layers are medians over images. In brackets are 95 % intervals: bootstrap over images, "
        "for shares Wilson's.",
        "",
        "| kind of prompt | images | right, where the truth is known | settles at layer | "
        "readable from layer |",
        "| --- | --- | --- | --- | --- |",
    ]
    settling, readable = settling_table(answers), settling_table(answers, "readable_layer")
    for kind in settling.index:
        medians = " | ".join(
            with_interval(row["median"], row[["low", "high"]], partial(layer_label, run))
            for row in (settling.loc[kind], readable.loc[kind])
        )
        # Who always says yes is right on half of the presence questions: the halves stand apart.
        by_truth = graded[graded["kind"] == kind].groupby("truth" if kind == "presence" else "kind")
        shares = [
            f"{as_code(truth)}: {_share(group)}" if kind == "presence" else _share(group)
            for truth, group in by_truth["right"]
        ]
        right = ", ".join(shares) or "not known"
        lines.append(f"| {kind} | {settling.loc[kind, 'images']:.0f} | {right} | {medians} |")
    return "\n".join(lines)


def order_of_kinds(first: pd.DataFrame) -> list[str]:
    """Sentences on which of colour, object and relation becomes readable first, from a row per
    prompt with its `readable_layer`.

    Each pair of kinds is compared within the images that have both, by Wilcoxon's signed-rank test;
    an order is claimed below 0.05 / 3 (Bonferroni, three pairs). Empty for fewer than two kinds.
    """
    names = {"colour": "colours", "object": "objects", "relation": "the arrangement of objects"}
    if len(names.keys() & set(first["kind"])) < 2:
        return []
    layers = per_image(first, "readable_layer", "kind").reindex(columns=list(names))
    return [
        _order_of_two(layers[[a, b]].dropna().set_axis([names[a], names[b]], axis=1))
        for a, b in itertools.combinations(names, 2)
    ]


def _order_of_two(both: pd.DataFrame) -> str:
    """The sentence on two kinds, from their layers `[image, kind]`; the columns name the kinds."""
    a, b = both.columns
    later = both[b] - both[a]
    # Of six images not even a unanimous result is below 0.05 / 3.
    if len(both) < 7:
        return f"{a.capitalize()} and {b}: {len(both)} images have both, too few for a test."
    if not later.any():
        return (
            f"{a.capitalize()} and {b}: {len(both)} images have both, and on each the two become "
            "readable at the same layer."
        )
    p = wilcoxon(later, zero_method="zsplit").pvalue
    # The direction is that of the test, which ranks.
    if (np.sign(later) * rankdata(later.abs())).sum() < 0:
        a, b, later = b, a, -later
    claim = (
        f"Answers about {a} become readable before answers about {b}"
        if p < 0.05 / 3
        else f"Between answers about {a} and about {b} these results show no sure order"
    )
    return (
        f"{claim}: {a} earlier on {(later > 0).sum()} and later on {(later < 0).sum()} of the "
        f"{len(both)} images that have both, by {later.median():g} layers in the median (Wilcoxon "
        f"p = {p:.2g})."
    )


def _where_changes(run: dict, layers: pd.DataFrame) -> list[str]:
    sentences = []
    for segment in filter(set(layers["segment"]).__contains__, SEGMENTS):
        of_segment = layers[layers["segment"] == segment]
        change, distance = per_image(of_segment, "jsd_prev"), per_image(of_segment, "jsd_final")
        far = distance.columns[distance.mean() > 0.1]
        name = f"{segment.capitalize()} positions"
        if segment == "answer":
            name = "Positions of the answer's own tokens (about what follows them)"
        end = f"are nowhere more than 0.1 {UNIT} from the output"
        if len(far):
            last = layer_label(run, far.max())
            end = f"are last more than 0.1 {UNIT} from the output at layer {last}"
        peak = f"at layer {_peak(run, change)}, by {change.mean().max():.2f} {UNIT}"
        sentences.append(f"{name} change most {peak}, and {end}.")
    return sentences


def _patch_tokens(run: dict, mean: np.ndarray) -> list[str]:
    """From the patches' mean probability `[layer, d_vocab]`."""
    sentences = []
    for position in (len(mean) // 2, len(mean) - 1):
        probs = mean[position]
        labels = {i: as_code(printable(run["tokens"][i])) for i in np.argsort(-probs)[:6]}
        tokens = ", ".join(f"{label} {probs[i]:.2f}" for i, label in labels.items())
        sentences.append(f"At layer {run['layers'][position]}: {tokens}.")
    return sentences


def _seen_or_guessed(run: dict, answers: pd.DataFrame) -> list[str]:
    sentences = []
    for kind, row in first_tokens_at_end(answers).iterrows():
        half = f" Half of the difference is there at layer {layer_label(run, row['half_layer'])}."
        probabilities = f"{row['probability']:.2f} ({row['grey_probability']:.2f})"
        sentences.append(f"{kind}: {probabilities}.{half if row['brings'] > 0.1 else ''}")
    return sentences


def _what_was_wrong(graded: pd.DataFrame) -> str:
    if graded.empty:
        return ""
    wrong = graded[~graded["right"]]
    end = "." if wrong.empty else ":" if len(wrong) <= 5 else ", the first of them:"
    title = f"**What was wrong.** {len(wrong)} of {len(graded)} answers with a known truth{end}"
    lines = []
    for row in wrong.head(5).itertuples():
        question = as_code(row.question.splitlines()[0])
        answer, truth = as_code(row.answer), as_code(row.truth)
        lines.append(f"- {as_code(row.image)}: {question} Answer {answer}, truth {truth}.")
    return "\n".join([title, "", *lines])


def report_grounding(
    run: dict, layers: pd.DataFrame, grounded: pd.DataFrame, confident: pd.DataFrame
) -> str:
    """What `grounding` and `category_confidence` tell, as Markdown; `layers` as of `tabulate`."""
    lines = [] if grounded.empty else _where(run, layers, grounded)
    if confident["present"].nunique() == 2:
        lines.append(_present_or_imagined(confident))
    nothing = "Nothing to report: no annotated object lies in a part of the images."
    return "\n".join(lines) or nothing


def _where(run: dict, layers: pd.DataFrame, grounded: pd.DataFrame) -> list[str]:
    columns = ("auroc", "named", "auroc_other_image", "named_other_image")
    mean = {column: per_image(grounded, column).mean() for column in columns}
    best, most = mean["auroc"].idxmax(), mean["named"].idxmax()
    patches = layers[(layers["segment"] == "image") & (layers["layer"] == most)]
    cases = grounded.drop_duplicates(["image", "category"])
    several = cases.drop_duplicates("category")["several_tokens"].astype(int)
    tokens = f"All {len(several)} category words are single tokens."
    if several.any():
        tokens = (
            f"{several.sum()} of {len(several)} category words are several tokens; of these the "
            "first was watched, which may belong to other words too."
        )

    def control(value, form):
        known = f"{value:{form}} for the boxes of another image (control)"
        return "no control, which takes two images" if np.isnan(value) else known

    return [
        f"- **Where.** Over {cases['image'].nunique()} images with {len(cases)} annotated "
        "categories, P(category word) tells the category's patches from the others best at layer "
        f"{_peak(run, per_image(grounded, 'auroc'))}: mean AUROC {mean['auroc'][best]:.2f}, and "
        f"{control(mean['auroc_other_image'][best], '.2f')}; chance is 0.5.",
        "- **Named.** The share of an object's patches whose top-1 token is its word is largest at "
        f"layer {layer_label(run, most)}: {mean['named'][most]:.0%}, and "
        f"{control(mean['named_other_image'][most], '.0%')}. Of all patches "
        f"{patches['no_word'].mean():.0%} decode to no word at all there.",
        f"- {tokens}",
    ]


def _present_or_imagined(confident: pd.DataFrame) -> str:
    def area(table, column="confidence"):
        return with_interval(*presence_auroc(table, column), "{:.2f}".format)

    present = confident["present"]
    text = (
        f"- **Present or imagined.** The largest P(word) over layers and patches tells "
        f"{present.sum()} present from {(~present).sum()} absent categories with an AUROC of "
        f"{area(confident)}."
    )
    asked = presence_answers(confident)
    if asked["present"].nunique() == 2:
        text += (
            f" For the {len(asked)} that the model was asked about it is {area(asked)}, and for "
            f"the model's answers {area(asked, 'said_yes')}; an answer, yes or no, is one "
            "threshold only, so the area under it is smaller."
        )
    return text
