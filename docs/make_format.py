"""Write docs/format.md from llava_lens/schema.py: `python docs/make_format.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from llava_lens import pickles, schema
from llava_lens.kinds import KINDS
from llava_lens.text import markdown_table

MOST = ", ".join(f"`{axis}` {most:,}" for axis, most in schema.MOST.items())
INTRO = f"""# The format of the results

This page is written by `python docs/make_format.py` from `llava_lens/schema.py`. A file that does
not fit these tables is refused when it is loaded, and before it is saved.

A folder of results holds

- `run.pkl`: what the whole run has in common, [RUN](#run)
- `images/<name>.pkl`: a record for each image, [RECORD](#record)
- `parts/<process>.pkl`: what one process has read, [PART](#part). An image counts once it is there
- `lock`: held by the run that writes to the folder

The files are pickles under gzip. They hold dicts, lists, strings, numbers and numpy arrays, and
nothing in them is run. Read them with

```python
from llava_lens.store import Results

results = Results.find("results")
for record in results.records():
    print(record["name"], record["prompts"][0]["answer"])
```

The format version is {schema.FORMAT_VERSION}. Other versions are refused.

## Axes

- `layer`: the layers in `run["layers"]`; 0 is the embedding output, l the state after block l
- `pos`: input tokens after the image; `patch`: patches of the crop, row by row
- `two`: rows, columns
- `segment`: {", ".join(schema.SEGMENTS)}
- `d_vocab`: the vocabulary; `last_id` is its last token id, `most_bits` its logarithm
- `top_k`: the most probable tokens of a reading
- `nearest`: the nearest tokens of the embedding lens; `nearest_layer`: every second of
  `run["layers"]`, from the first
- `window`: the windows in `run["knockout_windows"]`
- `route_layer`: the layers in `run["route_layers"]`

JSD, entropy and their bounds are in bits. Probabilities are of the whole vocabulary.

## Bounds

Beyond these a file is refused. So what a stranger made can take neither hours nor all memory.

- an axis, list or dict has at most {schema.MOST_OF_AXIS} items, but {MOST}
- the prompts of a record have at most {schema.MOST_CELLS:,} layers x positions
- a record has at most {schema.MOST_ROWS_OF_ONE:,} (layers + 20) x (tokens of answers + watched
  words), all records have {schema.MOST_ROWS:,}: some 8,000 images of LLaVA-1.5-7B
- a text has at most {schema.MOST_TEXT:,} characters, a name of an image
  {schema.MOST_NAME_BYTES} bytes
- a file has at most {pickles.MOST_BYTES >> 20} MiB unpacked and {pickles.MOST_OPCODES:,} opcodes
- there are at most 100 parts
"""
TABLES = {
    "RUN": (
        "`knockout_windows` has the first and last block of each window, counted from 1. The "
        "last window has all blocks. The list is empty if attention was not cut. `route_layers` "
        "begins with 0 and ends with the last layer, or is empty if nothing was patched."
    ),
    "ASKED": (
        f"A prompt before it is read. `kind` is one of {', '.join(KINDS)}. `absent_sampling` is "
        f"one of {', '.join(schema.ABSENT_SAMPLINGS)}, as in POPE."
    ),
    "RECORD": "One image with its prompts.",
    "OBJECT": "An annotated object.",
    "WORD": "A category whose word is watched in the patches.",
    "PROMPT": (
        "It has the fields of [ASKED](#asked) too. `word_at` is 1 where Llama says a digit as a "
        "space and the digit. `word_ids` are the tokens that spell the answer's first word, and "
        "the token that began it. They are empty if no token spells that word. `knockout` and "
        "`route` are `{}` if they were switched off. `knockout` is also `{}` for a very long "
        "prompt, `route` without a nearby image that has another answer."
    ),
    "READINGS": (
        "A reading is about the token that follows its position. The target is the token of the "
        "answer that follows; elsewhere it is the last layer's top-1."
    ),
    "PATCHES": (
        "They have the fields of [READINGS](#readings) too. The embedding lens compares the state "
        "with the input embedding of each token that spells something, by cosine. It is no "
        "probability. A norm above float16's largest number is that number."
    ),
    "CONTROL": (
        "The same prompt with another image. The values are of the token at `word_at` of the "
        "answer that the right image got, where that token would be said."
    ),
    "KNOCKOUT": (
        "P of the first answer token where attention is cut from all text after the image, or "
        "from its last position only. `object` and `background` are cut in one window at a "
        "time, the others in all blocks at once. The first two are there where the objects "
        "asked about are known."
    ),
    "ROUTE": (
        "Activation patching: the states of the counterfactual run are put in place at one "
        "group of positions at one layer. The counterfactual is the same question about another "
        "image. LD is the logit of the own answer's first token minus that of the "
        "counterfactual's, at the prompt's last position."
    ),
    "PART": (
        "What one process has read. `sums` adds, over images, the mean over the positions of a "
        "segment."
    ),
}
TYPES = {"f": "float array", "i": "int array", "u": "unsigned int array", "|u1": "uint8 array"}
TYPES |= {"text": "str, not blank"}


def table_name(table: dict) -> str:
    """The name that a table of fields has in the schema, as a link."""
    (name,) = (name for name in TABLES if getattr(schema, name) is table)
    return f"[{name}](#{name.lower()})"


def type_of(field: schema.Field) -> str:
    """The type of a field in words."""
    if isinstance(field.kind, list):
        return f"list of {table_name(field.kind[0])}"
    if isinstance(field.kind, dict):
        return table_name(field.kind) + " or `{}`" * field.may_be_empty
    if field.kind is dict:
        return "dict of str by str"
    kinds = field.kind if isinstance(field.kind, tuple) else (field.kind,)
    names = [TYPES.get(kind) or kind.__name__.replace("NoneType", "None") for kind in kinds]
    is_list = field.shape and field.kind not in ("f", "i", "u", "|u1")
    return "list" if field.kind is list else "list of " * bool(is_list) + " or ".join(names)


def bounds_of(field: schema.Field) -> str:
    """`least to most`; of a text they are about its length."""
    if field.least is None:
        return ""
    most = field.most if isinstance(field.most, str) else f"{field.most:.7g}"
    return f"{field.least:.7g} to {most}" + " characters" * (field.kind is str)


def section(name: str) -> str:
    """A heading, a few sentences and the table of a dict's fields."""
    fields = getattr(schema, name)
    others = {"PROMPT": schema.ASKED, "PATCHES": schema.READINGS}.get(name, ())
    fields = {key: field for key, field in fields.items() if key not in others}
    rows = [
        [
            f"`{key}`" + " (optional)" * field.optional,
            type_of(field),
            f"`[{', '.join(field.shape)}]`" if field.shape else "",
            bounds_of(field),
            field.meaning,
        ]
        for key, field in fields.items()
    ]
    table = markdown_table(["field", "type", "shape", "from", "meaning"], rows)
    return f"## {name}\n\n{TABLES[name]}\n\n{table}\n"


def format_page() -> str:
    """The whole page in Markdown."""
    return "\n".join([INTRO, *map(section, TABLES)])


if __name__ == "__main__":
    Path(__file__).with_name("format.md").write_text(format_page(), encoding="utf-8")
