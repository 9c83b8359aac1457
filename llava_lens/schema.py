"""The format of the results: fields, bounds, layer numbers and labels."""

from typing import NamedTuple

import numpy as np

FORMAT_VERSION = 3
SEGMENTS = ["image", "prompt", "answer"]
# Of absent categories: POPE's three (Li et al., arXiv 2305.10355).
WAYS = ["random", "popular", "adversarial"]
UNIT = "bits"  # of JSD and entropy, everywhere
DEMO_NOTE = (
    "This is the small demo model: it knows six shapes and seven colours, and what is read from it "
    "says nothing about LLaVA-1.5-7B. For photographs, set `model` to llava-hf/llava-1.5-7b-hf "
    "(a GPU of 16 GB)."
)
OTHER_RELEASE = (
    f"this release reads {FORMAT_VERSION}: read the images again with Make_Analyse.ipynb, or take "
    "the release that made these results"
)
ROUNDING = 1e-4  # of sums in float32
LEAST_SIDE = 0.01  # pixels of a box: below it is rounding


class Field(NamedTuple):
    """One field of the results: what `check_run`, `check_record` and `check_part` ask of it.

    `kind` is a Python type (or several), "text" (one that is not blank), the kind of numbers of a
    numpy array (`f`, `i` or `u`), `dict` for texts by text, the table of a dict, or a list of that
    table for a list of such dicts. `shape` names the sizes of an array's axes; a plain value with
    a shape is a list. Numbers are from `least` to `most`; a size may be named there too. A text has
    at most `most` characters. One that is `optional` may be missing.
    """

    kind: type | tuple[type, ...] | str | dict | list
    meaning: str
    shape: tuple[str, ...] = ()
    least: float | None = None
    most: float | str | None = None
    optional: bool = False


MOST_LAYERS, MOST_GRID, MOST_PIXELS, MOST_LABEL, MOST_TEXT = 200, 64, 2048, 100, 2**16
MOST_NAME_BYTES = 200  # file systems allow names of 255, a record adds a suffix
MOST_CELLS = 2**20  # layers x text positions of a record; of LLaVA-1.5-7B a prompt has some 3,000
ASKED = {  # a prompt before it is read
    "kind": Field(str, "one of KINDS"),
    "question": Field("text", "as asked, without the template around it"),
    "truth": Field((str, type(None)), "the right answer, where it is known"),
    "truth_from": Field(str, "annotation, pixels (of the object's polygon), user, or empty"),
    "categories": Field("text", "the categories that the question is about", ("category",)),
    "way": Field(str, "how an absent category was drawn, one of WAYS; empty elsewhere"),
}
RUN = {  # run.pkl: what the records have in common
    "format_version": Field(int, f"{FORMAT_VERSION}"),
    "model": Field(str, "hub id or folder"),
    "revision": Field(str, "commit on the hub, or a fingerprint of the weights"),
    "dtype": Field(str, "of the weights"),
    "packages": Field(dict, "versions by name"),
    "n_layers": Field(int, "blocks of the language tower", (), 1, MOST_LAYERS),
    "layers": Field(str, "labels: emb, or l for the state after block l", ("layer",)),
    "segments": Field(str, "labels of the segment axis", ("segment",)),
    "tokens": Field(str, "labels of the unembedding's rows", ("d_vocab",), 0, MOST_LABEL),
    "grid": Field(int, "patches along a side of the crop", (), 1, MOST_GRID),
    "image_size": Field(int, "pixels along a side of the crop", (), 1, MOST_PIXELS),
    "chat": Field(str, "template around a question"),
    "questions": Field(dict, "template of the question by kind"),
    "own_prompts": Field([ASKED], "the user's own; empty: made from annotations"),
    "categories": Field("text", "names of all categories of the data set", ("category",)),
    "per_kind": Field(int, "prompts per kind and image, where made from annotations"),
    "seed": Field(int, "of the choice among candidates"),
    "top_k": Field(int, "tokens kept per layer and position", (), 1, "d_vocab"),
    "max_new_tokens": Field(int, "of an answer"),
    # First and last block, from 1; the last window has all blocks. Empty: attention was not cut.
    "knockout_windows": Field(list, "windows of blocks", ("window",)),
    "last_layer_jsd": Field(float, "of lens and model on the first image, bits", (), 0, 1),
}
LAYER, LAYER_POS = ("layer",), ("layer", "pos")
READINGS = {  # at each layer and position; a reading is about the token that follows the position
    "top_ids": Field("u", "ids of the top-k tokens", (*LAYER_POS, "top_k"), 0, "last_id"),
    "top_probs": Field("f", "their probabilities, falling", (*LAYER_POS, "top_k"), 0, 1 + ROUNDING),
    "jsd_prev": Field("f", "JSD to the layer before, bits; NaN at the first", LAYER_POS, 0, 1),
    "jsd_final": Field("f", "JSD to the last layer, bits", LAYER_POS, 0, 1),
    "entropy": Field("f", "in bits", LAYER_POS, -ROUNDING, "most_bits"),
    # The target is the answer's token that follows, elsewhere the last layer's top-1.
    "target_prob": Field("f", "probability of the target", LAYER_POS, 0, 1 + ROUNDING),
    "target_rank": Field("u", "rank of the target, 1 = top", LAYER_POS, 1, "d_vocab"),
}
OBJECT = {
    "category": Field(str, "its name"),
    "box": Field(float, "x, y, width, height in pixels of the crop, clipped", ("xywh",), 0, "side"),
    "crowd": Field(bool, "COCO's iscrowd"),
    "color": Field((str, type(None)), "where it is known"),
    "color_from": Field(str, "annotation, pixels (of its polygon), or empty"),
    "visible": Field(float, "share of the object within the crop", (), 0, 1.001),
    "share": Field(float, "share of the crop that it takes", (), 0, 1.001),
}
WORD = {
    "category": Field("text", "its name"),
    "present": Field(bool, "whether the image has it"),
    "way": Field(str, "how an absent one was drawn, one of WAYS; empty: present"),
    "token_ids": Field(int, "its word, whole: their probabilities add", ("token",), 0, "last_id"),
    "log2_probs": Field("f", "log2 of the sum, in float16", ("layer", "patch"), -127, 0.01),
}
CONTROL = {  # of the first token of the answer that the image got, at the prompt's last position
    "target_prob": Field("f", "its probability", LAYER, 0, 1 + ROUNDING),
    "target_rank": Field("u", "its rank, 1 = top", LAYER, 1, "d_vocab"),
    "word_prob": Field("f", "as PROMPT's", LAYER, 0, 1 + ROUNDING),
    "word_rank": Field("u", "as PROMPT's", LAYER, 1, "d_vocab"),
}
KNOCKOUT = {  # P of the first answer token where, in a window of blocks, attention is cut ...
    way: Field("f", f"... from {way_from} to {way_to}", ("window",), 0, 1 + ROUNDING, optional=True)
    for way, way_from, way_to in [
        ("object", "all text after the image", "the patches of the objects asked about"),
        ("background", "all text after the image", "as many patches outside their boxes: control"),
        ("image_last", "the last position", "all patches"),
        ("question_last", "the last position", "the other text after the image"),
        ("image", "all text after the image", "all patches"),
    ]
}
OF_OBJECTS = ["object", "background"]  # only where the objects are known
PROMPT = {
    **ASKED,
    "token_ids": Field("i", "input tokens after the image", ("pos",), 0, "last_id"),
    "n_prompt": Field(int, "how many of them are the prompt's; the others are the answer's"),
    "answer_ids": Field("i", "the answer's tokens with the end token", ("answer",), 0, "last_id"),
    "answer": Field(str, "the answer as text"),
    # Tokens that spell the answer's first word; none if its first token is a piece of a word.
    "word_ids": Field(int, "spellings of the first word", ("spelling",), 0, "last_id"),
    "word_prob": Field("f", "their sum, where the answer begins", LAYER, 0, 1 + ROUNDING),
    "word_rank": Field("u", "its rank among the words, 1 = top", LAYER, 1, "d_vocab"),
    "readings": Field(READINGS, "at the positions of token_ids", ("pos",)),
    "grey": Field(CONTROL, "the same prompt with a plain grey image"),
    "other": Field(CONTROL, "the same with the image before, where there is one", optional=True),
    "knockout": Field(KNOCKOUT, "empty if switched off, or for a prompt too long for it"),
}
RECORD = {  # images/<name>.pkl: one image with its prompts
    "name": Field(str, "the image's, and the file's"),
    "image_digest": Field(str, "of the image's file (`lens_data.digests_of`)"),
    "annotations_digest": Field(str, "of the image's annotations, before the crop"),
    "objects": Field([OBJECT], "annotated objects"),
    "words": Field([WORD], "categories watched in the patches"),
    "prompts": Field([PROMPT], "one or more"),
    "patches": Field(READINGS, "positions are patches, row by row", ("patch",)),
    "crop": Field("u", "the image as the model saw it: a JPEG's bytes", ("byte",), 0, 255),
}
PART = {  # parts/<process>.pkl: what one process has read; an image counts once it is here
    "images": Field("text", "names", ("image",)),
    "skipped": Field(dict, "the reason by name"),
    "n_images": Field("i", "images with positions in the segment", ("segment",), 0, "image"),
    # The mean over the positions of a segment, summed over the images.
    "sums": Field("f", "mean probability", ("segment", "layer", "d_vocab"), 0, "most_sum"),
}


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
