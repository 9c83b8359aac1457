"""All that a kind of question is: one entry of KINDS. Its candidates are in `data/prompts.py`."""

from typing import NamedTuple

# LLaVA-1.5's conversation format (the image stands before the question), and the line that it was
# trained to answer in a word.
CHAT = "USER: <image>\n{question} ASSISTANT:"
SHORT_ANSWER = "Answer the question using a single word or phrase."
# The basic colour terms of English. Source: Berlin and Kay, "Basic Color Terms" (1969).
COLOURS = [
    "black", "white", "gray", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple",
]  # fmt: skip


class Kind(NamedTuple):
    """A kind of question.

    - `title`: what it asks about, as the report says it
    - `template`: the question, with places for its words; empty where the user asks
    - `meanings`: what an answer means, by the words that say so; empty: `categories` or exact text
    - `about_objects`: whether an answer is the name of a category
    - `takes_first`: graded by the first term of an answer, where others must have one alone
    - `in_order`: whether the report compares its layers with other kinds'
    """

    title: str
    template: str = ""
    meanings: dict[str, str] = {}
    about_objects: bool = False
    takes_first: bool = False
    in_order: bool = False


KINDS = {  # in the order of the project's question
    "colour": Kind(
        "colours",
        f"What color is the {{category}}?\n{SHORT_ANSWER}",
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
        f"Where is the {{a}} relative to the {{b}}: left, right, above or below?\n{SHORT_ANSWER}",
        meanings={
            "left": "left", "right": "right", "above": "above", "over": "above",
            "on top": "above", "below": "below", "under": "below", "beneath": "below",
        },
        in_order=True,
    ),
    "presence": Kind(
        "presence",
        f"Is there {{article}} {{category}} in the image?\n{SHORT_ANSWER}",
        meanings={"yes": "yes", "no": "no", "not": "no"},
        takes_first=True,
    ),
    "description": Kind("the whole image", "Describe the image."),
    "own": Kind("own prompts"),
}  # fmt: skip


def question_of(kind: str, **words: str) -> str:
    """The question of a kind about some words, as its template names them."""
    if "category" in words:
        words["article"] = "an" if words["category"][0] in "aeiou" else "a"
    return KINDS[kind].template.format(**words)
