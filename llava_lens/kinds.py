"""All that a kind of question is: one entry of KINDS. Its candidates are in `data/prompts.py`."""

import re
from typing import NamedTuple

from llava_lens.words import WORDS, is_plural, plain, plural_of, with_article

# LLaVA-1.5's conversation format (the image stands before the question), and the line that it was
# trained to answer in a word.
CHAT = "USER: <image>\n{question} ASSISTANT:"
SHORT_ANSWER = "Answer the question using a single word or phrase."
# The basic colour terms of English. Source: Berlin and Kay, "Basic Color Terms" (1969).
COLOURS = [
    "black", "white", "gray", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple",
]  # fmt: skip
MOST_COUNTED = 5  # objects that are asked about: above, annotators and eyes miss some


class Kind(NamedTuple):
    """A kind of question."""

    title: str  # what it asks about, as the report says it
    template: str = ""  # with places for the words of `question_of`; empty: the user asks
    meanings: dict[str, str] = {}  # of an answer's words; empty: `categories` or exact text
    n_answers: int = 0  # that are possible, where `meanings` has more: for the chance level
    about_objects: bool = False  # whether an answer is the name of a category
    takes_first: bool = False  # graded by an answer's first term; others must have one alone
    in_order: bool = False  # whether the report compares its layers with other kinds'
    by_default: bool = True  # whether it is asked where the parameter `kinds` does not name it


KINDS = {  # in the order of the project's question
    "colour": Kind(
        "colours",
        f"What color {{is_or_are}} the {{category}}?\n{SHORT_ANSWER}",
        meanings={**{term: term for term in COLOURS}, "grey": "gray"},
        in_order=True,
    ),
    "object": Kind(
        "objects",
        f"What is the main object in the image?\n{SHORT_ANSWER}",
        about_objects=True,
        takes_first=True,
        in_order=True,
    ),
    "relation": Kind(
        "the arrangement of objects",
        "Where {is_or_are} the {a} relative to the {b}: left, right, above or below?\n"
        + SHORT_ANSWER,
        meanings=WORDS["places"],
        in_order=True,
    ),
    "presence": Kind(
        "presence",
        f"{{Is_or_Are}} there {{a_category}} in the image?\n{SHORT_ANSWER}",
        meanings={"yes": "yes", "no": "no", "not": "no"},
        takes_first=True,
    ),
    "counting": Kind(
        "numbers of objects",
        f"How many {{categories}} are there?\n{SHORT_ANSWER}",
        meanings={str(number): str(number) for number in range(1000)} | WORDS["numbers"],
        n_answers=MOST_COUNTED,
        by_default=False,
    ),
    "description": Kind("the whole image", "Describe the image."),
    "own": Kind("own prompts"),
}
# Kinds that are made for an image, and those of them that are asked where none are named.
MADE_KINDS = [name for name, kind in KINDS.items() if kind.template]
DEFAULT_KINDS = [name for name in MADE_KINDS if KINDS[name].by_default]


def question_of(kind: str, **words: str) -> str:
    """The question of a kind about a `category`, or about `a` and `b`.

    A template may also name `categories` (the plural), `a_category` (with its article), and
    `is_or_are` or `Is_or_Are`, which agree with the first of the words.
    """
    words = {place: " ".join(noun.replace("_", " ").split()) for place, noun in words.items()}
    noun = next(iter(words.values()), "")
    verb = "are" if is_plural(noun) else "is"
    made = {"categories": plural_of(noun), "a_category": with_article(noun)}
    made |= {"is_or_are": verb, "Is_or_Are": verb.capitalize()}
    return KINDS[kind].template.format(**made, **words)


def meant(kind: str, text: str, meanings: dict[str, str]) -> str | None:
    """What `text` says in the terms of `meanings`, None where it says none, or several at once."""
    terms = "|".join(map(re.escape, sorted(meanings, key=len, reverse=True)))
    if not terms:
        return None
    # A term is no part of a word ("colored"), nor of a number: 2 and 5 of 2.5, 1 of 1,000.
    whole = rf"\b(?<!\d[.,])(?:{terms})\b(?![.,]\d)"
    found = [meanings[term] for term in re.findall(whole, plain(text)) if meanings[term]]
    one = KINDS[kind].takes_first or len(set(found)) == 1
    return found[0] if found and one else None
