"""Questions about an image, from its annotations or the user."""

import itertools
import random
from collections import Counter

import numpy as np

from llava_lens.data.colours import may_have_colour
from llava_lens.data.watched import draw_absent
from llava_lens.kinds import CHAT, KINDS, question_of
from llava_lens.text import is_text, require
from llava_lens.words import SPECIAL_TOKENS


def relation_of(box_a, box_b) -> str | None:
    """Where `a` is relative to `b` (`left`, `right`, `above`, `below`), or None unless the boxes
    are clearly apart.

    Clearly: they do not overlap along the main direction, and their centres are 1.5 times as far
    apart along it as along the other.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a, box_b
    dx, dy = (ax + aw / 2) - (bx + bw / 2), (ay + ah / 2) - (by + bh / 2)
    if abs(dx) >= 1.5 * abs(dy) and abs(dx) >= (aw + bw) / 2:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx) and abs(dy) >= (ah + bh) / 2:
        return "above" if dy < 0 else "below"
    return None


def make_prompts(
    objects: list[dict],
    categories: list[str],
    seed: int | str = 0,
    per_kind: int = 1,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """Prompts about one image, from its `objects` (`objects_in_crop`) and all known `categories`.

    Asked about are objects of which at least half is in the crop and which fill at least 1 % of
    it. Among the candidates of a kind `per_kind` are drawn with `seed` (presence: `per_kind`
    present and `per_kind` absent categories, these by `draw_absent` with the counts `together`).
    Where `objects` is empty there are two prompts, object and description. Each prompt is a dict:

    - `kind`: object, presence, colour, relation or description; `question`: a text
    - `truth`: the right answer, None where it is not known
    - `truth_from`: how it came about, `annotation`, `pixels` (`with_colours`) or empty
    - `categories`: the names of the categories that the question is about
    - `way`: how an absent category was drawn, one of WAYS; empty elsewhere
    """
    rng, prompts = random.Random(seed), []

    def add(kind, question, truth, about, way="", truth_from="annotation"):
        about = {"truth_from": truth_from if truth else "", "categories": about, "way": way}
        prompts.append({"kind": kind, "question": question, "truth": truth, **about})

    def draw(kind, candidates):
        for candidate in rng.sample(candidates, min(per_kind, len(candidates))):
            add(kind, *candidate)

    clear = [
        item
        for item in objects
        if not item["crowd"] and item["visible"] >= 0.5 and item["share"] >= 0.01
    ]
    # A second dog makes "the dog" ambiguous even where it is small, cut off or part of a crowd.
    count = Counter(item["category"] for item in objects)
    single = [item for item in clear if count[item["category"]] == 1]
    main = _main_category(clear, objects)
    if main or not objects:
        draw("object", [(question_of("object"), main, [main] if main else [])])
    if objects:
        present = sorted({item["category"] for item in clear})
        absent = [name for name in categories if name not in count]
        draw(
            "presence",
            [(question_of("presence", category=name), "yes", [name]) for name in present],
        )
        for name, way in draw_absent(absent, {*count}, together or {}, per_kind, rng):
            add("presence", question_of("presence", category=name), "no", [name], way)
    # First those whose colour is known; of the others only what may have one.
    colours = [item for item in single if item["color"] or may_have_colour(item)]
    colours = sorted(rng.sample(colours, len(colours)), key=lambda item: item["color"] is None)
    for item in colours[:per_kind]:
        about = question_of("colour", category=item["category"]), item["color"], [item["category"]]
        add("colour", *about, truth_from=item.get("color_from", "annotation"))
    relations = [
        (a["category"], b["category"], relation_of(a["box"], b["box"]))
        for a, b in itertools.permutations(single, 2)
    ]
    draw("relation", [(question_of("relation", a=a, b=b), r, [a, b]) for a, b, r in relations if r])
    draw("description", [(question_of("description"), None, [])])
    return prompts


def _main_category(clear: list[dict], objects: list[dict]) -> str | None:
    """The category of the largest of the `clear` objects, or None unless that takes 1.5 times as
    much of the crop as any object of another category."""
    if not clear:
        return None
    largest = max(clear, key=lambda item: item["share"])
    rest = [item["share"] for item in objects if item["category"] != largest["category"]]
    return largest["category"] if largest["share"] >= 1.5 * max(rest, default=0) else None


def as_prompts(prompts: list) -> list[dict]:
    """The user's own prompts in the form of `make_prompts`, with empty `categories` and `way`; a
    truth is from the `user`.

    Each is a question, or a dict with `question` and optionally `kind` (else `own`) and `truth`.
    Raises ValueError for an empty question, one that brings its own `<image>`, an unknown kind, a
    truth that is no text and any other key.
    """
    require(
        isinstance(prompts, (list, tuple)) or isinstance(prompts, np.ndarray) and prompts.ndim == 1,
        f"prompts is {prompts!r}: it must be a list of questions, [] for those made from "
        "annotations.",
    )
    return [_as_prompt(prompt, f"Prompt {number}") for number, prompt in enumerate(prompts)]


def _as_prompt(prompt, where: str) -> dict:
    """One prompt of `as_prompts`, called `where` in error messages."""
    given = prompt if isinstance(prompt, dict) else {"question": prompt}
    # A text of numpy's is one too, but could not be saved.
    given = {str(k): str(v) if isinstance(v, str) else v for k, v in given.items()}
    question, kind, truth = given.get("question"), given.get("kind", "own"), given.get("truth")
    require(
        is_text(question),
        f"{where} is empty or no text: give a question, or an empty list for the prompts made from "
        "annotations.",
    )
    unknown = ", ".join(map(repr, given.keys() - {"kind", "question", "truth"}))
    require(not unknown, f"{where} has {unknown}: only question, kind and truth have a meaning.")
    require(
        truth is None or is_text(truth),
        f"{where} has the truth {truth!r}: it must be a text or None.",
    )
    require(
        kind in KINDS, f"{where} is of the kind {kind!r}: it must be one of {', '.join(KINDS)}."
    )
    own = ", ".join(token for token in SPECIAL_TOKENS if token in question)
    require(
        not own,
        f"{where} ({question!r:.200}) has its own {own}: leave it out, the image is put before the "
        f"question, and nothing but the model ends it ({CHAT!r}).",
    )
    about = {"truth_from": "user" if truth else "", "categories": [], "way": ""}
    return {"kind": kind, "question": question, "truth": truth, **about}
