"""The explorer page in headless Chromium (skipped where there is none; .ci/run installs it)."""

import html
import re
import shutil
import subprocess

import pytest

import lens_utils as lu

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# Moves the slider by the step that the page itself defines, hovers, and leaves what is shown in the document.
HOVER = """
<pre id="shown"></pre>
<script>
window.addEventListener("load", async () => {
  const page = document.querySelector(".js-plotly-plot"), shown = document.getElementById("shown");
  for (const [layer, panel, [row, column]] of %s) {
    await Plotly.update(page, page.layout.sliders[0].steps[layer].args[0]);
    Plotly.Fx.hover(page, {xval: column, yval: row}, panel ? "x2y2" : "xy");
    await new Promise(resolve => setTimeout(resolve, 300));  // plotly draws hover labels with a delay
    shown.textContent += page.querySelector(".hoverlayer").textContent + "\\n";
  }
});
</script></body>"""


@pytest.fixture
def sample(results):
    record = next(lu.load_records(results, lu.load_run(results)))
    return lu.load_run(results), record, record["prompts"][0]


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
    page = lu.save_explorer(tmp_path / "explorer.html", run, record, prompt)
    places = [
        (5, 0, [1, 2]),
        (2, 0, [3, 0]),
        (3, 1, [4, 0]),
        (0, 1, [len(prompt["token_ids"]) - 1, 0]),
    ]
    head, tail = page.read_text(encoding="utf-8").rsplit("</body>", 1)
    page.write_text(head + HOVER % [list(place) for place in places] + tail, encoding="utf-8")
    shown = re.search(r'<pre id="shown">(.*?)</pre>', in_chromium(page, tmp_path), re.S)
    texts = html.unescape(shown.group(1)).strip().split("\n")
    assert len(texts) == len(places)
    for (layer, panel, (row, column)), hovered in zip(places, texts):
        readings, at = (
            (prompt["readings"], row) if panel else (record["patches"], row * run["grid"] + column)
        )
        name = (
            f"position {row + 1}, input" if panel else f"patch row {row + 1}, column {column + 1}"
        )
        assert name in hovered and f"layer {run['layers'][layer]}" in hovered
        for i, prob in zip(readings["top_ids"][layer, at], readings["top_probs"][layer, at]):
            assert f"{prob:.3f} {lu.printable(run['tokens'][i], in_figure=False)}" in hovered


def test_the_page_needs_no_network(sample, tmp_path):
    text = lu.save_explorer(tmp_path / "deep" / "explorer.html", *sample).read_text(
        encoding="utf-8"
    )
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="http', text)


def test_a_token_cannot_break_the_page(sample, tmp_path):
    run, record, prompt = sample
    run = {
        **run,
        "tokens": ["</script><script>document.title='broken'</script>"] * len(run["tokens"]),
    }
    text = lu.save_explorer(
        tmp_path / "explorer.html", run, {**record, "name": "<b>a</b>.jpg"}, prompt
    ).read_text(encoding="utf-8")
    assert "</script><script>document" not in text and "&lt;b&gt;a" in text.replace("\\u0026", "&")


def test_layer_runs(sample):
    run = {**sample[0], "tokens": ["a", "b<"], "layers": ["emb", "1", "2", "3"]}
    import numpy as np

    assert lu._layer_runs(run, np.array([0, 0, 1, 0])) == "a emb-1, b&lt; 2, a 3"
