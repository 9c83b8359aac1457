"""The sentences of the report: numbers from the tables, and texts that are never mark-up."""

import html

import numpy as np
import pandas as pd
import pytest

from llava_lens import text as text_py
from llava_lens.analysis import presence, report, report_answers, report_image, report_layers
from tests.analysis.made import confidence_of, grounding_of, tables_of
from tests.hostile import make_results


def test_the_sentences_are_those_of_the_tables(demo, demo_tables):
    table = demo_tables.grounded
    lines = report_image.report_grounding(demo.run, table, demo_tables.confident)
    per_image = table.groupby(["image", "layer"])[["auroc", "auroc_absent"]].mean()
    above = (per_image["auroc"] - per_image["auroc_absent"]).groupby("layer").mean()
    assert lines[0].startswith("An object's own word marks its patches more than words of absent")
    assert f"at layer {above.idxmax()}, where the difference is largest" in lines[0]
    assert f"{above.max():.2f} (" in lines[0] and "on 24 images" in lines[0]
    assert lines[1].startswith("An object's word is read where the object is")
    assert lines[3].startswith("The patches tell whether a category is there")
    row = presence.presence_table(demo_tables.confident).loc["all"]
    assert f"{row['within']:.2f} ({row['within_low']:.2f} to" in lines[3]
    blind = f"how many images of the other half have it, {row['frequency']:.2f}"
    assert blind in lines[3]
    assert f"says yes to {row['sensitivity']:.0%} (" in lines[3]
    unnamed = table.assign(top1_hit_rate=0.0)
    unnamed = report_image.report_grounding(demo.run, unnamed, demo_tables.confident)
    assert "No patch's top-1 token is its object's word, at any layer." in unnamed
    one = table[table["image"] == "scene_00.png"]
    present = demo_tables.confident[demo_tables.confident["present"]]
    alone = report_image.report_grounding(demo.run, one, present)
    assert "nan" not in " ".join(alone) and len(alone) == 3
    assert alone[0].startswith("Not shown: an object's own word")


def test_without_annotations_nothing_is_claimed(run, tables):
    assert tables.grounded.empty and tables.confident.empty
    lines = report_image.report_grounding(run, tables.grounded, tables.confident)
    assert lines[0].startswith("Nothing to report")


@pytest.mark.parametrize("n_images, said", [(1, "1 image"), (2, "2 images")])
def test_images_and_categories_are_counted_as_numbers(n_images, said):
    run, record, _ = make_results()
    absent = {"category": "cat", "present": False, "absent_sampling": "random"}
    record["words"] = [*record["words"], record["words"][0] | absent]
    records = [{**record, "name": f"{number}.jpg"} for number in range(n_images)]
    grounded, confident = grounding_of(records, run), confidence_of(records)
    text = "\n".join(report_image.report_grounding(run, grounded, confident))
    assert f"less on {said} (" in text and "True" not in text and "False" not in text


def test_the_report_cuts_long_texts():
    run, record, _ = make_results()
    for at, prompt in enumerate(record["prompts"]):
        texts = {"question": "b" * 5000, "truth": "c" * 5000, "categories": ["d" * 5000]}
        record["prompts"][at] = {**prompt, "kind": "presence", **texts}
    for item in (*record["objects"], *record["words"]):
        item["category"] = "d" * 5000
    run["model"] = "a" * 5000
    records = [{**record, "name": f"{number}.jpg"} for number in range(5)]
    tables = tables_of(records, run, np.full((3, 3, 20), 1 / 20))
    text = report.report(run, tables)
    assert len(text) < 10_000 and "a" * 150 in text and "…" in html.unescape(text)
    text = report.summary(run, tables) + report_answers.report_answers(run, tables.answers)
    assert len(text) < 10_000 and "b" * 150 in text and "…" in html.unescape(text)


def test_a_peak_has_a_range(run):
    rng = np.random.default_rng(0)

    def sentence(change):
        image, layer = np.indices(change.shape)
        columns = {"image": image.ravel(), "layer": layer.ravel(), "segment": "image"}
        values = {"jsd_prev": change.ravel(), "jsd_final": change.ravel()}
        return report_layers.report_changes(run, pd.DataFrame({**columns, **values}))

    sure, plateau, flat = (0.1 * rng.random((30, 6)) for _ in range(3))
    sure[:, 4] += 1
    sure[:, 0] = np.nan  # as at the embedding, which has no layer before it
    plateau[:, 2:4] += 1
    assert "change most at layer 4, by 1.0" in sentence(sure)
    assert "change most at some layer from 2 to 3, by 1.0" in sentence(plateau)
    assert "have no clear peak" in sentence(flat)


def test_report_counts_what_was_loaded(run, tables):
    text = report.report(run, tables)
    answers = tables.answers.query("token == 0 and layer == 0")
    objects = answers[answers["kind"] == "object"]
    assert "3 images with 9 prompts" in text and "In which order" not in text
    assert "too few images for an interval" in text and "nan" not in text
    whole = objects[objects["whole_word"].astype(bool)]
    assert whole.empty or f"{whole['readable_layer'].median():g} (too few" in text
    wrong = objects[~objects["right"].dropna().astype(bool)]
    below = report_answers.report_answers(run, tables.answers)
    assert f"{len(wrong)} of {objects['right'].notna().sum()} graded answers are wrong" in below
    assert all(text_py.as_code(image) in below for image in wrong["image"])
    assert "too few images to tell a peak" in report_layers.report_changes(run, tables.layers)


def test_an_answer_that_never_settles_is_named(run, tables):
    answers = tables.answers.assign(settling_layer=len(run["layers"]), whole_word=True)
    text = report_answers.report_answers(run, answers)
    assert "| never (too few images for an interval) |" in text


def test_no_text_of_a_stranger_is_mark_up_in_the_report(run, tables):
    nasty = "`<script>alert(1)</script>` $x$ *b* | a_b_"
    said = dict.fromkeys(["answer", "question", "image"], nasty)
    answers = tables.answers.assign(**said, truth="dog", right=False)
    text = report.report(run, tables._replace(answers=answers))
    text += report_answers.report_answers(run, answers)
    assert "<script" not in text and "$" not in text and "*b*" not in text
    assert "&#60;script&#62;" in text
