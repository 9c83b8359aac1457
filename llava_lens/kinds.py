"""The kinds of question: their templates."""

KINDS = ["object", "presence", "colour", "relation", "description", "own"]
# The basic colour terms of English. Source: Berlin and Kay, "Basic Color Terms" (1969).
COLOURS = [
    "black", "white", "gray", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple",
]  # fmt: skip
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


# In the order of the project's question.
ABOUT = {
    "colour": "colours", "object": "objects", "relation": "the arrangement of objects",
    "presence": "presence", "description": "the whole image", "own": "own prompts",
}  # fmt: skip
