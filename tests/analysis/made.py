"""Records made by hand, and each table of some records by itself."""

from types import SimpleNamespace

import numpy as np

import lens_utils
from llava_lens import schema
from llava_lens.analysis import answers, causal, grounding, presence

GRID, LAYERS = 6, [0, 2, 5]  # not every layer was read: a layer is no position


RUN = {"layers": ["emb", "2", "5"], "segments": schema.SEGMENTS, "image_size": 56}
RUN["grid"] = [GRID, GRID]
RUN["tokens"] = ["▁dog", "▁cat", "s", "<0x0A>", "7"]


def make_object(category, box):
    """An annotated object with its box in the crop of 56 pixels."""
    about = {"category": category, "crowd": False, "color": None, "visible": 1.0}
    return {**about, "box": list(box), "share": box[2] * box[3] / 56**2}


def make_record(name, boxes, log2_probs, top_ids=None, absent=(), asked=()):
    """`boxes` are pairs of category and box, `log2_probs` `[layer, patch]` is by category, `asked`
    are pairs of the category of a presence prompt and its answer."""
    words = []
    for category, values in log2_probs.items():
        absent_sampling = "random" if category in absent else ""
        word = {"category": category, "present": category not in absent, "token_ids": [0]}
        log2 = np.asarray(values, np.float16)
        words.append(word | {"absent_sampling": absent_sampling, "log2_probs": log2})
    prompts = [{"kind": "presence", "categories": [name], "answer": said} for name, said in asked]
    top_ids = np.zeros((len(LAYERS), GRID**2, 1), np.uint8) if top_ids is None else top_ids
    return {
        "name": name, "image_digest": "0", "annotations_digest": "0", "words": words,
        "objects": [make_object(category, box) for category, box in boxes], "prompts": prompts,
        "patches": {"top_ids": top_ids},
    }  # fmt: skip


def planted(n=40):
    """Images whose patches inside the box have the word's probability, at random places."""
    rng, records, shape = np.random.default_rng(0), [], (len(LAYERS), GRID**2)
    for number in range(n):
        box = (*map(float, rng.integers(0, 3, 2) * 56 / 3), 56 / 3, 56 / 3)
        log2_probs = {"dog": np.full(shape, -9.0), "cat": np.full(shape, -7.0)}
        record = make_record(f"{number}.jpg", [("dog", box)], log2_probs, absent=["cat"])
        inside = grounding.patches_of(record, RUN, "dog")
        assert inside.sum() == 4
        record["words"][0]["log2_probs"][1:, inside] = -1
        records.append(record)
    return records


def answers_of(records, run):
    return answers.answers_table([row for r in records for row in answers.answer_rows(r, run)], run)


def layers_of(records, run):
    return answers.layers_table([row for r in records for row in answers.layer_rows(r, run)], run)


def grounding_of(records, run):
    read = grounding.Grounding(run)
    for record in records:
        read.add(record)
    return read.table()


def confidence_of(records):
    return presence.category_confidence([presence.watched_of(record) for record in records])


def knockouts_of(records, run):
    return causal.knockouts([row for r in records for row in causal.knockout_rows(r, run)])


def tables_of(records, run, mean_probability):
    """`tabulate` of records that were never saved."""
    held = {"records": lambda: records, "mean_probability": lambda: mean_probability}
    return lens_utils.tabulate(SimpleNamespace(run=run, **held))


def routes_of(records, run):
    return causal.routes([row for r in records for row in causal.route_rows(r, run)], run)
