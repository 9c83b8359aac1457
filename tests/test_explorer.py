"""lens_figures: the explorer page in headless Chromium (skipped where there is none; .ci/run
installs it)."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest

import lens_figures as lf
import lens_utils as lu

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# Moves the slider by the step that the page itself defines, hovers, and leaves what is shown in the
# document.
HOVER = """
<pre id="shown"></pre>
<script>
window.addEventListener("load", async () => {
  const page = document.querySelector(".js-plotly-plot"), shown = document.getElementById("shown");
  for (const [layer, panel, [row, column]] of %s) {
    await Plotly.update(page, page.layout.sliders[0].steps[layer].args[0]);
    Plotly.Fx.hover(page, {xval: column, yval: row}, panel ? "x2y2" : "xy");
    // plotly draws hover labels with a delay
    await new Promise(resolve => setTimeout(resolve, 300));
    shown.textContent += page.querySelector(".hoverlayer").textContent + "\\n";
  }
});
</script></body>"""


@pytest.fixture
def sample(results):
    results = lu.Results(results)
    record = results.record()
    return results.run, record, record["prompts"][0]


def in_chromium(page, tmp_path) -> str:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_hovering_shows_the_tokens_that_the_results_hold(sample, tmp_path):
    run, record, prompt = sample
    page = lf.save_explorer(tmp_path / "explorer.html", run, record, prompt)
    last_row = len(prompt["token_ids"]) - 1
    places = [(5, 0, [1, 2]), (2, 0, [3, 0]), (3, 1, [4, 0]), (0, 1, [last_row, 0])]
    head, tail = page.read_text(encoding="utf-8").rsplit("</body>", 1)
    page.write_text(head + HOVER % [list(place) for place in places] + tail, encoding="utf-8")
    shown = re.search(r'<pre id="shown">(.*?)</pre>', in_chromium(page, tmp_path), re.S)
    texts = html.unescape(shown.group(1)).strip().split("\n")
    for (layer, panel, (row, column)), hovered in zip(places, texts, strict=True):
        readings, at = record["patches"], row * run["grid"] + column
        name = f"patch row {row + 1}, column {column + 1}"
        if panel:
            readings, at, name = prompt["readings"], row, f"position {row + 1}, input"
        assert name in hovered and f"layer {run['layers'][layer]}" in hovered
        top = zip(readings["top_ids"][layer, at], readings["top_probs"][layer, at], strict=True)
        for i, prob in top:
            assert f"{prob:.3f} {lu.printable(run['tokens'][i])}" in hovered


def test_the_page_needs_no_network(sample, tmp_path):
    page = lf.save_explorer(tmp_path / "deep" / "explorer.html", *sample)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', text)


def test_a_token_cannot_break_the_page(sample, tmp_path):
    run, record, prompt = sample
    token = "</script><script>document.title='broken'</script>"
    run = {**run, "tokens": [token] * len(run["tokens"])}
    record = {**record, "name": "<b>a</b>.jpg"}
    page = lf.save_explorer(tmp_path / "explorer.html", run, record, prompt)
    text = page.read_text(encoding="utf-8")
    assert "</script><script>document" not in text
    assert "&lt;b&gt;a" in text.replace("\\u0026", "&")


def test_the_top_1_across_layers():
    run = {"tokens": ["a", "b<"], "layers": ["emb", "1", "2", "3"]}
    top_ids = np.array([[0, 1], [0, 1], [1, 1], [0, 1]])[:, :, None]  # [layer, pos, k]
    readings = {"top_ids": top_ids, "top_probs": np.full(top_ids.shape, 0.5)}
    hovers = lf._hover_texts(run, readings, ["here", "there"])
    shown = [
        ["a emb-1, b&lt; 2, a 3", "b&lt; emb-3"],
        ["here, layer 2<br>0.500 b&lt;", "there, layer 2<br>0.500 b&lt;"],
    ]
    for texts in hovers:
        assert [text.split("top-1 across layers: ")[1] for text in texts] == shown[0]
    assert [text.split("<br>top-1")[0] for text in hovers[2]] == shown[1]
