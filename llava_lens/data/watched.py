"""Which words are watched in the patches of an image."""

import random
from collections import Counter

from llava_lens.data.crop import LEAST_VISIBLE
from llava_lens.kinds import COLOURS
from llava_lens.schema import ABSENT_SAMPLINGS
from llava_lens.words import ids_by_label, not_called, word_ids


def count_together(annotations: dict[str, list[dict]]) -> dict[str, Counter]:
    """For each category, in how many images each other one is beside it, and under its own name in
    how many it is itself; from the objects of `annotate`."""
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
    """Up to `n` of the `absent` categories, each with how it was drawn: by ABSENT_SAMPLINGS in
    turn, beginning with the one that follows `after`, else with any.

    Popular is one of the three most frequent. Adversarial is one of the three that are most often
    beside the `present` ones (`count_together`), then the most frequent. Without such counts all
    are random. Source: POPE (Li et al., arXiv 2305.10355), which takes the three.
    """
    turn = ABSENT_SAMPLINGS.index(after) + 1 if after else rng.randrange(len(ABSENT_SAMPLINGS))
    left, drawn = sorted(absent), []
    frequent = {name: together.get(name, {}).get(name, 0) for name in left}
    beside = {name: sum(together.get(name, {}).get(p, 0) for p in present) for name in left}
    ranks = {
        "random": lambda name: 0,
        "popular": lambda name: -frequent[name],
        "adversarial": lambda name: (-beside[name], -frequent[name]),
    }
    while left and len(drawn) < n:
        in_turn = ABSENT_SAMPLINGS[(turn + len(drawn)) % len(ABSENT_SAMPLINGS)]
        sampling = in_turn if together else "random"
        ranked = sorted(left, key=ranks[sampling])
        name = rng.choice(ranked if sampling == "random" else ranked[:3])
        left.remove(name)
        drawn.append((name, sampling))
    return drawn


def words_to_watch(  # noqa: PLR0913 (all that a choice of words depends on)
    tokenizer,
    objects: list[dict],
    absent: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """The categories whose words are watched in the patches of one image: those of which an object
    is in the crop by LEAST_VISIBLE, and as many of those known to be `absent`.

    A category without a word (`word_ids`) is not watched, nor is one that is called like a colour
    where `prompts` ask for one. The absent ones are first those that `prompts` are about, then
    others by `draw_absent` with `seed` and the counts `together`. None has a name or a token of
    an object's category. `objects` are those of `objects_in_crop`. Each word is a dict:

    - `category`, `present` (whether the image has it)
    - `absent_sampling`: how an absent one was drawn, one of ABSENT_SAMPLINGS; empty: present
    - `token_ids`: those of `word_ids`
    """
    vocabulary, has = ids_by_label(tokenizer), {item["category"] for item in objects}
    not_now = COLOURS if "colour" in {prompt["kind"] for prompt in prompts} else ()
    ids = {name: word_ids(vocabulary, name) for name in sorted({*absent, *has} - {*not_now})}
    words = {name: {"category": name, "token_ids": ids[name]} for name in ids if ids[name]}
    seen = {item["category"] for item in objects if item["visible"] >= LEAST_VISIBLE}
    watched = [
        {**word, "present": True, "absent_sampling": ""}
        for name, word in words.items()
        if name in seen
    ]
    taken = {token_id for name in has - {*not_now} for token_id in ids[name]}
    free = [name for name in not_called(absent, has) if name in words and not taken & {*ids[name]}]
    asked = {name: prompt["absent_sampling"] for prompt in prompts for name in prompt["categories"]}
    drawn = [(name, asked[name]) for name in free if name in asked][: len(watched)]
    others, n = [name for name in free if name not in asked], len(watched) - len(drawn)
    after = drawn[-1][1] if drawn else ""
    drawn += draw_absent(others, has, together or {}, n, random.Random(seed), after)
    return watched + [
        {**words[name], "present": False, "absent_sampling": sampling} for name, sampling in drawn
    ]
