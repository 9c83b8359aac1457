"""What categories are called, and which tokens spell a word."""

import json
import re
from functools import lru_cache
from importlib.resources import files

WORDS = json.loads(files(__package__).joinpath("words.json").read_text("utf-8"))


def plural_of(noun: str) -> str:
    """The plural of a noun: that of `WORDS`, else by rule."""
    if noun in WORDS["plurals"]:
        return WORDS["plurals"][noun]
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def names_of(category: str) -> list[str]:
    """What a category is called, in lower case: its name and its synonyms in `WORDS` (COCO's have
    some), each with its plural."""
    nouns = [category.lower(), *WORDS["categories"].get(category.lower(), [])]
    return list(dict.fromkeys(form for noun in nouns for form in (noun, plural_of(noun))))


SPECIAL_TOKENS = ["<image>", "<s>", "</s>", "<unk>", "<pad>"]  # not text to LLaVA-1.5


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


def token_labels(tokenizer, d_vocab: int) -> list[str]:
    """One label per row of the unembedding: the token as the vocabulary spells it (`▁dog` is not
    `dog`).

    Rows past the tokenizer's last token (LLaVA-1.5: 32,002 to 32,063) are named `<rowN>`.
    """
    labels = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))[:d_vocab]
    return labels + [f"<row{row}>" for row in range(len(labels), d_vocab)]


def spelled_alike(labels: list[str]) -> list[int]:
    """For each token the first of those that spell the same word: `▁red`, `▁Red`, `red` and `Red`
    differ in the leading space and in the capital alone."""
    first = {}
    return [first.setdefault(_word_of(label), token_id) for token_id, label in enumerate(labels)]


def _word_of(label: str) -> str:
    letters = label.removeprefix("▁")
    is_word = letters.isalpha() and letters in (letters.lower(), letters.capitalize())
    return letters.lower() if is_word else label


@lru_cache(maxsize=1)
def labels_and_words(tokenizer, d_vocab: int) -> tuple[list[str], list[int]]:
    labels = token_labels(tokenizer, d_vocab)
    return labels, spelled_alike(labels)
