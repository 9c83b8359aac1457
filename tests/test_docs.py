"""README and docs: short enough to be read, and true of the files beside them."""

import re

import pytest
from PIL import Image

from llava_lens.data.annotations import annotate
from llava_lens.data.images import find_images
from tests.conftest import ROOT

READMES = [ROOT / "README.md", ROOT / "README.ru.md"]
DOCS = sorted((ROOT / "docs").glob("*.md"))
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/"
NOTEBOOKS = "Make_Analyse.ipynb Visualise_Analyse.ipynb"
LAPTOP = "l.load_images('FOLDER', 5), 'laptop', model='llava-hf/llava-interleave-qwen-0.5b-hf'"
COMMANDS = [
    SET_UP + f"jupyter nbconvert --execute --to html --template classic {NOTEBOOKS}",
    SET_UP + "python -m pytest -n auto tests",
    f'.venv/bin/python -c "import lens_utils as l; l.analyse({LAPTOP})"',
]


def sentences_of(markdown: str) -> list[str]:
    """The sentences of a page as plain text; code, tables, headings, pictures and comments are left
    out. The full stops of abbreviations and of arXiv numbers end nothing."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", markdown, flags=re.DOTALL)
    text = re.sub(r"^(#|\||!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("*", "")
    every = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    end = r"(?<=[.!?])\s+(?=[A-ZА-ЯЁ0-9\"«(]|code)"
    return [one for paragraph in every for one in re.split(end, paragraph) if one]


def links(markdown: str) -> set[str]:
    return set(re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_a_readme_is_one_page_with_both_commands(path):
    text = path.read_text("utf-8")
    assert len(text.split()) <= 900  # as `wc -w` counts
    assert re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL) == COMMANDS


def test_ci_runs_the_command_of_the_readme():
    """It takes the first line with `pytest`, as the README has it."""
    assert "grep -m1 'pytest' README.md" in (ROOT / ".ci/run").read_text("utf-8")
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert next(line for line in lines if "pytest" in line) == COMMANDS[1]
    for file in ("requirements.txt", "Make_Analyse.ipynb", "Visualise_Analyse.ipynb", "tests"):
        assert (ROOT / file).exists()
    packages = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    assert {"nbconvert", "ipykernel", "pytest", "pytest-xdist", "ruff"} <= {*packages}


@pytest.mark.parametrize("path", READMES + DOCS, ids=lambda path: path.name)
def test_links_and_named_files_exist(path):
    text = path.read_text("utf-8")
    local = {link.split("#")[0] or path.name for link in links(text) if "://" not in link}
    # Files that are named as code, with a folder in front.
    local_code = re.findall(r"`((?:llava_lens|benchmarks|demo|docs|tests)/[\w./]*)`", text)
    missing = [link for link in local if not (path.parent / link).exists()]
    assert missing + [name for name in local_code if not (ROOT / name).exists()] == []


def test_the_russian_readme_is_the_english_one_sentence_by_sentence():
    english, russian = (path.read_text("utf-8") for path in READMES)
    assert links(english) - {"README.ru.md"} == links(russian) - {"README.md"}
    sections = [re.split("^## ", text, flags=re.MULTILINE) for text in (english, russian)]
    numbers = [[len(sentences_of(section)) for section in each] for each in sections]
    assert numbers[0] == numbers[1]


def test_every_page_of_the_docs_is_linked():
    assert {f"docs/{path.name}" for path in DOCS} <= links(READMES[0].read_text("utf-8"))


@pytest.mark.parametrize("path", READMES + DOCS, ids=lambda path: path.name)
def test_no_sentence_is_long(path):
    every = sentences_of(path.read_text("utf-8"))
    assert every
    assert [one for one in every if len(re.findall(r"\S*\w\S*", one)) > 35] == []


def test_sentences_are_counted_as_they_are_read():
    table = "```\nCode. Not read.\n```\n| A table. | Nor this. |\n"
    page = "# Head\n\nOne (Li et al., arXiv 2305.10355). *Two*\nis `a b. C` long.\n- three: 0.5 %\n"
    said = ["One (Li et al., arXiv 2305.10355).", "Two is code long.", "three: 0.5 %"]
    assert sentences_of(page + table) == said


def test_the_annotations_of_the_docs_are_read(tmp_path):
    shown = (ROOT / "docs/method.md").read_text("utf-8")
    (tmp_path / "mine.json").write_text(re.search(r"```json\n(.*?)```", shown, re.DOTALL)[1])
    Image.new("RGB", (640, 480)).save(tmp_path / "street.jpg")
    found = annotate(tmp_path, find_images(tmp_path))
    (objects,) = found.objects.values()
    assert [item["category"] for item in objects] == ["car", "dog"] and not found.problems
    assert objects[0]["color"] == "red" and objects[1]["box"] == [300, 180, 60, 50]
