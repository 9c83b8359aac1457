"""The format of the results: fields, bounds, layer numbers. docs/format.md says more of each."""

from typing import NamedTuple

import numpy as np

FORMAT_VERSION = 6
SEGMENTS = ["image", "prompt", "answer"]
# How an absent category is drawn: POPE's three ways (Li et al., arXiv 2305.10355).
ABSENT_SAMPLINGS = ["random", "popular", "adversarial"]
DEMO_NOTE = (
    "This is the small demo model: it knows six shapes and seven colours, and what is read from it "
    "says nothing about LLaVA-1.5-7B. For photographs, set `model` to llava-hf/llava-1.5-7b-hf "
    "(a GPU of 16 GB, or of 8 GB with `quantize` set to 4bit)."
)
OTHER_RELEASE = (
    f"this release reads {FORMAT_VERSION}: read the images again with Make_Analyse.ipynb, or take "
    "the release that made these results"
)
ROUNDING = 1e-4  # of sums in float32
SHARE = 0, 1 + ROUNDING  # bounds of a probability
LEAST_SIDE = 0.01  # pixels of a box: below it is rounding


class Field(NamedTuple):
    """One field of the results.

    - `kind`: one Python type or several; "text" for a text that is not blank; `f`, `i`, `u` or
      `|u1` for a numpy array of such numbers; `dict` for texts by text; a table of fields for a
      dict of these and no others; a list of a table for a list of such dicts
    - `shape`: the names of an array's axes, or of a list or dict; MOST has their bounds
    - `least`, `most`: bounds of numbers, or of the length of a text; `most` may name a size
    - `optional`: the field may be missing
    - `may_be_empty`: a dict may be `{}` in place of all its fields
    """

    kind: type | tuple[type, ...] | str | dict | list
    meaning: str
    shape: tuple[str, ...] = ()
    least: float | None = None
    most: float | str | None = None
    optional: bool = False
    may_be_empty: bool = False


# Bounds of what a file may make others hold in memory; real results stay far below them.
MOST_LAYERS, MOST_GRID, MOST_PIXELS, MOST_LABEL, MOST_TEXT = 200, 64, 2048, 100, 2**14
MOST_NAME_BYTES = 200  # file systems allow names of 255, a record adds a suffix
MOST_OF_AXIS = 256  # the longest list, dict or axis of an array that MOST does not name
MOST = {"d_vocab": 300_000, "category": 5000, "object": 1000, "pos": 8192, "answer": 1024}
MOST |= {"image": 100_000, "skipped": 100_000}
MOST_CELLS = 2**20  # layers x text positions of a record; of LLaVA-1.5-7B a prompt has some 1,500
MOST_ROWS, MOST_ROWS_OF_ONE = 2**24, 2**19  # of tables, by `checks.n_rows`; an image has 2,000
MOST_LOGIT = 1e6  # far above any; it leaves out infinity and NaN
LARGEST_NORM = 65504  # of float16
ASKED = {  # a prompt before it is read
    "kind": Field(str, "one of KINDS"),
    "question": Field("text", "as asked, without the template around it"),
    "truth": Field((str, type(None)), "the right answer, where it is known"),
    "truth_from": Field(str, "annotation, pixels (of the object's polygon), user, or empty"),
    "categories": Field("text", "the categories that the question is about", ("about",)),
    "absent_sampling": Field(str, "how an absent category was drawn; empty elsewhere"),
}
RUN = {  # run.pkl: what the records have in common
    "format_version": Field(int, f"{FORMAT_VERSION}"),
    "model": Field(str, "hub id or folder"),
    "revision": Field(str, "a fingerprint of the weights"),
    "dtype": Field(str, "of the weights, or of what is computed with them"),
    "quantize": Field((str, type(None)), "how the blocks' weights are stored, if not in dtype"),
    "packages": Field(dict, "versions by name", ("package",)),
    "n_layers": Field(int, "blocks of the language tower", (), 1, MOST_LAYERS),
    "layers": Field(str, "labels: emb, or l for the state after block l", ("layer",)),
    "segments": Field(str, "labels of the segment axis", ("segment",)),
    "tokens": Field(str, "labels of the unembedding's rows", ("d_vocab",), 0, MOST_LABEL),
    "image_size": Field(int, "pixels along a side of the crop", (), 1, MOST_PIXELS),
    "grid": Field(int, "rows and columns of patches, which cover it", ("two",), 1, MOST_GRID),
    "n_image_tokens": Field(
        int, "patches, after a class token if there is one", (), 1, MOST_GRID**2 + 1
    ),
    "chat": Field(str, "template around a question"),
    "words": Field(str, "digest of the table of words that they were read with"),
    "questions": Field(dict, "template of the question by kind", ("kind",)),
    "own_prompts": Field([ASKED], "the user's own; empty: made from annotations", ("prompt",)),
    "categories": Field("text", "names of all categories of the data set", ("category",)),
    "per_kind": Field(int, "prompts per kind and image, where made", (), 1, MOST_OF_AXIS // 8),
    "seed": Field(int, "of the choice among candidates"),
    "top_k": Field(int, "tokens kept per layer and position", (), 1, "d_vocab"),
    "max_new_tokens": Field(int, "of an answer", (), 1, MOST["answer"]),
    "embedding_lens": Field(bool, "whether patches were read with the embedding lens"),
    "tied": Field(bool, "whether the input embedding is the unembedding too"),
    "knockout_windows": Field(list, "windows of blocks", ("window",)),
    "route_layers": Field(int, "layers that were patched", ("route_layer",), 0, MOST_LAYERS),
    "last_layer_jsd": Field(float, "of lens and model on the first image, bits", (), 0, 1),
}
LAYER, LAYER_POS = ("layer",), ("layer", "pos")
READINGS = {  # at each layer and position; a reading is about the token that follows the position
    "top_ids": Field("u", "ids of the top-k tokens", (*LAYER_POS, "top_k"), 0, "last_id"),
    "top_probs": Field("f", "their probabilities, falling", (*LAYER_POS, "top_k"), *SHARE),
    "jsd_prev": Field("f", "JSD to the layer before, bits; NaN at the first", LAYER_POS, 0, 1),
    "jsd_final": Field("f", "JSD to the last layer, bits", LAYER_POS, 0, 1),
    "entropy": Field("f", "in bits", LAYER_POS, -ROUNDING, "most_bits"),
    "target_prob": Field("f", "probability of the target", LAYER_POS, *SHARE),
    "target_rank": Field("u", "rank of the target, 1 = top", LAYER_POS, 1, "d_vocab"),
}
COSINE = -1 - 1e-2, 1 + 1e-2  # bounds; float16 and bfloat16 round
# So many nearest input embeddings, at every second layer: each takes a product with all rows.
N_NEAREST, NEAREST_EVERY = 5, 2
NEAREST = ("nearest_layer", "patch", "nearest")
PATCHES = {
    **READINGS,
    "norms": Field("f", "of the residual states", ("layer", "patch"), 0, LARGEST_NORM, True),
    "embedding_ids": Field("u", "ids of the nearest input embeddings", NEAREST, 0, "last_id", True),
    "embedding_cosines": Field("f", "their cosines to the state, falling", NEAREST, *COSINE, True),
}
OBJECT = {
    "category": Field(str, "its name"),
    "box": Field(float, "x, y, width, height in pixels of the crop, clipped", ("xywh",), 0, "side"),
    "crowd": Field(bool, "COCO's iscrowd, or some of its category could not be read"),
    "color": Field((str, type(None)), "where it is known"),
    "color_from": Field(str, "annotation, pixels (of its polygon), or empty"),
    "visible": Field(float, "share of the object within the crop", (), 0, 1.001),
    "share": Field(float, "share of the crop that it takes", (), 0, 1.001),
    "cut_off": Field(bool, "whether the edge of the image or of the crop may have cut it"),
}
WORD = {
    "category": Field("text", "its name"),
    "present": Field(bool, "whether the image has it"),
    "absent_sampling": Field(str, "how an absent one was drawn; empty: present"),
    "token_ids": Field(int, "its word, whole: their probabilities add", ("token",), 0, "last_id"),
    "log2_probs": Field("f", "log2 of the sum, in float16", ("layer", "patch"), -127, 0.01),
    "cosines": Field("f", "the best of its input embeddings", ("layer", "patch"), *COSINE, True),
}
CONTROL = {  # of the token at word_at of the answer that the image got, where it would be said
    "target_prob": Field("f", "its probability", LAYER, *SHARE),
    "target_rank": Field("u", "its rank, 1 = top", LAYER, 1, "d_vocab"),
    "word_prob": Field("f", "as PROMPT's", LAYER, *SHARE),
    "word_rank": Field("u", "as PROMPT's", LAYER, 1, "d_vocab"),
}
PROB_BY_WINDOW = ("window",), *SHARE
KNOCKOUT = {  # P of the first answer token where attention from all text after the image is cut
    "object": Field("f", "to the patches of its objects", *PROB_BY_WINDOW, optional=True),
    "background": Field("f", "to as many other patches: control", *PROB_BY_WINDOW, optional=True),
    "image": Field(float, "to all patches", (), *SHARE),
    "image_last": Field(float, "to all patches, from the last position only", (), *SHARE),
    "question_last": Field(float, "to the other text, from the last position only", (), *SHARE),
}
OF_OBJECTS = ["object", "background"]  # in windows; both or none, as the objects are known
LD = (), -MOST_LOGIT, MOST_LOGIT
LD_BY_LAYER = ("route_layer",), *LD[1:]
# Sources: Vig et al. (arXiv 2004.12265), Heimersheim and Nanda (arXiv 2404.15255).
ROUTE = {  # activation patching; LD is the logit difference
    "other": Field("text", "name of the counterfactual image"),
    "other_answer": Field(str, "the answer to the same question on that image"),
    "own_id": Field(int, "first token of the own answer", (), 0, "last_id"),
    "other_id": Field(int, "first token of the counterfactual's answer", (), 0, "last_id"),
    "own": Field(float, "LD in the own run", *LD),
    "counterfactual": Field(float, "LD in the counterfactual run", *LD),
    "image": Field("f", "LD with all patches patched", *LD_BY_LAYER),
    "question": Field("f", "LD with the text before the last position patched", *LD_BY_LAYER),
    "last": Field("f", "LD with the last position patched", *LD_BY_LAYER),
    "mediated": Field(float, "LD with the question patched at all layers at once", *LD),
}
PROMPT = {
    **ASKED,
    "token_ids": Field("i", "input tokens after the image", ("pos",), 0, "last_id"),
    "n_prompt": Field(int, "how many of them are the prompt's; the others are the answer's"),
    "answer_ids": Field("i", "the answer's tokens with the end token", ("answer",), 0, "last_id"),
    "answer": Field(str, "the answer as text"),
    "word_at": Field(int, "which answer token begins the first word", (), 0, MOST["answer"]),
    "word_ids": Field(int, "spellings of the first word", ("spelling",), 0, "last_id"),
    "word_prob": Field("f", "their sum, where the word begins", LAYER, *SHARE),
    "word_rank": Field("u", "its rank among the words, 1 = top", LAYER, 1, "d_vocab"),
    "readings": Field(READINGS, "at the positions of token_ids", ("pos",)),
    "grey": Field(CONTROL, "the same prompt with a plain grey image"),
    "other": Field(CONTROL, "the same with the image before, where there is one", optional=True),
    "knockout": Field(KNOCKOUT, "attention knockout", may_be_empty=True),
    "route": Field(ROUTE, "activation patching", optional=True, may_be_empty=True),
}
RECORD = {  # images/<name>.pkl: one image with its prompts
    "name": Field(str, "the image's, and the file's"),
    "image_digest": Field(str, "of the image's file (`data.images.digests_of`)"),
    "annotations_digest": Field(str, "of the image's annotations, before the crop"),
    "objects": Field([OBJECT], "annotated objects", ("object",)),
    "words": Field([WORD], "categories watched in the patches", ("word",)),
    "prompts": Field([PROMPT], "one or more", ("prompt",)),
    "patches": Field(PATCHES, "positions are patches, row by row", ("patch",)),
    "crop": Field("|u1", "the image as the model saw it", ("row", "column", "rgb"), 0, 255),
}
PART = {  # parts/<process>.pkl: what one process has read; an image counts once it is here
    "images": Field("text", "names", ("image",)),
    "skipped": Field(dict, "the reason by name", ("skipped",)),
    "n_images": Field("i", "images with positions in the segment", ("segment",), 0, "image"),
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


def weights_label(run: dict) -> str:
    """How the weights are stored, such as `float16` or `float16, 4 bit`."""
    return f"{run['dtype']}, 4 bit" if run["quantize"] == "4bit" else run["dtype"]
