"""Questions about an image, from its annotations or the user."""

import itertools
import operator
import random
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llava_lens.data.colours import may_have_colour
from llava_lens.data.watched import draw_absent
from llava_lens.kinds import DEFAULT_KINDS, KINDS, MOST_COUNTED, meant, question_of
from llava_lens.text import is_text, require
from llava_lens.words import SPECIAL_TOKENS, WORDS, is_called, names_of, not_called, with_article

# Shares of the crop, of what is asked about; LEAST_COUNTED is about half a patch of LLaVA-1.5's.
LEAST_ASKED, LEAST_MAIN, LEAST_CARRIER, LEAST_COUNTED = 0.01, 0.05, 0.2, 0.001


def relation_of(box_a, box_b) -> str | None:
    """Where `a` is relative to `b`: left, right, above or below. None where the boxes overlap along
    the main direction, or the centres are not 1.5 times as far apart along it as across."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a, box_b
    dx, dy = (ax + aw / 2) - (bx + bw / 2), (ay + ah / 2) - (by + bh / 2)
    if abs(dx) >= 1.5 * abs(dy) and abs(dx) >= (aw + bw) / 2:
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx) and abs(dy) >= (ah + bh) / 2:
        return "above" if dy < 0 else "below"
    return None


class Candidate(NamedTuple):
    """A question that could be asked about an image."""

    words: dict[str, str]  # of the question, as `question_of` takes them
    truth: str | None = None
    truth_from: str = "annotation"
    absent_sampling: str = ""


class Scene(NamedTuple):
    """What the rules of CANDIDATES look at, and what they draw with (as `make_prompts` says)."""

    objects: list[dict]  # all of the image, of `objects_in_crop`, and what stands for the dropped
    clear: list[dict]  # those to ask about: half is in the crop, and fills 1 % of it; no crowd
    single: list[dict]  # the clear ones whose names no other object has, be that small or cut off
    absent: list[str]
    per_kind: int
    together: dict[str, Counter]
    rng: random.Random

    def draw(self, candidates: list[Candidate]) -> list[Candidate]:
        """`per_kind` of the candidates, or all if there are fewer."""
        return self.rng.sample(candidates, min(self.per_kind, len(candidates)))


def _objects(scene: Scene) -> list[Candidate]:
    main = main_category(scene.clear, scene.objects)
    return scene.draw([Candidate({}, main)] if main or not scene.objects else [])


def _presence(scene: Scene) -> list[Candidate]:
    """As many absent categories as present ones."""
    there = {item["category"] for item in scene.objects}
    if not there:
        return []
    names = sorted({item["category"] for item in scene.clear})
    present = scene.draw([Candidate({"category": name}, "yes") for name in names])
    absent = draw_absent(scene.absent, there, scene.together, scene.per_kind, scene.rng)
    return present + [Candidate({"category": name}, "no", "annotation", by) for name, by in absent]


def _colours(scene: Scene) -> list[Candidate]:
    """First objects whose colour is known. The answers about others have layers but no grade, also
    in a photograph without colours."""
    items = [item for item in scene.single if item["color"] or may_have_colour(item)]
    items = sorted(scene.rng.sample(items, len(items)), key=lambda item: item["color"] is None)
    known = [(i["category"], i["color"], i.get("color_from", "annotation")) for i in items]
    return [Candidate({"category": name}, *color) for name, *color in known[: scene.per_kind]]


def _relations(scene: Scene) -> list[Candidate]:
    known = [
        Candidate({"a": a["category"], "b": b["category"]}, relation_of(a["box"], b["box"]))
        for a, b in itertools.permutations(scene.single, 2)
    ]
    return scene.draw([candidate for candidate in known if candidate.truth])


def _numbers(scene: Scene) -> list[Candidate]:
    """Categories of which a few objects are there, each of them alone, whole and not tiny."""
    candidates = []
    for name in sorted({item["category"] for item in scene.clear}):
        same = [item for item in scene.objects if is_called(item["category"], [name])]
        unsure = any(o["crowd"] or o["cut_off"] or o["share"] < LEAST_COUNTED for o in same)
        is_counted = with_article(name) != name  # no plural, nor broccoli
        if is_counted and not unsure and len(same) <= MOST_COUNTED:
            candidates.append(Candidate({"category": name}, str(len(same))))
    return scene.draw(candidates)


# A rule by kind, in the order in which they are asked.
CANDIDATES = {
    "object": _objects,
    "presence": _presence,
    "colour": _colours,
    "relation": _relations,
    "description": lambda scene: scene.draw([Candidate({})]),
    "counting": _numbers,
}


def make_prompts(  # noqa: PLR0913 (all that a choice of questions depends on)
    objects: list[dict],
    absent: list[str],
    seed: int | str = 0,
    per_kind: int = 1,
    together: dict[str, Counter] | None = None,
    kinds: Iterable[str] = DEFAULT_KINDS,
) -> list[dict]:
    """Prompts about one image, from its `objects` and dropped annotations (`objects_in_crop`), and
    the categories known to be `absent`, of which none that shares an object's name is taken.

    Of each of the `kinds` `per_kind` candidates are drawn with `seed`; of presence `per_kind`
    present and as many absent categories, by `draw_absent` with the counts `together`. Without
    `objects` there are two prompts, object and description. Each is a dict of ASKED.
    """
    clear = [item for item in objects if not item["crowd"] and item["visible"] >= 0.5]
    clear = [item for item in clear if item["share"] >= LEAST_ASKED]
    called = Counter(name for item in objects for name in names_of(item["category"]))
    single = [item for item in clear if all(called[n] == 1 for n in names_of(item["category"]))]
    absent = not_called(absent, {item["category"] for item in objects})
    scene = Scene(objects, clear, single, absent, per_kind, together or {}, random.Random(seed))
    return [
        _as_asked(kind, candidate)
        for kind, candidates in CANDIDATES.items()
        if kind in kinds
        for candidate in candidates(scene)
    ]


def _as_asked(kind: str, candidate: Candidate) -> dict:
    words, truth, truth_from, absent_sampling = candidate
    main = [truth] if truth and KINDS[kind].about_objects else []
    return {
        "kind": kind,
        "question": question_of(kind, **words),
        "truth": truth,
        "truth_from": truth_from if truth else "",
        "categories": [*words.values()] or main,
        "absent_sampling": absent_sampling,
    }


def main_category(clear: list[dict], objects: list[dict]) -> str | None:
    """The category of the largest of the `clear` objects, where a person would name that one:
    docs/method.md has the rule. Furniture and vessels are `carriers` in `WORDS`."""
    if not clear:
        return None
    largest = max(clear, key=lambda item: item["share"])
    name, box = largest["category"], largest["box"]
    others = [item for item in objects if not is_called(item["category"], [name])]
    cuts, least = [_overlap(item["box"], box) for item in others], LEAST_MAIN
    if is_called(name, WORDS["carriers"]):
        least = LEAST_CARRIER
        halves = [item["box"][2] * item["box"][3] / 2 for item in others]
        if largest["cut_off"] or any(map(operator.gt, cuts, halves)):
            return None
    own = largest["share"] * (1 - sum(cuts) / (box[2] * box[3]))
    most = max((item["share"] for item in others), default=0)
    return name if own >= max(1.5 * most, least) else None


def _overlap(box_a, box_b) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = box_a, box_b
    width = min(ax + aw, bx + bw) - max(ax, bx)
    return max(0, width) * max(0, min(ay + ah, by + bh) - max(ay, by))


def as_prompts(prompts: list) -> list[dict]:
    """The user's own prompts in the form of `make_prompts`, about no `categories`; a truth is from
    the `user`.

    Each is a question, or a dict with `question` and optionally `kind` (else `own`) and `truth`.
    Raises ValueError for anything else, for a truth that no answer of its `kind` could meet, and
    for a question that brings its own special token.
    """
    is_list = isinstance(prompts, (list, tuple)) or isinstance(prompts, np.ndarray) and prompts.ndim
    wrong = f"prompts is {prompts!r}: it must be a list of questions, or [] for made ones."
    require(is_list, wrong)
    return [_as_prompt(prompt, f"Prompt {number}") for number, prompt in enumerate(prompts)]


def _as_prompt(prompt, where: str) -> dict:
    given = prompt if isinstance(prompt, dict) else {"question": prompt}
    # A text of numpy's is one too, but could not be saved.
    given = {str(k): str(v) if isinstance(v, str) else v for k, v in given.items()}
    question, kind, truth = given.get("question"), given.get("kind", "own"), given.get("truth")
    require(is_text(question), f"{where} is empty or no text: give a question.")
    unknown = ", ".join(map(repr, given.keys() - {"kind", "question", "truth"}))
    require(not unknown, f"{where} has {unknown}: only question, kind and truth have a meaning.")
    wrong_truth = f"{where} has the truth {truth!r}: it must be a text or None."
    require(truth is None or is_text(truth), wrong_truth)
    require(kind in KINDS, f"{where} is of the kind {kind!r}: take one of {', '.join(KINDS)}.")
    meanings = KINDS[kind].meanings
    possible = [*dict.fromkeys(meanings.values())]
    listed = ", ".join(possible if len(possible) < 20 else [*possible[:3], "...", possible[-1]])
    can_be_met = not truth or not meanings or meant(kind, truth, meanings)
    require(can_be_met, f"{where} has the truth {truth!r}: for {kind} give one of {listed}.")
    own = ", ".join(SPECIAL_TOKENS.findall(question))
    where = f"{where} ({question!r:.200})"
    require(not own, f"{where} has its own {own}: leave it out, for the prompt puts it in.")
    about = {"truth_from": "user" if truth else "", "categories": [], "absent_sampling": ""}
    return {"kind": kind, "question": question, "truth": truth, **about}
