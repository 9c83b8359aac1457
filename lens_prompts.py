"""What the model is asked: the prompts of one image, and the words to watch in its patches.

Holds the questions, the choice among them, the categories that are asked about though they are
absent, and the patches that the knockout cuts. It knows nothing of files, pixels, weights or the
lens; of the model it knows the tokenizer.
"""

import itertools
import random
from collections import Counter

import numpy as np

from lens_data import SPECIAL_TOKENS, may_have_colour
from lens_format import COLOURS, KINDS, WAYS, is_text, require
from lens_utils import WORDS, names_of, patch_coverage

__all__ = [
    "CHAT", "SHORT_ANSWER", "QUESTIONS", "DESCRIPTION_QUESTION", "object_question",
    "presence_question", "colour_question", "relation_question", "relation_of", "count_together",
    "draw_absent", "make_prompts", "as_prompts", "patches_to_cut", "words_to_watch", "word_ids",
]  # fmt: skip

# ---- Prompts -----------------------------------------------------------------------------------

# LLaVA-1.5's conversation format (the image stands before the question), and the line that it was
# trained to answer in a word.
CHAT = "USER: <image>\n{question} ASSISTANT:"
SHORT_ANSWER = "Answer the question using a single word or phrase."
QUESTIONS = {  # template by kind of prompt
    "object": "What is the main object in the image?\n" + SHORT_ANSWER,
    "presence": "Is there {article} {category} in the image?\n" + SHORT_ANSWER,
    "colour": "What color is the {category}?\n" + SHORT_ANSWER,
    "relation": "Where is the {a} relative to the {b}: left, right, above or below?\n"
    + SHORT_ANSWER,
    "description": "Describe the image.",
}
DESCRIPTION_QUESTION = QUESTIONS["description"]


def object_question() -> str:
    """Asks for the main object."""
    return QUESTIONS["object"]


def presence_question(category: str) -> str:
    """Asks whether the image has a category."""
    article = "an" if category[0] in "aeiou" else "a"
    return QUESTIONS["presence"].format(article=article, category=category)


def colour_question(category: str) -> str:
    """Asks for the colour of a category's one object."""
    return QUESTIONS["colour"].format(category=category)


def relation_question(a: str, b: str) -> str:
    """Asks where `a` is, as seen from `b`."""
    return QUESTIONS["relation"].format(a=a, b=b)


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


def count_together(annotations: dict[str, list[dict]]) -> dict[str, Counter]:
    """For each category, in how many images each other one is beside it, and under its own name in
    how many it is itself; from the objects of `read_annotations`."""
    together = {}
    for objects in annotations.values():
        names = {item["category"] for item in objects}
        for name in names:
            together.setdefault(name, Counter()).update(names)
    return together


def draw_absent(  # noqa: PLR0913 (all that POPE's ways depend on)
    absent: list[str],
    present: set[str],
    together: dict[str, Counter],
    n: int,
    rng: random.Random,
    after: str = "",
) -> list[tuple[str, str]]:
    """Up to `n` of the `absent` categories, each with the way it was drawn, one of WAYS in turn,
    beginning with the one that follows `after`, else with any.

    Popular is one of the three most frequent, adversarial one of the three that are most often
    beside the `present` ones (`count_together`), then the most frequent. Without such counts all
    are random. Source: POPE (Li et al., arXiv 2305.10355), which takes the three.
    """
    turn = WAYS.index(after) + 1 if after else rng.randrange(len(WAYS))
    left, drawn = sorted(absent), []
    frequent = {name: together.get(name, {}).get(name, 0) for name in left}
    beside = {name: sum(together.get(name, {}).get(p, 0) for p in present) for name in left}
    ranks = {
        "random": lambda name: 0,
        "popular": lambda name: -frequent[name],
        "adversarial": lambda name: (-beside[name], -frequent[name]),
    }
    while left and len(drawn) < n:
        way = WAYS[(turn + len(drawn)) % len(WAYS)] if together else "random"
        ranked = sorted(left, key=ranks[way])
        name = rng.choice(ranked if way == "random" else ranked[:3])
        left.remove(name)
        drawn.append((name, way))
    return drawn


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
        draw("object", [(object_question(), main, [main] if main else [])])
    if objects:
        present = sorted({item["category"] for item in clear})
        absent = [name for name in categories if name not in count]
        draw("presence", [(presence_question(name), "yes", [name]) for name in present])
        for name, way in draw_absent(absent, {*count}, together or {}, per_kind, rng):
            add("presence", presence_question(name), "no", [name], way)
    # First those whose colour is known; of the others only what may have one.
    colours = [item for item in single if item["color"] or may_have_colour(item)]
    colours = sorted(rng.sample(colours, len(colours)), key=lambda item: item["color"] is None)
    for item in colours[:per_kind]:
        about = colour_question(item["category"]), item["color"], [item["category"]]
        add("colour", *about, truth_from=item.get("color_from", "annotation"))
    relations = [
        (a["category"], b["category"], relation_of(a["box"], b["box"]))
        for a, b in itertools.permutations(single, 2)
    ]
    draw("relation", [(relation_question(a, b), r, [a, b]) for a, b, r in relations if r])
    draw("description", [(DESCRIPTION_QUESTION, None, [])])
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


# ---- Patches to cut attention to ---------------------------------------------------------------


def patches_to_cut(
    prompt: dict, objects: list[dict], grid: int, image_size: int, seed: int | str = 0
) -> dict[str, list[int]]:
    """The numbers of the patches, row by row, that hold the objects that a prompt is about.

    - `object`: the patches that a box of one of the prompt's categories covers by a tenth or more;
      for a box too small for that the one it overlaps most
    - `background`: as many that lie outside all these boxes, drawn with `seed`: the control

    Empty where a category has no box in the crop, or too few patches lie outside.
    `objects` are those of `objects_in_crop`.
    """
    about = set(prompt["categories"])
    boxes = [
        (item["category"], patch_coverage(item["box"], grid, image_size))
        for item in objects
        if item["category"] in about and min(item["box"][2:]) > 0
    ]
    if not about or {category for category, _ in boxes} != about:
        return {}
    # The small number is for rounding: an exact tenth counts.
    inside = np.any([cover >= min(0.1, cover.max()) - 1e-9 for _, cover in boxes], axis=0)
    outside = np.flatnonzero(np.sum([cover for _, cover in boxes], axis=0) == 0).tolist()
    if len(outside) < inside.sum():
        return {}
    background = random.Random(f"{seed} {prompt['question']}").sample(outside, int(inside.sum()))
    return {"object": np.flatnonzero(inside).tolist(), "background": sorted(background)}


# ---- Words to watch ----------------------------------------------------------------------------


def words_to_watch(
    tokenizer,
    objects: list[dict],
    categories: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """The categories whose words are watched in the patches of one image: those of which an object
    is in the crop by at least a tenth, and as many that the image does not have.

    A category without a word (`word_ids`) is not watched, nor is one that is called like a colour
    where `prompts` ask for one. The absent ones are first those that `prompts` are about, then
    others by `draw_absent` with `seed` and the counts `together`, none with a token of a present
    one. `objects` are those of `objects_in_crop`. Each word is a dict:

    - `category`, `present` (whether the image has it)
    - `way`: how an absent one was drawn, one of WAYS; empty for a present one
    - `token_ids`: those of `word_ids`
    """
    vocabulary, has = tokenizer.get_vocab(), {item["category"] for item in objects}
    not_now = COLOURS if "colour" in {prompt["kind"] for prompt in prompts} else ()
    ids = {name: word_ids(vocabulary, name) for name in sorted({*categories, *has} - {*not_now})}
    words = {name: {"category": name, "token_ids": ids[name]} for name in ids if ids[name]}
    seen = {item["category"] for item in objects if item["visible"] >= 0.1}
    watched = [{**word, "present": True, "way": ""} for name, word in words.items() if name in seen]
    taken = {token_id for word in watched for token_id in word["token_ids"]}
    absent = [name for name in words if name not in has and not taken & {*ids[name]}]
    asked = {name: prompt["way"] for prompt in prompts for name in prompt["categories"]}
    drawn = [(name, asked[name]) for name in absent if name in asked][: len(watched)]
    others, n = [name for name in absent if name not in asked], len(watched) - len(drawn)
    after = drawn[-1][1] if drawn else ""
    drawn += draw_absent(others, has, together or {}, n, random.Random(seed), after)
    return watched + [{**words[name], "present": False, "way": way} for name, way in drawn]


def word_ids(vocabulary: dict[str, int], category: str) -> list[int]:
    """The ids of the tokens that are a word for a category, whole, from the tokenizer's vocabulary.

    Singular and plural of its name and synonyms (`names_of`) with a leading space, also capitalised
    unless that names something else, and without the space where `WORDS` says that such a token is
    the word. Never a piece of a word; empty where all its words are several tokens.
    """
    spellings = []
    for name in names_of(category):
        cases = [name] if name in WORDS["names"] else [name, name.capitalize()]
        spellings += [space + case for case in cases for space in ("▁", "")]
    bare = {case for word in WORDS["bare"] for case in (word, word.capitalize())}
    kept = [text for text in spellings if text in bare or text.startswith("▁")]
    return sorted({vocabulary[text] for text in kept if text in vocabulary})
