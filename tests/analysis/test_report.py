"""The sentences of the report: numbers from the tables, and texts that are never mark-up."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from llava_lens import text as text_py
from llava_lens.analysis import curves, findings, lenses, presence, report
from tests.analysis.made import tables_of
from tests.conftest import ROOT
from tests.hostile import make_results

CLAIMS = {findings.ORDER, findings.OWN, findings.THERE, findings.WINDOW, lenses.FINDS}
MEASURES = {*report.LAYERS, "P above another image", lenses.SINKS}


def summary_of(run, tables):
    return report.summary(run, tables, findings.findings(run, tables))


def test_the_sentences_are_those_of_the_tables(demo, demo_tables):
    table = demo_tables.grounded
    text = summary_of(demo.run, demo_tables)
    per_image = table.groupby(["image", "layer"])[["auroc", "auroc_absent"]].mean()
    above = (per_image["auroc"] - per_image["auroc_absent"]).groupby("layer").mean()
    whole, absent, *_ = findings.own_words(demo.run, table)
    assert whole["outcome"] == "shown" and whole["sentence"] in text
    assert absent["value"] == pytest.approx(above.max()) and absent["n"] == 24
    assert f"Its AUROC is higher by {above.max():.2f} (" in absent["sentence"]
    assert ") than that of absent words in the same boxes, at some layer from " in text
    row = presence.presence_table(demo_tables.confident).loc["all"]
    assert "The patches tell whether a category is there." in text
    assert f"{row['within']:.2f} ({row['within_low']:.2f} to" in text
    few = findings.own_words(demo.run, table[table["image"] < "scene_14"])
    assert max(each["high"] for each in few[1:]) == 1  # no difference of two AUROCs is larger
    one = table[table["image"] == "scene_00.png"]
    alone = findings.own_words(demo.run, one)
    assert {each["outcome"] for each in alone} == {"not tested"}
    assert alone[0]["sentence"].startswith("Not tested: an object's own word marks its patches. ")


def test_the_first_screen_has_at_most_thirteen_lines_and_no_semicolon_in_a_cell(demo, demo_tables):
    text = summary_of(demo.run, demo_tables)
    lines = [line for line in text.splitlines() if line and "---" not in line]
    assert len(lines) <= 13 and "\n- **By lens**: The logit lens finds" in text
    cells = [line for line in text.splitlines() if line.startswith("|")]
    assert not any(";" in line for line in cells) and "nan" not in text


def test_findings_come_back_as_data(demo, demo_tables, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report/findings.json").symlink_to(tmp_path / "precious")
    found = findings.findings(demo.run, demo_tables)
    findings.save_findings(tmp_path / "report/findings.json", demo.run, found)
    assert (tmp_path / "precious").read_text() == "precious"
    saved = json.loads((tmp_path / "report/findings.json").read_text())
    assert saved["findings"] == found
    by_claim = {(each["claim"], each["about"]): each for each in saved["findings"]}
    readable = by_claim["readable_layer", "relation"]
    assert (readable["value"], readable["low"], readable["high"], readable["n"]) == (7, 6, 8, 24)
    order = by_claim[findings.ORDER, "colour and object"]
    assert order["outcome"] == "shown" and order["value"] == -1 and order["p"] < 0.003
    claims = (ROOT / "docs/claims.md").read_text()
    assert all(each["claim"] in claims for each in saved["findings"])


def test_what_could_not_be_tested_is_said_and_is_among_the_findings(run, tables):
    """Three images: no annotations, no route, too few for a window."""
    found = findings.findings(run, tables)
    claims = [each for each in found if each["claim"] not in MEASURES]
    assert {each["claim"] for each in claims} == CLAIMS
    assert {each["outcome"] for each in claims} == {"not tested"}
    by_claim = {each["claim"]: each["sentence"] for each in claims}
    assert by_claim[findings.ORDER] == "Not tested: no right answer has a route."
    without_word = "Not tested: no image's crop has an object whose category has a word of one"
    assert by_claim[findings.OWN].startswith(without_word)
    assert by_claim[findings.THERE].startswith("Not tested: no watched category is there, or all")
    text = report.summary(run, tables, found)
    assert all(sentence in text for sentence in by_claim.values())
    assert "): Not tested: attention was not cut, or no kind of question has 12 images in" in text
    assert "**By lens**" not in text
    measured = findings.measured(tables.answers.assign(handed_over=np.nan))
    outcomes = {each["claim"]: each["outcome"] for each in measured if each["about"] == "object"}
    assert [outcomes[name] for name in ("handed_over", "mediated")] == ["not tested", "measured"]


def test_the_report_cuts_long_texts():
    run, record, _ = make_results()
    for at, prompt in enumerate(record["prompts"]):
        texts = {"question": "b" * 5000, "truth": "c" * 5000, "categories": ["d" * 5000]}
        record["prompts"][at] = {**prompt, "kind": "own", **texts}
    for item in (*record["objects"], *record["words"]):
        item["category"] = "d" * 5000
    run["model"] = "a" * 5000
    records = [{**record, "name": f"{number}.jpg"} for number in range(5)]
    tables = tables_of(records, run, np.full((3, 3, 20), 1 / 20))
    text = summary_of(run, tables)
    assert len(text) < 10_000 and "a" * 150 in text and "…" in html.unescape(text)
    ungraded = report.report_answers(run, tables.answers.assign(right=None))
    assert ungraded == "Nothing to show: no answer was graded."
    text = report.report(run, tables) + report.report_answers(run, tables.answers)
    assert len(text) < 10_000 and "b" * 150 in text and "…" in html.unescape(text)


def test_a_peak_has_a_range(run):
    rng = np.random.default_rng(0)

    def sentence(change):
        image, layer = np.indices(change.shape)
        columns = {"image": image.ravel(), "layer": layer.ravel(), "segment": "image"}
        values = {"jsd_prev": change.ravel(), "jsd_final": change.ravel()}
        return report.report_changes(run, pd.DataFrame({**columns, **values}))

    sure, plateau, flat = (0.1 * rng.random((30, 6)) for _ in range(3))
    sure[:, 4] += 1
    sure[:, 0] = np.nan  # as at the embedding, which has no layer before it
    plateau[:, 2:4] += 1
    assert "| image | 30 | layer 4 | 1.0" in sentence(sure)
    assert "| image | 30 | some layer from 2 to 3 | 1.0" in sentence(plateau)
    assert "| image | 30 | no clear peak |" in sentence(flat)


def test_report_counts_what_was_loaded(run, tables):
    right = tables.answers["right"].mask(tables.answers["kind"] == "object", False)
    tables = tables._replace(answers=tables.answers.assign(right=right))
    text = summary_of(run, tables) + report.report(run, tables)
    answers = tables.answers.query("token == 0 and layer == 0")
    objects = answers[answers["kind"] == "object"]
    assert "3 images with 9 prompts" in text and "no right answer has a route" in text
    assert "(no interval)" in text and "nan" not in text
    whole = objects[objects["whole_word"].astype(bool)]
    if len(whole):
        assert f"{whole['readable_layer'].median():g} (no interval)" in text
    wrong = objects[~objects["right"].dropna().astype(bool)]
    below = report.report_answers(run, tables.answers)
    assert f"Wrong answers: {len(wrong)} of {objects['right'].notna().sum()} graded." in below
    assert all(text_py.as_code(image) in below for image in wrong["image"])
    assert "| image | 3 | no clear peak |" in report.report_changes(run, tables.layers)


def test_what_is_in_bits_says_so_beside_the_number(run, tables):
    """A label of another unit would not match. The numbers are those of the tables."""
    at = tables.layers.groupby(["segment", "image", "layer"])[["jsd_prev", "jsd_final"]].mean()
    by = at.groupby(["segment", "layer"]).mean()["jsd_prev"].groupby("segment").max()
    below = report.report_changes(run, tables.layers)
    assert "| by (bits) | last layer over 0.1 bits from the output |" in below
    for segment, most in by.items():
        assert re.search(rf"\| {segment} \| 3 \| [^|]+ \| {most:.2f} \|", below)
    run = {**run, "last_layer_jsd": 0.25}
    assert "was 0.2 bits from the model's own distribution" in report.report(run, tables)
    certain = tables.mean_probability.copy()
    certain[1, 0] = np.eye(certain.shape[2])[0]
    bias = curves.bias_curve(certain, run).query("segment == 'prompt'")["bias"].max()
    text = summary_of(run, tables._replace(mean_probability=certain))
    assert re.search(rf"is over 1 bit from the last layer's \({bias:.1f} bits at most\)", text)


def test_an_answer_that_is_never_readable_is_named(run, tables):
    answers = tables.answers.assign(readable_layer=len(run["layers"]), whole_word=True)
    assert "| never (no interval) |" in summary_of(run, tables._replace(answers=answers))


def test_no_text_of_a_stranger_is_mark_up_in_the_report(run, tables):
    nasty = "`<script>alert(1)</script>` $x$ *b* | a_b_"
    texts = dict.fromkeys(["answer", "question", "image"], nasty)
    answers = tables.answers.assign(truth="dog", right=False, **texts)
    text = report.report(run, tables._replace(answers=answers))
    text += report.report_answers(run, answers)
    assert "<script" not in text and "$" not in text and "*b*" not in text
    assert "&#60;script&#62;" in text
