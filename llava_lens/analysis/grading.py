"""Whether an answer is right."""

import re
from collections.abc import Iterable
from functools import lru_cache

from llava_lens.kinds import KINDS, meant
from llava_lens.words import WORDS, names_of, plain, plural_of


def is_right(kind: str, answer: str, truth: str, categories: Iterable[str] = ()) -> bool | None:
    """Whether an answer is right; None where it can't be graded.

    An answer is graded by its first sentence, in the terms of its kind (`KINDS`), or for an object
    by the names of `categories` and COCO's, and the truth's own where that is none of them. Where
    the kind has no terms, the text is compared. What is said as the truth says it is right.
    Source of the double words: CHAIR (Rohrbach et al., arXiv 1809.02156).
    """
    answered, wanted = (plain(text).rstrip(".") for text in (answer, truth))
    if not answered:
        return None
    if answered == wanted:
        return True
    meanings = _names(tuple(categories)) if KINDS[kind].about_objects else KINDS[kind].meanings
    true = meant(kind, truth, meanings)
    if true is None and KINDS[kind].about_objects:
        true = plain(truth)
        meanings = meanings | dict.fromkeys(names_of(truth), true)
    if true is None:  # an annotated colour that is no term, as teal
        return None if meanings else False
    first_sentence = re.split(r"[.!?](?!\d)|\n", answer.strip())[0]  # the point of 2.5 ends none
    said = meant(kind, first_sentence, meanings)
    # Light decides between white and gray.
    return None if said is None or {said, true} == {"white", "gray"} else said == true


@lru_cache(maxsize=8)
def _names(categories: tuple[str, ...]) -> dict[str, str]:
    """The category by each of its names; none by the phrases that are no category's."""
    known = [*WORDS["categories"], *categories]
    names = {name: plain(category) for category in known for name in names_of(category)}
    no_names = [text for phrase in WORDS["no_category"] for text in (phrase, plural_of(phrase))]
    return names | dict.fromkeys(no_names, "")
