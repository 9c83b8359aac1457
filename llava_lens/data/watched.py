"""Which words are watched in the patches of an image."""

import random
from collections import Counter

from llava_lens.data.crop import LEAST_VISIBLE
from llava_lens.kinds import COLOURS
from llava_lens.schema import ABSENT_SAMPLINGS
from llava_lens.words import ids_by_label, not_called, word_ids


def count_together(annotations: dict[str, list[dict]]) -> dict[str, Counter]:
    """For each category in how many images each other one is beside it, and it is itself (under its
    own name), from the objects of `annotate`."""
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

    docs/method.md says what each means; `together` is of `count_together`, without which all are
    random. Source: POPE (Li et al., arXiv 2305.10355).
    """
    counts = {name: together.get(name, Counter()) for name in absent}
    turn = ABSENT_SAMPLINGS.index(after) + 1 if after else rng.randrange(len(ABSENT_SAMPLINGS))
    left, drawn = sorted(absent), []
    frequent = sorted(left, key=lambda name: -counts[name][name])
    # Stable: then the most frequent.
    company = sorted(frequent, key=lambda name: -sum(counts[name][other] for other in present))
    while left and len(drawn) < n:
        in_turn = ABSENT_SAMPLINGS[(turn + len(drawn)) % len(ABSENT_SAMPLINGS)]
        sampling = in_turn if together else "random"
        among = {"random": left, "popular": frequent[:3], "adversarial": company[:3]}
        drawn.append((rng.choice(among[sampling]), sampling))
        for names in (left, frequent, company):
            names.remove(drawn[-1][0])
    return drawn


def words_to_watch(  # noqa: PLR0913 (all that a choice of words depends on)
    tokenizer,
    objects: list[dict],
    absent: list[str],
    prompts: list[dict] = (),
    seed: int | str = 0,
    together: dict[str, Counter] | None = None,
) -> list[dict]:
    """The categories watched in the patches of an image. Present are those of which an object is in
    the crop by LEAST_VISIBLE. As many of the `absent` ones are added: first those that `prompts`
    are about, then others by `draw_absent`.

    A category is not watched without a word (`word_ids`), nor if it is called like a colour where
    `prompts` ask for one. An absent one must share no name, and so no token, with the `objects`
    (`objects_in_crop`). Each is a dict of WORD's fields but for the readings.
    """
    vocabulary, has = ids_by_label(tokenizer), {item["category"] for item in objects}
    colours = COLOURS if any(prompt["kind"] == "colour" for prompt in prompts) else []
    ids = {name: word_ids(vocabulary, name) for name in sorted({*absent, *has} - {*colours})}
    seen = {item["category"] for item in objects if item["visible"] >= LEAST_VISIBLE}
    present = [(name, "") for name in ids if ids[name] and name in seen]
    free = [name for name in not_called(absent, has) if ids.get(name)]
    asked = {name: prompt["absent_sampling"] for prompt in prompts for name in prompt["categories"]}
    drawn = [(name, asked[name]) for name in free if name in asked][: len(present)]
    others, n = [name for name in free if name not in asked], len(present) - len(drawn)
    after = drawn[-1][1] if drawn else ""
    drawn += draw_absent(others, has, together or {}, n, random.Random(seed), after)
    return [
        {"category": name, "token_ids": ids[name], "present": not way, "absent_sampling": way}
        for name, way in [*present, *drawn]
    ]
