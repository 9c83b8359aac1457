"""llava_lens.analysis: long texts, numbers and formulas of a stranger in the report and summary."""

import html

import numpy as np
import pandas as pd
import pytest

from llava_lens.analysis import answers as analysis_answers
from llava_lens.analysis import causal, grounding, presence, report, report_image
from tests.hostile import SAMPLING, make_results


@pytest.mark.parametrize("n_images, said", [(1, "1 image"), (2, "2 images")])
def test_images_and_categories_are_counted_as_numbers(n_images, said):
    run, record, _ = make_results()
    absent = record["words"][0] | {"category": "cat", "present": False, SAMPLING: "random"}
    record["words"] = [*record["words"], absent]
    records = [{**record, "name": f"{number}.jpg"} for number in range(n_images)]
    grounded, confident = grounding.grounding(records, run), presence.category_confidence(records)
    answers = analysis_answers.tabulate(records, run)["answers"]
    text = "\n".join(report_image.report_grounding(run, grounded, confident))
    assert f"less on {said} (" in text
    categories = grounding.categories_table(grounded, grounding.best_layer(grounded), answers)
    text += report_image.report_categories(categories)
    assert f"</code> | {n_images} |" in text and "True" not in text and "False" not in text


def test_the_report_cuts_long_texts():
    run, record, _ = make_results()
    texts = {"question": "b" * 5000, "truth": "c" * 5000, "categories": ["d" * 5000]}
    record["prompts"][0] |= {"kind": "presence", **texts}
    for item in (*record["objects"], *record["words"]):
        item["category"] = "d" * 5000
    run["model"] = "a" * 5000
    records = [{**record, "name": f"{number}.jpg"} for number in range(5)]
    tables, grounded = analysis_answers.tabulate(records, run), grounding.grounding(records, run)
    confident, cut = presence.category_confidence(records), causal.knockouts(records, run)
    text = report.report(run, tables, grounded, confident, cut, np.full((3, 3, 20), 1 / 20))
    assert len(text) < 10_000 and "a" * 150 in text and "…" in html.unescape(text)
    text = report.summary(run, tables["answers"], grounded)
    best = grounding.best_layer(grounded)
    categories = grounding.categories_table(grounded, best, tables["answers"])
    text += report_image.report_categories(categories)
    assert len(text) < 10_000 and "d" * 150 in text and "…" in html.unescape(text)


TEXTS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=x", "'", "", "None", "NA", "nan", "1", 'a,"b"\n']


def test_texts_in_the_summary_are_no_formulas_and_come_back(tmp_path):
    run, record, _ = make_results()
    prompts = [record["prompts"][0] | {"answer": text, "question": text or "?"} for text in TEXTS]
    answers = analysis_answers.tabulate([record | {"prompts": prompts}], run)["answers"]
    analysis_answers.save_summary(tmp_path / "deep/summary.csv", answers)
    cells = pd.read_csv(tmp_path / "deep/summary.csv", dtype=str, keep_default_na=False)
    texts = cells[["answer", "question", "token_label"]].to_numpy().ravel()
    assert not [text for text in texts if text[:1] in "=+-@\t" and text]
    back = analysis_answers.load_summary(tmp_path / "deep/summary.csv")
    answers = answers.astype(object).where(answers.notna(), np.nan)
    back = back.astype(object).where(back.notna(), np.nan)
    pd.testing.assert_frame_equal(back, answers)
    assert back["answer"].unique().tolist() == TEXTS
