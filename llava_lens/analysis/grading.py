"""Whether an answer is right."""

import re
from collections.abc import Iterable

from llava_lens.kinds import KINDS
from llava_lens.words import WORDS, names_of, plural_of


def is_right(kind: str, answer: str, truth: str, categories: Iterable[str] = ()) -> bool | None:
    """Whether an answer is right; None where it can't be graded.

    By its first sentence, without case. Presence: the first of yes, no and not. Colour and
    relation: the one term of its kind's `meanings` that it has; none or two can't be graded, nor white against
    gray, between which light decides. Object: the first name of one of `categories` or COCO's
    (`names_of`), the longest first, so that a hot dog is no dog. Where the truth has no such term,
    as with own prompts, it is the exact text, but for a full stop.

    Source of the double words: CHAIR (Rohrbach et al., arXiv 1809.02156).
    """
    meanings = _names(categories) if KINDS[kind].about_objects else KINDS[kind].meanings
    true = _meant(kind, truth, meanings)
    if true is None:
        return answer.strip().rstrip(".").lower() == truth.lower()
    said = _meant(kind, re.split("[.!?\n]", answer.strip())[0], meanings)
    return None if said is None or {said, true} == {"white", "gray"} else said == true


def _names(categories: Iterable[str]) -> dict[str, str]:
    """The category by each of its names; none by the phrases that are no category's."""
    known = [*WORDS["categories"], *categories]
    names = {name: category.lower() for category in known for name in names_of(category)}
    no_names = [text for phrase in WORDS["no_category"] for text in (phrase, plural_of(phrase))]
    return names | dict.fromkeys(no_names, "")


def _meant(kind: str, text: str, meanings: dict[str, str]) -> str | None:
    """What `text` says in the terms of `meanings`, None where it says none, or several at once."""
    terms = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True)))
    found = [meanings[term] for term in re.findall(rf"\b(?:{terms})\b", text.lower()) if term]
    found = [meaning for meaning in found if meaning]
    one = KINDS[kind].takes_first or len(set(found)) == 1
    return found[0] if found and one else None
