"""What categories are called, and which tokens spell a word."""

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

from llava_lens.schema import MOST_LABEL

WORDS = json.loads(files(__package__).joinpath("words.json").read_text("utf-8"))
WORDS_DIGEST = hashlib.sha256(json.dumps(WORDS, sort_keys=True).encode()).hexdigest()
# Not text to a tokenizer: Llama-2's special tokens, and those of byte-level vocabularies.
SPECIAL_TOKENS = re.compile(r"<image>|</?s>|<unk>|<pad>|<\|[^<>|]+\|>")


def plain(text: str) -> str:
    """A text without case or the way in which accents are coded (NFC), and with one space in place
    of spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", text).casefold()).strip()


def _parts(noun: str) -> tuple[str, str, str]:
    """`(before, head, after)`: the head is inflected. `wine |glass|`, `|pair| of scissors`."""
    phrase = re.split(r"(?= (?:of|with|in|for|on) | ?\()", noun, maxsplit=1)[0]
    before, space, head = phrase.rpartition(" ")
    return before + space, head, noun[len(phrase) :]


def plural_of(noun: str) -> str:
    """The plural of a noun: by `WORDS` for its head, else by rule."""
    before, head, after = _parts(noun)
    plural = WORDS["plurals"].get(head.lower())
    if not plural and re.search("[^aeiou]y$", head):  # berry; not toy
        plural = head[:-1] + "ies"
    return before + (plural or head + ("es" if re.search("(s|sh|ch|x|z)$", head) else "s")) + after


@lru_cache(maxsize=2**16)
def names_of(category: str) -> tuple[str, ...]:
    """What a category is called, as `plain` text: name and synonyms (`WORDS`), with plurals."""
    nouns = [plain(category), *WORDS["categories"].get(plain(category), [])]
    return tuple(dict.fromkeys(form for noun in nouns for form in (noun, plural_of(noun))))


def not_called(categories: Iterable[str], others: Iterable[str]) -> list[str]:
    """The sorted `categories` that have no name in common with one of the `others`: where a `cat`
    is there, neither `Cat`, `cats` nor `kitten` is known to be absent."""
    names = {name for other in others for name in names_of(other)}
    return sorted(name for name in categories if names.isdisjoint(names_of(name)))


def is_called(category: str, others: Iterable[str]) -> bool:
    """Whether a category has a name in common with one of the `others`."""
    return not not_called([category], others)


def is_plural(noun: str) -> bool:
    """Whether a noun takes "are": scissors, skis, people, cars; not bus, glass, tennis or lens."""
    head = _parts(plain(noun))[1]
    irregular = {plural for one, plural in WORDS["plurals"].items() if plural != one}
    by_rule = re.search("[^sui]s$", head) and head not in WORDS["singular"]
    return bool(by_rule) or head in WORDS["plural"] or head in irregular


def with_article(noun: str) -> str:
    """A noun as a question about its presence names it: a dog, an hourglass, broccoli, scissors."""
    if is_plural(noun) or _parts(plain(noun))[1] in WORDS["uncountable"]:
        return noun
    said = plain(noun) + " "
    vowel = said[0] in "aeiou" and not said.startswith(tuple(WORDS["a"]))
    return f"{'an' if vowel or said.startswith(tuple(WORDS['an'])) else 'a'} {noun}"


# Whatever the tokenizer, the label of a token is its text, with `▁` for each space.
SPACE = "▁"  # as sentencepiece writes it: `▁dog` is not `dog`
# Byte-level vocabularies write a token as its bytes, one character each: the byte's own where that
# can be printed, else the next one from 256 on. A space is `Ġ`. Source: GPT-2's encoder.py.
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
BYTE_OF = {chr(byte): byte for byte in PRINTED}
BYTE_OF |= {chr(256 + number): byte for number, byte in enumerate(OTHERS)}


def plain_labels(tokens: list[str]) -> list[str]:
    """The labels of a vocabulary's `tokens`, of sentencepiece or of bytes, as the mark tells that
    more of them begin with, `▁` or `Ġ`. Bytes that are no whole character become `<0xE4>`."""
    first = Counter(token[:1] for token in tokens)
    is_bytes = first["Ġ"] > first[SPACE]
    return [(_from_bytes(token) if is_bytes else token)[:MOST_LABEL] for token in tokens]


def _from_bytes(token: str) -> str:
    if not all(char in BYTE_OF for char in token):  # one that was added, as it is
        return token
    text = bytes(BYTE_OF[char] for char in token).decode("utf-8", "surrogateescape")
    text = text.replace(" ", SPACE)
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text)


def bytes_of(label: str) -> bytes:
    """What a token says. A special token says nothing, and parts words."""
    text = label.replace(SPACE, " ").encode("utf-8", "surrogateescape")
    said = re.sub(rb"<0x([0-9A-F]{2})>", lambda byte: bytes.fromhex(byte[1].decode()), text)
    return b" " if said == text and re.fullmatch("<.+>", label) else said


def token_labels(tokenizer, d_vocab: int) -> list[str]:
    """One label per row of the unembedding. Rows past the tokenizer's last token (LLaVA-1.5: 32,002
    to 32,063) are `<rowN>`."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))[:d_vocab]
    tokens += [None] * (d_vocab - len(tokens))
    return plain_labels([token or f"<row{row}>" for row, token in enumerate(tokens)])


@lru_cache(maxsize=1)
def ids_by_label(tokenizer) -> dict[str, int]:
    """The vocabulary of a tokenizer by label."""
    vocabulary = tokenizer.get_vocab()
    return dict(zip(plain_labels(list(vocabulary)), vocabulary.values(), strict=True))


def without_space(label: str) -> str:
    """A label as it is shown where a leading space says nothing."""
    return label.removeprefix(SPACE) or SPACE


def is_word(label: str) -> bool:
    """Whether a token is a word or a part of one: no byte, sign, number or special token."""
    return label.lstrip(SPACE).isalpha()


def word_ids(vocabulary: dict[str, int], category: str) -> list[int]:
    """The ids of the tokens that are a word for a category, whole; `vocabulary` is `ids_by_label`.

    They are its `names_of` with a leading space, also capitalised unless that names something else.
    Without the space those count that `WORDS` has as `bare`, if the one with it is a token too:
    else it is a piece of several words. Empty where all its words are several tokens.
    """
    names = names_of(category)
    spellings = [*names, *(name.capitalize() for name in names if name not in WORDS["names"])]
    spaced = [text for text in spellings if SPACE + text in vocabulary]
    bare = [text for text in spaced if text.lower() in WORDS["bare"] and text in vocabulary]
    return sorted({vocabulary[text] for text in [*(SPACE + text for text in spaced), *bare]})


def spelled_alike(labels: list[str]) -> list[int]:
    """For each token the first of those that spell the same word: `▁red`, `▁Red`, `red` and `Red`
    differ in the leading space and in the capital alone."""

    def word_of(label: str) -> str:
        letters = label.removeprefix(SPACE)
        is_one = letters.isalnum() and letters in (letters.lower(), letters.capitalize())
        return letters.lower() if is_one else label

    first = {}
    return [first.setdefault(word_of(label), token_id) for token_id, label in enumerate(labels)]


@lru_cache(maxsize=1)
def labels_and_words(tokenizer, d_vocab: int) -> tuple[list[str], list[int]]:
    """`token_labels`, and which of them are `spelled_alike`."""
    labels = token_labels(tokenizer, d_vocab)
    return labels, spelled_alike(labels)


def first_word(labels: list[str], answer_ids: list[int]) -> tuple[int, list[int]]:
    """`(at, ids)`: the number of the answer's token that begins its first word, and the tokens that
    stand for that word (docs/method.md); none where no token spells it.

    "Yellow", said as `▁Y` and `ellow`, is `▁yellow`, `▁Yellow`, `yellow` and `▁Y`. A spelling
    without the space is a piece of words, unless there is one with it or the answer has none there.
    """
    pieces = [bytes_of(labels[token_id]) for token_id in answer_ids]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    # From a letter or digit to a space, without signs at its end. T-shirt and 2.5 are one word.
    found = re.search(r"[^\W_]\S*", text)
    if not found:
        return 0, []
    word = found[0]
    while unicodedata.category(word[-1])[0] in "PS":  # punctuation, symbols
        word = word[:-1]
    start = len(text[: found.start()].encode("utf-8", "surrogateescape"))
    ends = itertools.accumulate(map(len, pieces))
    at = next(number for number, end in enumerate(ends) if end > start)
    begun, cases = int(answer_ids[at]), {word, word.lower(), word.capitalize()}
    spell = [i for i, label in enumerate(labels) if label.removeprefix(SPACE) in cases]
    may_be_bare = not labels[begun].startswith(SPACE)
    is_whole = any(may_be_bare or labels[i].startswith(SPACE) for i in spell)
    return at, sorted({*spell, begun}) if is_whole else []
