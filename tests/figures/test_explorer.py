"""figures.explorer: its pages in Chromium; the tests are skipped where that is missing."""

import base64
import functools
import html
import io
import json
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import bench_visualise as bench
import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from llava_lens import store
from llava_lens.analysis import curves
from llava_lens.analysis.answers import answer_rows, answers_table
from llava_lens.figures import explorer
from llava_lens.figures.explorer.data import load_page_data
from llava_lens.text import printable
from tests.browser import until

GRID = 4  # patches along a side, of the tiny model
# Whatever of it ends up as markup, as script or in an address says so.
PAYLOADS = [
    "<img src=http://evil.test/x onerror=window.ran=1>", "</script><script>window.ran=1</script>",
    "\"'><svg onload=window.ran=1>", "javascript:window.ran=1", "</title><b>bold</b>",
    "=HYPERLINK(0)", "__proto__", "constructor",
]  # fmt: skip


def route(handed_over, mediated=0.25):
    """What patching does to a prompt of the tiny model, at its 6 layers: the logit difference is 2
    on the image and -2 on the other. The image has lost the answer at layer 1."""
    last = np.where(np.arange(6) < handed_over, 2.0, -2.0)
    return {
        "other": "flower.jpg", "other_answer": "tree", "own_id": 3, "other_id": 4,
        "own": 2.0, "counterfactual": -2.0, "mediated": 2 - 4 * mediated,
        "image": np.array([-2.0, 1, 2, 2, 2, 2]), "question": np.full(6, 2.0), "last": last,
    }  # fmt: skip


@pytest.fixture(scope="module")
def sample(results):
    """Run and record with two watched words and boxes, and tokens that differ by case and space."""
    results = store.Results(results)
    run, record = dict(results.run), results.record("china.jpg")
    run["tokens"], run["route_layers"] = list(run["tokens"]), list(range(6))
    top = np.unique(record["patches"]["top_ids"][:, :, 0])
    for i, label in zip(top[:3].tolist(), ("▁zebra", "zebra", "▁Zebra"), strict=True):
        run["tokens"][i] = label
    rng, shape = np.random.default_rng(0), record["patches"]["entropy"].shape
    record["prompts"][0]["route"], record["prompts"][1]["route"] = route(3), {}
    record["objects"] = [
        {"category": "temple", "box": [3.5, 7.0, 30.0, 28.0]},
        {"category": "outside", "box": [0.0, 0.0, 0.0, 0.0]},
    ]
    record["words"] = [
        {"category": category, "present": number == 3, "token_ids": [int(top[number]), number]}
        | {"log2_probs": (-20 * rng.random(shape)).astype(np.float16)}
        for number, category in ((3, "temple"), (4, "dog"))
    ]
    patches = record["patches"]
    bench.add_embedding_lens(rng, patches, record["words"])
    patches["embedding_ids"] = patches["embedding_ids"][..., [4, 3, 0, 2, 1]]
    patches["norms"] = np.ones(shape, np.float16)
    patches["norms"][1:, [1, 6]] = patches["norms"][0, 3] = 9  # sinks, and large at one layer only
    return run, record


@pytest.fixture(scope="module")
def saved(sample, tmp_path_factory):
    return explorer.save_explorer(tmp_path_factory.mktemp("explorer") / "china.jpg.html", *sample)


def assert_top(page, card: str, run, readings, layer: int, pos: int) -> None:
    """A card has the top tokens with their probabilities, besides sums of spellings."""
    get = "return [...document.querySelectorAll(arguments[0] + ' li')].map((row) =>"
    get += "[row.querySelector('.label').textContent, row.lastChild.textContent])"
    rows = [row for row in page.run(get, card) if not row[0].endswith(" spellings")]
    shown = {label: 0.0 if prob == "<1e-7" else float(prob) for label, prob in rows}
    labels = [printable(run["tokens"][i]) for i in readings["top_ids"][layer, pos]]
    assert shown.keys() == set(labels)
    for label, prob in zip(labels, readings["top_probs"][layer, pos].astype(float), strict=True):
        # Two digits of a number of float16; below 0.001 one.
        assert shown[label] == pytest.approx(prob, rel=0.06 if prob >= 0.001 else 0.4, abs=1e-7)


def test_hovering_shows_the_tokens_that_the_results_hold(page, sample, saved):
    run, record = sample
    page.open(saved)
    # Of the vocabulary only what occurs is in the page.
    assert page.run("return Object.keys(data.tokens).length") < len(run["tokens"])
    assert page.text("#model") == f"{run['model']} (float32)"
    for layer, patch in ((5, 6), (2, 12), (0, 15)):
        page.run("update({layer: arguments[0]})", layer)
        page.at_patch(patch)
        row, column = divmod(patch, GRID)
        sink = " (sink)" * (patch == 6)
        assert page.text("#preview h3") == f"Patch row {row + 1}, column {column + 1}{sink}"
        assert_top(page, "#preview", run, record["patches"], layer, patch)
    page.run("update({layer: 1})")  # what is hovered over stays
    assert_top(page, "#preview", run, record["patches"], 1, 15)
    prompt = record["prompts"][0]
    for layer, pos in ((3, 4), (0, len(prompt["token_ids"]) - 1)):
        page.at_text("#texts", pos, layer)
        label = printable(run["tokens"][prompt["token_ids"][pos]])
        assert f"position {pos + 1}" in page.text("#preview h3")
        assert page.text("#preview h3").endswith(f": {label}")
        assert_top(page, "#preview", run, prompt["readings"], layer, pos)


def test_a_click_pins_and_another_unpins_and_the_address_holds_it(page, sample, saved):
    run, record = sample
    page.open(saved)
    page.at_patch(6, click=True)
    page.at_text("#texts", 3, 2, click=True)
    page.at_patch(9, click=True)
    assert page.hash()["pins"] == "p6,t0.3,p9" and page.hash()["layer"] == "2"
    assert len(page.texts("#pins .card")) == 3
    page.open(saved, page.run("return location.hash"))
    assert len(page.texts("#pins .card")) == 3 and page.text("#layer-shown") == "Layer 2 of 5"
    patches, text = record["patches"], record["prompts"][0]["readings"]
    for card, (readings, pos) in enumerate([(patches, 6), (text, 3), (patches, 9)], 1):
        assert_top(page, f"#pins .card:nth-child({card})", run, readings, 2, pos)
    page.at_patch(6, click=True)
    page.find("#pins .card:nth-child(2) button").click()
    assert page.hash()["pins"] == "t0.3"


CHART = """
const svg = document.querySelector(arguments[0] + " svg");
const number = (element, name) => Number(element.getAttribute(name));
const ticks = [...svg.querySelectorAll("text")].map((text) => [
  text.textContent, text.getAttribute("text-anchor"), number(text, "x"), number(text, "y"),
]);
const groups = [...svg.querySelectorAll("g")].map((group) => [
  group.querySelector("title").textContent,
  group.querySelector("path").getAttribute("d"),
  [...group.querySelectorAll("circle")].map((dot) => `${number(dot, "cx")} ${number(dot, "cy")}`),
]);
return [ticks, groups];
"""


def curve_of(page, card: str, name: str, n_layers: int) -> list[float | None]:
    """The values of a chart's line, read off its picture against the ticks of its axes."""
    ticks, groups = page.run(CHART, card)
    across = {label: x for label, anchor, x, _ in ticks if anchor == "middle"}
    up = {label: y - 3.5 for label, anchor, _, y in ticks if anchor == "end"}
    path, dots = next((path, dots) for title, path, dots in groups if title == name)
    points = re.findall(r"([\d.]+) ([\d.]+)", " ".join([path, *dots]))
    left, right, one, tenth = across["emb"], across[str(n_layers - 1)], up["1"], up["0.1"]
    values = [None] * n_layers
    for x, y in points:
        layer = round((float(x) - left) / (right - left) * (n_layers - 1))
        values[layer] = 10 ** ((one - float(y)) / (tenth - one))
    return values


def assert_curve(shown: list[float | None], expected: list[float | None]) -> None:
    """None where there is nothing; a chart ends at 1e-4."""
    least = np.maximum(np.array(expected, float), 1e-4)
    np.testing.assert_allclose(np.array(shown, float), least, rtol=0.05)


def kept(readings, layer: int, pos: int, ids: list[int]) -> float | None:
    """The sum of what the top-k kept of the tokens `ids`, None for nothing."""
    found = np.isin(readings["top_ids"][layer, pos], ids)
    return float(readings["top_probs"][layer, pos][found].sum()) if found.any() else None


def test_the_chart_of_a_cell_has_every_token_that_was_top_1(page, sample, saved):
    """The last layer's top-1 exactly at all layers; the others with gaps where they were not
    kept."""
    run, record = sample
    readings, n_layers = record["patches"], len(run["layers"])
    page.open(saved, "#pins=p7")
    ids = set(readings["top_ids"][:, 7, 0].tolist())
    titles = page.texts("#pins svg g title")
    assert sorted(titles) == sorted(printable(run["tokens"][i]) for i in ids)
    target = readings["top_ids"][-1, 7, 0]
    for i in ids:
        shown = curve_of(page, "#pins", printable(run["tokens"][i]), n_layers)
        if i == target:
            expected = readings["target_prob"][:, 7].tolist()
        else:
            expected = [kept(readings, layer, 7, [i]) for layer in range(n_layers)]
        assert_curve(shown, expected)
    page.find("#rank").click()
    assert "10" in page.texts("#pins svg text") and page.hash()["rank"] == "1"


def test_mouse_and_keys_lead_everywhere(page, sample, saved):
    """The layer, from the slider and from elsewhere; a patch, pinned; the layers, played."""
    run, record = sample
    page.open(saved)
    slider = page.find("#layer")
    page.mouse(slider, 4, 8, click=True)
    assert page.text("#layer-shown") == "Layer emb of 5"
    page.key("ARROW_RIGHT", "ARROW_RIGHT")  # the slider has the focus
    page.run("document.activeElement.blur()")
    page.key("ARROW_RIGHT")
    assert page.text("#layer-shown") == "Layer 3 of 5"
    page.at_patch(0, click=True)
    page.key("ARROW_LEFT")  # also after a click on a patch
    assert page.text("#layer-shown") == "Layer 2 of 5" and page.hash()["layer"] == "2"
    page.run("window.scrollTo(0, 1e6)")
    box = page.run("return arguments[0].getBoundingClientRect().toJSON()", slider)
    assert 0 <= box["top"] < box["bottom"] <= 900  # always in view
    page.find("#save-data").send_keys("")
    for _ in range(6):
        page.key("TAB")
        if page.run("return document.activeElement.id") == "photo":
            break
    page.key("ARROW_DOWN", "ARROW_DOWN", "ARROW_RIGHT", "ENTER")
    assert page.hash()["pins"] == "p0,p9"  # from the patch that the mouse is over
    assert_top(page, "#preview", run, record["patches"], 2, 9)
    page.key(" ")  # plays on to the end, and stops there
    assert page.text("#play") == "❚❚ Pause"
    page.wait("document.getElementById('layer-shown').textContent === 'Layer 5 of 5'")
    assert page.text("#play") == "▶ Play"
    page.find("#play").click()  # from the first layer again
    assert page.text("#layer-shown") == "Layer emb of 5"
    page.find("#play").click()
    controls = page.browser.find_elements("css selector", "button, input, select, canvas")
    assert all(control.accessible_name.strip() for control in controls if control.is_displayed())


def search(page, query: str, choice: int = 1) -> list[str]:
    """Search and take one of what is found; returns all of that."""
    page.find("#search").clear()
    page.find("#search").send_keys(query)
    found = page.texts("#found button")
    page.find(f"#found li:nth-child({choice}) button").click()
    return found


def test_a_watched_word_is_exact_at_every_patch(page, sample, saved):
    run, record = sample
    page.open(saved, "#layer=3&least=-6")
    assert search(page, "temp")[0] == "templeexact"
    word = record["words"][0]
    assert page.hash()["word"] == ".".join(map(str, word["token_ids"]))
    expected = 2.0 ** word["log2_probs"][3].astype(float)
    shown = [float(row["probability"]) for row in page.numbers("word")]
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
    largest = 2.0 ** word["log2_probs"].astype(float).max(axis=1)
    curve = curve_of(page, "#word-chart", "largest of all patches", len(run["layers"]))
    assert_curve(curve, largest.tolist())


def test_another_word_says_where_it_was_not_kept(page, sample, saved):
    """Spellings together or one by one, by token id; what the top-k lacks is not drawn as 0."""
    run, record = sample
    page.open(saved, "#layer=4&least=-6")
    found = search(page, "zebra")
    ids = [i for i, token in enumerate(run["tokens"]) if "ebra" in token]
    assert sorted(found[1:]) == sorted(f"{run['tokens'][i]}id {i}" for i in ids)
    assert found[0] == "zebra3 spellings" and len(ids) == 3
    one = next(text for text in found if text.startswith("▁zebra"))  # without Zebra and zebra
    for wanted in (ids, [int(one.split("id ")[1])]):
        if wanted != ids:
            search(page, "zebra", 1 + found.index(one))
        assert page.hash()["word"] == ".".join(map(str, wanted))
        for pos, row in enumerate(page.numbers("word")):
            if wanted == [record["patches"]["top_ids"][-1, pos, 0]]:
                expected = float(record["patches"]["target_prob"][4, pos])
            else:
                expected = kept(record["patches"], 4, pos, wanted)
            shown = row["probability"]
            shown = None if shown == "not kept" else float(shown)
            assert shown == (expected and pytest.approx(expected, rel=0.02))
    assert "not 0" in page.text("#word-shown")


def answer_position(prompt) -> int:
    return prompt["n_prompt"] - 1 + prompt["word_at"]


def test_at_first_the_answer_and_its_route_are_shown(page, sample, saved):
    run, record = sample
    page.open(saved)
    prompt = record["prompts"][0]
    assert_top(page, "#preview", run, prompt["readings"], 5, answer_position(prompt))
    ticks, groups = page.run(CHART, "#route")
    top, bottom = (next(y for name, *_, y in ticks if name == effect) - 3.5 for effect in "10")
    for name in ("image", "question", "last"):
        path = next(path for title, path, _ in groups if title.startswith(name))
        shown = [(bottom - float(y)) / (bottom - top) for y in re.findall(r" ([\d.]+)", path)]
        expected = (2.0 - prompt["route"][name]) / 4  # from own 2 to -2; a chart ends at 1.15
        np.testing.assert_allclose(shown, expected.clip(-0.15, 1.15), atol=0.01)
    assert "flower.jpg" in page.text("#route") and "“tree”" in page.text("#route")
    about = page.text("#texts .row")
    assert "leaves image 1, handed over 3; mediated 0.25" in about and "layers: readable" in about
    prompts = [{**prompt, "route": route(6)} for prompt in record["prompts"]]
    entry = explorer.index_entry({**record, "prompts": prompts}, run)
    assert "handed over never" in entry["prompts"][0]["layers"]
    mark = "return document.querySelector('#route [stroke-width=\"5\"]').getAttribute('d')"
    page.run("update({layer: 1})")
    (at,) = (x for name, anchor, x, _ in ticks if (name, anchor) == ("1", "middle"))
    assert page.run(mark).startswith(f"M{at} ")
    page.choose("prompt", "1")  # an empty route
    assert not page.find("#route").is_displayed()
    assert "readable" in page.text("#texts .row") and "image" not in page.text("#texts .row")
    page.at_patch(3)
    page.mouse(page.find("h1"), 3, 3)  # away from the patch
    prompt = record["prompts"][1]
    assert_top(page, "#preview", run, prompt["readings"], 1, answer_position(prompt))


def test_the_embedding_lens_shows_cosines_and_says_so(page, sample, saved):
    run, record = sample
    patches = record["patches"]
    page.open(saved, "#layer=3&pins=p7,t0.2")
    page.choose("lens", "embedding")
    assert page.hash()["layer"] == "2"  # of 5 layers 0, 2 and 4 were read
    page.run("byId('layer').focus()")
    page.key("ARROW_RIGHT", "ARROW_RIGHT")  # of the slider: on to 4, which is the end
    page.run("document.activeElement.blur()")
    assert page.hash()["layer"] == "4"
    page.key("ARROW_LEFT", "ARROW_LEFT", "ARROW_RIGHT")
    page.at_patch(9)
    shown = page.texts("#preview li")
    ids, cosines = (patches[f"embedding_{name}"][1, 9] for name in ("ids", "cosines"))
    pairs = zip(ids, cosines.astype(float), strict=True)
    assert shown == [f"{printable(run['tokens'][i])}{cosine:.3f}" for i, cosine in pairs]
    assert "no probability. Read at 3 of 6 layers" in page.text("#scale-of")
    assert page.hash()["lens"] == "embedding"
    assert_top(page, "#pins .card:nth-child(2)", run, record["prompts"][0]["readings"], 2, 2)
    search(page, "temple")
    rows = page.numbers("word")
    assert {row["probability"] for row in rows} == {""}
    expected = record["words"][0]["cosines"][2].astype(float)
    np.testing.assert_allclose([float(row["cosine"]) for row in rows], expected, atol=6e-4)
    page.open(saved, f"#layer=3&lens=embedding&word={ids[1]}")
    rows = page.numbers("word")
    kept_at = (patches["embedding_ids"][1] == ids[1]).any(-1)
    assert [row["cosine"] != "not kept" for row in rows] == kept_at.tolist()
    assert page.browser.get_log("browser") == []


def test_sinks_are_marked(page, sample, saved):
    """Far above the others at most layers: 1 and 6, not 3, which is so at one layer only."""
    page.open(saved, "#boxes=0")
    assert page.text("#sinks").startswith("◥ 2 sinks")
    for patch in range(GRID**2):
        _, green, blue = pixel(page, patch, 0.98, 0.02)
        assert (blue > green + 60) == (patch in (1, 6))


# Places in what a page saves, and a value that is wrong there.
WRONG_DATA = [
    ("format", "another"), ("crop", "AAAA"), ("grid", [4, 5]), ("layers", ["emb"]),
    ("tokens", "1", 2), ("tokens", "x", "dog"), ("patches", "top_ids", 0, 0, 0, 0.5),
    ("patches", "top_probs", 1, []), ("patches", "target_rank", [1]), ("words", "temple"),
    ("words", 0, "log2_probs", "x"), ("words", 0, "cosines", [0.5]), ("embedding", "cosines", 0),
    ("embedding", "top_ids", None), ("prompts", 1, "token_ids", [1]),
    ("prompts", 2, "grey", "target_log2", [0.5]), ("prompts", 0, "readings", {}),
]  # fmt: skip


def test_the_data_of_a_page_can_be_saved_and_read(page, sample, saved, tmp_path):
    run, record = sample
    page.open(saved)
    path = tmp_path / "saved.json"
    path.write_bytes(page.saved("#save-data", ".json"))
    data, patches = load_page_data(path), record["patches"]
    every = [[of["patches"], *(one["readings"] for one in of["prompts"])] for of in (data, record)]
    for read, readings in zip(*every, strict=True):
        for name in ("top_ids", "target_rank"):
            assert (read[name] == readings[name]).all()
        assert (read["top_probs"] == readings["top_probs"].astype(np.float16)).all()
        target = np.log2(readings["target_prob"])
        np.testing.assert_allclose(read["target_log2"], target, atol=0.04)
    assert (data["embedding"]["top_ids"] == patches["embedding_ids"]).all()
    cosines = patches["embedding_cosines"].astype(float)
    np.testing.assert_allclose(data["embedding"]["cosines"], cosines, atol=6e-4)
    for read, word in zip(data["words"], record["words"], strict=True):
        assert read["token_ids"] == word["token_ids"] and read["category"] == word["category"]
        assert (read["log2_probs"] == word["log2_probs"]).all()
    assert data["sinks"] == [1, 6] and data["layers"] == run["layers"]
    assert np.abs(data["crop"] - record["crop"].astype(float)).mean() < 8  # JPEG
    assert data["tokens"] == {i: printable(run["tokens"][i]) for i in data["tokens"]}
    first = data["prompts"][0]
    assert first["token_ids"] == record["prompts"][0]["token_ids"].tolist()
    assert first["route"]["last"] == [0, 0, 0, 1, 1, 1] and first["route"]["other"] == "flower.jpg"
    whole = path.read_bytes()
    broken = [whole[:-9], b"[]", whole.replace(b'"words"', b'"w"')]
    for *way, name, value in WRONG_DATA:
        data = json.loads(whole)
        functools.reduce(operator.getitem, way, data)[name] = value
        broken.append(json.dumps(data).encode())
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"saved.json' is not .* save it again from the page"):
            load_page_data(path)
    with pytest.raises(OSError, match="saved.json"):
        load_page_data(tmp_path / "not/saved.json")


def test_the_second_pane_shows_another_prompt_or_the_grey_image(page, sample, saved):
    run, record = sample
    page.open(saved)
    page.choose("pane", "2")
    prompt, pos = record["prompts"][2], 5
    page.at_text("#second", pos, 1)
    assert page.text("#preview h3").startswith(f"Prompt 2, position {pos + 1}")
    assert_top(page, "#preview", run, prompt["readings"], 1, pos)
    assert page.hash()["pane"] == "2"
    page.choose("pane", "grey")
    prompt, n_layers = record["prompts"][0], len(run["layers"])
    own = prompt["readings"]["target_prob"][:, prompt["n_prompt"] - 1]
    assert_curve(curve_of(page, "#second", "with the image", n_layers), own.tolist())
    grey = prompt["grey"]["target_prob"].tolist()
    assert_curve(curve_of(page, "#second", "with a plain grey image", n_layers), grey)


PIXEL = """
const photo = document.getElementById("photo");
const [x, y] = [...arguments].map((share) => Math.floor(share * photo.width));
return [...photo.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
"""


def pixel(page, patch: int, x: float, y: float) -> np.ndarray:
    """The colour in the photograph at x, y of a patch, from 0 to 1."""
    row, column = divmod(patch, GRID)
    return np.array(page.run(PIXEL, (column + x) / GRID, (row + y) / GRID))


def test_colour_stands_only_where_there_is_probability(page, sample, saved):
    """On a grey photograph, so that every colour is the scale's; boxes can be switched off."""
    run, record = sample
    page.open(saved, "#layer=3&least=-6&boxes=0&fade=0")
    search(page, "temple")
    probs = 2.0 ** record["words"][0]["log2_probs"][3].astype(float)
    least = np.sort(probs)[len(probs) // 2]
    page.run("update({least: arguments[0]})", float(np.log10(least)))
    for patch, prob in enumerate(probs):
        red, _, blue = pixel(page, patch, 0.06, 0.06)
        assert (red - blue > 3) == (prob > 1.05 * least) or 0.95 < prob / least < 1.3
    on_box = 0, GRID * (3.5 + 30) / run["image_size"], GRID * 0.3  # on its right side
    before = pixel(page, *on_box)
    page.find("#boxes").click()
    after = pixel(page, *on_box)
    assert (before != after).any() and after[2] > after[0] + 60  # blue


def test_words_that_are_everywhere_are_pale(page, sample, tmp_path):
    """Among the top-k of at least half of all patches, and nowhere more than twice as probable as
    the median."""
    run, record = sample
    readings = {name: values.copy() for name, values in record["patches"].items()}
    ids, probs, layer = readings["top_ids"], readings["top_probs"], 5
    junk, thing, rare = np.setdiff1d(np.arange(300, len(run["tokens"])), ids[layer])[:3].tolist()
    tokens = list(run["tokens"])
    tokens[junk], tokens[thing], tokens[rare] = "olas", "▁tree", "dust"
    ids[layer, :9, 0], probs[layer, :9, 0] = junk, np.linspace(0.018, 0.03, 9)
    ids[layer, :8, 1], probs[layer, :8, 1] = thing, 0.001  # half of the 16 patches, and one ...
    ids[layer, 10, 0], probs[layer, 10, 0] = thing, 0.3  # ... where it is 300 times the median
    ids[layer, 11:, 0], probs[layer, 11:, 0] = rare, 0.02
    run, record = {**run, "tokens": tokens}, {**record, "patches": readings}
    page.open(explorer.save_explorer(tmp_path / "page.html", run, record))
    assert page.texts("#common .everywhere span:first-child") == ["olas"]
    words = page.texts("#common button span:first-child")
    assert words[:2] == ["olas", "dust"] and "tree" in words


def test_picture_and_numbers_are_saved(page, sample, saved):
    run, record = sample
    page.open(saved, "#layer=2&pins=p3,t1.2&pane=1")
    picture = Image.open(io.BytesIO(page.saved("#save-picture", ".png")))
    photo = page.run("return document.getElementById('photo').width")
    colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert picture.height > photo and len(colours) > 1000
    patches = record["patches"]
    pinned = {"": (patches, 3), "1": (record["prompts"][1]["readings"], 2)}
    tops, pins, texts = (page.numbers(shown) for shown in ("patch", "pin", "text"))
    assert [int(row["token_id"]) for row in tops] == patches["top_ids"][2, :, 0].tolist()
    assert len(pins) == 2 * len(run["layers"]) * run["top_k"]
    for row in pins:
        readings, pos = pinned[row["prompt"]]
        layer, k = run["layers"].index(row["layer"]), int(row["rank"]) - 1
        assert int(row["token_id"]) == readings["top_ids"][layer, pos, k]
        prob = readings["top_probs"][layer, pos, k]
        assert float(row["probability"]) == pytest.approx(prob, rel=1e-3, abs=1e-7)
    assert {row["prompt"] for row in texts} == {"0", "1"}


WRONG_STATES = [
    "#layer=99&prompt=-1&pins=p999,t9.1,x,t0.1e9&word=1.5.x&pane=77",
    "#layer=<b>&least=0&word=__proto__&pins=%",
    "#&&==",
]


def test_a_wrong_address_is_put_right(page, saved):
    for state in WRONG_STATES:
        page.open(saved, state)
        page.run("update({})")
        assert page.hash() == {"layer": "5", "prompt": "0", "least": "-2"}


def hostile(sample) -> tuple[dict, dict]:
    """Run and record in which every text is a payload."""
    run, record = sample
    n = len(PAYLOADS)
    tokens = [PAYLOADS[i % n] + str(i // n) for i in range(len(run["tokens"]))]
    texts = {"question": PAYLOADS[1], "answer": PAYLOADS[0], "truth": PAYLOADS[2]}
    record = {**record, "name": f"{PAYLOADS[3]}#?%22<b>.jpg"}
    record["prompts"] = [prompt | texts for prompt in record["prompts"]]
    record["objects"] = [item | {"category": PAYLOADS[0]} for item in record["objects"]]
    record["words"] = [word | {"category": PAYLOADS[2]} for word in record["words"]]
    return {**run, "tokens": tokens}, record


def assert_harmless(page) -> None:
    """Nothing ran and nothing was asked for, or could be."""
    assert page.run("return window.ran") is None
    marked = "b b, svg[onload], img[onerror]"
    assert not page.run("return document.querySelector(arguments[0])", marked)
    assert page.run("return document.scripts.length") == 2
    log = [entry["message"] for entry in page.browser.get_log("performance")]
    requests = " ".join(message for message in log if "Network.requestWillBeSent" in message)
    asked = set(re.findall(r'"url":"([a-z]+:[^"]*)"', requests))
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    assert page.browser.get_log("browser") == []  # no error, and nothing for the policy to refuse
    page.run("""const script = document.createElement("script");
        script.textContent = "window.ran = 1"; document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=window.ran=1>");""")
    refused = page.browser.execute_async_script("""const done = arguments[0];
        fetch("https://evil.test").then(() => done(0), () => done(1));""")
    assert refused == 1 and page.run("return window.ran") is None


def test_hostile_texts_run_no_script_and_make_no_request(page, sample, tmp_path):
    run, record = hostile(sample)
    path = explorer.save_explorer(tmp_path / f"{record['name']}.html", run, record)
    page.open(path, "#layer=3&pins=p1,t0.2&pane=1")
    page.find("#search").send_keys("svg")
    assert any(text.startswith(PAYLOADS[2]) for text in page.texts("#found button"))
    page.find("#found button").click()
    page.at_patch(2)
    page.at_text("#texts", 1, 2)
    assert page.text("#name") == record["name"] and PAYLOADS[1] in page.text("#texts h2")
    assert page.text("#texts b") == PAYLOADS[0]
    kinds = "patch", "word", "text", "pin"
    tokens = [row["token"] for shown in kinds for row in page.numbers(shown)]
    assert any(token.startswith("'=") for token in tokens)
    assert not any(token.startswith("=") for token in tokens)
    assert_harmless(page)
    entries = [explorer.index_entry(record, run)]
    page.open(explorer.save_explorer_index(tmp_path, entries, [record["name"]]))
    assert PAYLOADS[1] in page.text("#cards li") and PAYLOADS[0] in page.text("#cards li")
    assert page.text("#cards h2") == record["name"]
    assert unquote(page.find("#cards h2 a").get_attribute("href")) == unquote(path.as_uri())
    assert_harmless(page)


# ---- In a notebook -------------------------------------------------------------------------------


def notebook_of(shown) -> nbformat.NotebookNode:
    """A notebook in which a cell shows a page."""
    output = nbformat.v4.new_output("display_data", {"text/html": shown._repr_html_()})
    kernel = {"name": "python3", "display_name": "Python 3"}  # else JupyterLab asks for one
    cells = [nbformat.v4.new_code_cell("show", outputs=[output])]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def drive(page, run, record) -> None:
    """Step, hover, pin and switch the lens of the page in the frame that is open."""
    page.wait("document.documentElement.dataset.ready")
    assert page.run("return location.href") == "about:srcdoc"
    page.at_patch(6, click=True)
    page.key("ARROW_LEFT", "ARROW_LEFT")  # they go to the page, not to the notebook
    assert page.text("#layer-shown") == "Layer 3 of 5"
    assert_top(page, "#pins .card", run, record["patches"], 3, 6)
    page.at_patch(9)
    assert_top(page, "#preview", run, record["patches"], 3, 9)
    page.choose("lens", "embedding")
    ids = record["patches"]["embedding_ids"][1, 9]
    labels = [printable(run["tokens"][i]) for i in ids]
    assert page.texts("#preview li .label") == labels
    assert not page.find("#all-images").is_displayed()  # there is no index beside it
    assert not page.find("#address").is_displayed()


@pytest.mark.parametrize("has_origin", [True, False])
def test_the_page_works_in_a_notebook_saved_as_html(page, sample, tmp_path, has_origin):
    """Kaggle shows such a page in a frame that has no origin."""
    text, _ = HTMLExporter().from_notebook_node(notebook_of(explorer.Inline(*sample)))
    if not has_origin:
        frame = '<iframe sandbox="allow-scripts" width="1300" height="900" srcdoc="'
        text = f'<!doctype html>{frame}{html.escape(text)}"></iframe>'
    (tmp_path / "notebook.html").write_text(text)
    page.open(tmp_path / "notebook.html")
    for _ in range(1 if has_origin else 2):
        page.wait("document.querySelector('iframe')")
        page.browser.switch_to.frame(page.find("iframe"))
    drive(page, *sample)
    page.browser.switch_to.default_content()
    log = [entry["message"] for entry in page.browser.get_log("browser")]
    assert [message for message in log if "cdnjs" not in message] == []  # the notebook's own


def test_where_there_are_no_frames_a_picture_and_a_sentence_stay(sample):
    """On GitHub, which takes frames and styles out."""
    run, record = sample
    shown = explorer.Inline(run, {**record, "name": f"{PAYLOADS[0]}.jpg"})._repr_html_()
    (frame,) = re.findall("<iframe.*</iframe>", shown, re.DOTALL)
    rest = shown.replace(frame, "")
    assert "still picture" in rest
    assert sorted(re.findall("<([a-z]+)", rest)) == ["code", "div", "img", "p"]
    picture = re.search('src="data:image/jpeg;base64,([^"]*)"', rest)[1]
    assert min(Image.open(io.BytesIO(base64.b64decode(picture))).size) > 400


def test_the_page_works_in_jupyterlab(page, sample, tmp_path):
    bin_folder = Path(sys.executable).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nbformat.write(notebook_of(explorer.Inline(*sample)), tmp_path / "shown.ipynb")
    environment = {**os.environ, "JUPYTER_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)}
    where = {"cwd": tmp_path, "env": environment, "stderr": subprocess.DEVNULL}
    subprocess.run([str(bin_folder / "jupyter-trust"), "shown.ipynb"], check=True, **where)
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    server = subprocess.Popen(
        [str(bin_folder / "jupyter-lab"), *options], start_new_session=True, **where
    )
    try:
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), "the server answers")
        page.browser.get(f"http://127.0.0.1:{port}/lab/tree/shown.ipynb")
        page.wait("document.querySelector('iframe[srcdoc]')")
        time.sleep(5)  # while it starts, it takes the keys to itself
        page.browser.switch_to.frame(page.find("iframe[srcdoc]"))
        drive(page, *sample)
    finally:
        page.browser.switch_to.default_content()
        page.browser.get("about:blank")
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    log = page.browser.get_log("browser")
    assert not [entry for entry in log if entry["level"] == "SEVERE"]


# ---- The index -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(results, tmp_path_factory):
    """An index in which one image has a page; the records, and their table of answers."""
    results, folder = store.Results(results), tmp_path_factory.mktemp("index")
    records, run = list(results.records()), {**results.run, "route_layers": list(range(6))}
    for record, handed_over in zip(records, (4, 2, 3), strict=True):
        record["prompts"][1] |= {"route": route(handed_over), "answer": "A dog."}
    records[0]["prompts"][1]["truth"] = records[0]["prompts"][1]["answer"]
    explorer.save_explorer(folder / f"{records[0]['name']}.html", run, records[0])
    entries = [explorer.index_entry(record, run) for record in records]
    path = explorer.save_explorer_index(folder, entries, [records[0]["name"]])
    rows = [row for record in records for row in answer_rows(record, run)]
    return path, records, answers_table(rows, run)


def test_the_index_filters_and_sorts(page, index):
    path, records, answers = index
    page.open(path)
    names = [record["name"] for record in records]
    assert page.texts("#cards h2") == names
    assert page.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    page.choose("kind", "object")
    assert len(page.texts("#cards li")) == len(names)
    page.choose("answers", "wrong")
    assert page.texts("#cards h2") == names[1:]
    assert all("✗ wrong, truth: temple" in text for text in page.texts("#cards li"))
    page.choose("answers", "right")
    assert page.texts("#cards h2") == names[:1] and "✓ right" in page.text("#cards li")
    page.choose("answers", "")
    page.choose("sort", "late")
    first = curves.first_tokens(answers).query("kind == 'object'").set_index("image")
    layers = [first["readable_layer"][name] for name in page.texts("#cards h2")]
    assert layers == sorted(layers, reverse=True)
    page.choose("sort", "handed")
    assert page.texts("#cards h2") == [names[at] for at in (1, 2, 0)]
    assert "leaves image 1, handed over 2; mediated 0.25" in page.text("#cards li")


def test_a_click_in_the_index_opens_the_page(page, index):
    path, records, _ = index
    page.open(path)
    assert page.text("#cards article:nth-child(2) p").startswith("No page was made")
    page.find("#cards li:nth-child(3) a").click()
    page.wait("document.documentElement.dataset.ready && !document.getElementById('bar').hidden")
    assert page.text("#name") == records[0]["name"] and page.hash()["prompt"] == "2"
    page.find("#bar a").click()
    page.wait("document.querySelector('#cards article')")
    page.find("#cards img").click()
    page.wait("!document.getElementById('bar').hidden")


def test_pages_and_their_index_are_saved_and_linked(tmp_path, results):
    results = store.Results(results)
    entries = [explorer.index_entry(record, results.run) for record in results.records()]
    one, two, _ = results.names
    said = explorer.save_pages(tmp_path / "my report", results, [two, one], entries)
    pages = {path.name for path in (tmp_path / "my report").iterdir()}
    assert pages == {f"{one}.html", f"{two}.html", "index.html"}
    size = sum((tmp_path / f"my report/{name}.html").stat().st_size for name in (one, two))
    assert said.startswith(f"2 pages of {size / 1e6:.1f} MB")
    links = re.findall(r"\((\S+)\)", said)
    linked = [Path(unquote(link)) for link in links]
    assert linked == [tmp_path / f"my report/{name}.html" for name in (two, "index")]


def test_which_images_get_a_page():
    names = ["a", "b", "c"]
    assert explorer.explorer_names("cases", "b", ["c", "b"], names) == ["b", "c"]
    assert explorer.explorer_names("all", "b", [], names) == ["b", "a", "c"]
    assert explorer.explorer_names(["c", "b"], "b", [], names) == ["b", "c"]
    for wrong in ("some", ["d"], None, 3):
        with pytest.raises(ValueError, match='"cases", "all" or a list'):
            explorer.explorer_names(wrong, "b", [], names)


# ---- At LLaVA-1.5-7B's size ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_sample():
    """Run and record of LLaVA-1.5-7B's shape, with six prompts."""
    bench.use("7b")
    rng = np.random.default_rng(0)
    return bench.make_run(rng), bench.make_record(rng, "large.jpg", bench.make_crop())


@pytest.fixture(scope="module")
def large(large_sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.jpg.html"
    return explorer.save_explorer(path, *large_sample)


def test_a_large_image_has_at_most_2_mb_in_a_notebook(large_sample):
    assert 1e6 < len(explorer.Inline(*large_sample)._repr_html_()) < 2e6


def test_a_text_stays_scrolled_where_it_was(page, large):
    page.open(large, "#pane=1")
    scrollers = "[...document.querySelectorAll('.scroller')]"
    answer = page.run(f"return {scrollers}.map((one) => one.scrollLeft)")
    assert min(answer) > 0  # the answer is in view at first
    page.run(f"{scrollers}.forEach((one) => (one.scrollLeft = 77)); update({{layer: 3}})")
    assert page.run(f"return {scrollers}.map((one) => one.scrollLeft)") == [77, 77]


@pytest.mark.parametrize("width", [1400, 1100])
def test_no_card_beside_the_picture_is_cut(page, large, width):
    page.browser.set_window_size(width, 900)
    page.open(large, "#pins=p100,p300&word=30&layer=24")
    page.at_patch(100)  # with several spellings
    cards = "[...document.querySelectorAll('#inspector > *')]"
    rooms = page.run(f"return {cards}.map((card) => card.clientHeight - card.scrollHeight)")
    page.browser.set_window_size(1400, 900)
    assert min(rooms) >= 0


# Milliseconds until the frame is painted, per layer of the slider and per patch hovered over.
TIMES = """
const [done, slider, canvas] = [arguments[0], byId("layer"), byId("photo")];
const [box, side] = [canvas.getBoundingClientRect(), patchSide()]; // each time over another patch
const painted = () => new Promise((then) => requestAnimationFrame(() => setTimeout(then)));
async function times(act) {
  const all = [];
  for (const i of range(33)) {
    await painted();
    const start = performance.now();
    act(i);
    await painted();
    all.push(performance.now() - start);
  }
  return all;
}
const step = (layer) => { slider.value = layer; slider.dispatchEvent(new Event("input")); };
const hover = (i) => canvas.dispatchEvent(new MouseEvent("mousemove",
  { clientX: box.left + (i % 24 + 0.5) * side, clientY: box.top + 200 + i, bubbles: true }));
(async () => done([await times(step), await times(hover)]))();
"""


def test_a_large_page_is_fast(page, large):
    """With four pins, a word and a second pane. The budget is a second to open, 50 ms for a layer
    and for a hover. The best of several is taken, so that other work does not count; `-s` shows
    it."""
    opened = []
    while min(opened, default=1000) >= 1000 and len(opened) < 9:
        page.open(large, "#pins=p100,p300,t0.39,p5&pane=1&word=300")
        opened.append(int(page.run("return document.documentElement.dataset.ready")))
    layers, hovers = page.browser.execute_async_script(TIMES)
    print(f"ms to open {min(opened)}, per layer {min(layers):.0f}, per hover {min(hovers):.0f}")
    assert min(opened) < 1000 and min(layers) < 50 and min(hovers) < 50


def test_a_page_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "index.html").symlink_to(tmp_path / "precious")
    explorer.save_explorer_index(tmp_path, [], [])
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "index.html").is_symlink()
    (tmp_path / "explorer").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="explorer' is a link"):
        explorer.save_explorer_index(tmp_path / "explorer", [], [])
