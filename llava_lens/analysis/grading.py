"""Whether an answer is right."""

import re
from collections.abc import Iterable
from functools import lru_cache

from llava_lens.kinds import KINDS
from llava_lens.words import WORDS, names_of, plain, plural_of


def is_right(kind: str, answer: str, truth: str, categories: Iterable[str] = ()) -> bool | None:
    """Whether an answer is right; None where it can't be graded.

    An answer is graded by its first sentence, in the terms of its kind (`KINDS`), or for an object
    by the names of `categories` and COCO's. A truth without a term, as with own prompts, is
    compared as text. Source of the double words: CHAIR (Rohrbach et al., arXiv 1809.02156).
    """
    meanings = _names(tuple(categories)) if KINDS[kind].about_objects else KINDS[kind].meanings
    true = _meant(kind, truth, meanings)
    if true is None:
        return plain(answer).rstrip(".") == plain(truth).rstrip(".")
    first_sentence = re.split(r"[.!?](?!\d)|\n", answer.strip())[0]  # the point of 2.5 ends none
    said = _meant(kind, first_sentence, meanings)
    # Light decides between white and gray.
    return None if said is None or {said, true} == {"white", "gray"} else said == true


@lru_cache(maxsize=8)
def _names(categories: tuple[str, ...]) -> dict[str, str]:
    """The category by each of its names; none by the phrases that are no category's."""
    known = [*WORDS["categories"], *categories]
    names = {name: plain(category) for category in known for name in names_of(category)}
    no_names = [text for phrase in WORDS["no_category"] for text in (phrase, plural_of(phrase))]
    return names | dict.fromkeys(no_names, "")


def _meant(kind: str, text: str, meanings: dict[str, str]) -> str | None:
    """What `text` says in the terms of `meanings`, None where it says none, or several at once."""
    terms = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True)))
    if not terms:
        return None
    # A term is no part of a word ("colored"), nor of a number: 2 and 5 of 2.5, 1 of 1,000.
    whole = rf"\b(?<!\d[.,])(?:{terms})\b(?![.,]\d)"
    found = [meanings[term] for term in re.findall(whole, plain(text)) if meanings[term]]
    one = KINDS[kind].takes_first or len(set(found)) == 1
    return found[0] if found and one else None
