"""lens_tables and lens_report: tables, sentences of the report, the order of the kinds."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from llava_lens import kinds as kinds_py
from llava_lens import schema, store
from llava_lens import text as text_py
from llava_lens.analysis import answers as analysis_answers
from llava_lens.analysis import curves, grading, report_image, stats
from llava_lens.analysis import report as analysis_report


@pytest.fixture
def mean(results):
    return store.Results(results).mean_probability()


def test_a_prompt_or_layer_that_is_not_there_is_refused_with_what_is(results, run):
    record = store.Results(results).record()
    for number in (3, -1):
        message = f"prompt is {number}: china.jpg has the prompts 0 to 2"
        with pytest.raises(ValueError, match=message):
            analysis_answers.choose_prompt(record, number)
    with pytest.raises(ValueError, match=r"layers_shown is \[0, 6\]: the layers are 0 \(emb\), 1"):
        analysis_answers.layer_positions(run, [0, 6])


def test_the_prompt_and_the_layers_are_those_that_were_chosen(results, run):
    record = store.Results(results).record("flower.jpg")
    assert analysis_answers.choose_prompt(record, 1)["question"] == kinds_py.question_of("object")
    assert analysis_answers.layer_positions(run, [5, 0]) == [5, 0]
    assert analysis_answers.layer_positions(run, []) == [0, 1, 2, 4, 5]


def test_where_not_every_layer_was_read_a_number_is_no_position():
    run = {"layers": ["emb", "4", "8"]}
    assert schema.layer_numbers(run).tolist() == [0, 4, 8]
    assert analysis_answers.layer_positions(run, [8, 4]) == [2, 1]
    labels = [schema.layer_label(run, number) for number in (0, 4, 6.5, 8, 9)]
    assert labels == ["emb", "4", "6.5", "8", "never"]
    with pytest.raises(ValueError, match=r"the layers are 0 \(emb\), 4, 8\."):
        analysis_answers.layer_positions(run, [2])


def test_tables_have_the_numbers_of_the_layers_that_were_read(records, run, tables):
    """Of the same records with every second layer taken out."""
    kept = [1, 3, 5]

    def thinned(value):
        if isinstance(value, dict):
            return {key: thinned(inner) for key, inner in value.items()}
        return value[kept] if isinstance(value, np.ndarray) and value.shape[:1] == (6,) else value

    def of_word(prompt):
        return {name: prompt[name] for name in ("word_prob", "word_rank", "grey", "other")}

    thin = []
    for record in records:
        prompts = [
            {**prompt, "readings": thinned(prompt["readings"]), **thinned(of_word(prompt))}
            for prompt in record["prompts"]
        ]
        thin.append({**record, "patches": thinned(record["patches"]), "prompts": prompts})
    few = analysis_answers.tabulate(thin, {**run, "layers": ["1", "3", "5"]})
    for name, table in few.items():
        whole = tables[name][tables[name]["layer"].isin(kept)]
        assert table["layer"].tolist() == whole["layer"].tolist()
    ranks = [prompt["word_rank"] for record in thin for prompt in record["prompts"]]
    settled = [[*kept, 6][stats.settling_layer(rank)] for rank in ranks]
    assert curves.first_tokens(few["answers"])["settling_layer"].tolist() == settled


def test_layer_table_against_a_loop(tables, records):
    layers = tables["layers"]
    for record in records:
        for number, prompt in enumerate(record["prompts"]):
            for segment, positions in (
                ("prompt", range(prompt["n_prompt"])),
                ("answer", range(prompt["n_prompt"], len(prompt["token_ids"]))),
            ):
                rows = layers[
                    (layers["image"] == record["name"])
                    & (layers["prompt"] == number)
                    & (layers["segment"] == segment)
                ]
                for series in ("jsd_prev", "jsd_final", "entropy"):
                    expected = [
                        np.mean([row[at] for at in positions]) for row in prompt["readings"][series]
                    ]
                    np.testing.assert_allclose(
                        rows.sort_values("layer")[series], expected, rtol=1e-5
                    )
    images = layers[layers["segment"] == "image"]
    assert len(images) == 3 * 6 and set(images["kind"]) == {"image"}


def test_answer_table(tables, records, run):
    answers = tables["answers"]
    assert len(answers) == 6 * sum(
        len(prompt["answer_ids"]) for record in records for prompt in record["prompts"]
    )
    last = answers[answers["layer"] == 5]
    # What the lens reads last is what the model said.
    assert (last["token_rank"] == 1).all() and (last["top1"] == last["token_label"]).all()
    assert (answers["settling_layer"] <= 5).all()
    graded = answers[answers["truth"].notna()]
    assert set(graded["kind"]) == {"object"}
    assert (
        graded["right"] == [grading.is_right("object", a, "temple") for a in graded["answer"]]
    ).all()
    assert answers[answers["truth"].isna()]["right"].isna().all()
    # The same whichever comes first.
    turned = [
        {**record, "prompts": record["prompts"][1:] + record["prompts"][:1]} for record in records
    ]
    again = analysis_answers.tabulate(turned, run)["answers"]
    assert again["right"].isna().sum() == answers["right"].isna().sum()
    assert again["right"].dropna().sum() == answers["right"].dropna().sum()


def test_the_words_to_show_end_with_a_control():
    present = {"dog": True, "hot dog": True, "cat": False, "red": True, "tree": True, "sky": False}
    words = [{"category": name, "present": there} for name, there in present.items()]
    record = {"name": "china.jpg", "words": words}
    assert analysis_answers.choose_words(record, []) == [
        "dog",
        "hot dog",
        "red",
        "tree",
        "cat",
        "sky",
    ]
    assert analysis_answers.choose_words(record, ["sky", "tree"]) == ["sky", "tree"]
    assert analysis_answers.choose_words({"name": "china.jpg", "words": []}, []) == []
    message = "'frisbee' not watched in china.jpg; watched categories: dog, hot dog, cat, red, tree"
    with pytest.raises(ValueError, match=message):
        analysis_answers.choose_words(record, ["dog", "frisbee"])


EMPTY = (
    pd.DataFrame(columns=["image", "category", "size", "layer", "auroc"]),
    pd.DataFrame(columns=["image", "category", "present", "way", "confidence", "said_yes"]),
    pd.DataFrame(columns=["image", "prompt", "kind", "way", "layer", "change"]),
)


def report(run, tables, mean):
    """The report of results without annotations and without knockout."""
    return analysis_report.report(run, tables, *EMPTY, mean)


def test_report_counts_what_was_loaded(run, tables, mean):
    text = report(run, tables, mean)
    answers = tables["answers"].query("token == 0 and layer == 0")
    objects = answers[answers["kind"] == "object"]
    assert "3 images with 9 prompts" in text and "In which order" not in text
    assert "too few images for an interval" in text and "nan" not in text
    whole = objects[objects["whole_word"].astype(bool)]
    if len(whole):
        assert f"{whole['readable_layer'].median():g} (too few" in text
    wrong = objects[~objects["right"].dropna().astype(bool)]
    below = analysis_report.report_answers(run, tables["answers"])
    assert f"{len(wrong)} of {objects['right'].notna().sum()} graded answers are wrong" in below
    assert all(text_py.as_code(image) in below for image in wrong["image"])
    assert "too few images to tell a peak" in analysis_report.report_changes(run, tables["layers"])


def settled(**kinds):
    """A table of first answer tokens: layers per kind, an image each."""
    return pd.DataFrame(
        [
            {
                "image": f"{number}.jpg",
                "kind": kind,
                "truth": "dog",
                "whole_word": True,
                "settling_layer": layer,
                "drawn_layer": float(layer),
                "drawn_layer_by_probability": float(layer),
            }
            for kind, layers in kinds.items()
            for number, layer in enumerate(layers)
        ]
    )


def test_an_order_is_claimed_only_where_a_paired_test_allows_it():
    noise = np.arange(20) % 3
    colours_objects, colours_relations, objects_relations = analysis_report.order_of_kinds(
        settled(colour=3 + noise, object=3 + noise[::-1], relation=6 + noise)
    )
    assert colours_objects.startswith("No order is shown between")
    assert (
        "colours are drawn from the image before answers about the arrangement of objects: of 20 "
        "images, colours earlier on 20 and later on 0 by odds; in the median by 3 layers by odds ("
        in colours_relations
    )
    assert "objects are drawn from the image before answers about the arr" in objects_relations


def test_an_order_is_claimed_only_where_both_scales_say_so():
    noise = np.arange(20) % 3
    table = settled(colour=3 + noise, object=6 + noise)
    assert "are drawn from the image before" in analysis_report.order_of_kinds(table)[0]
    for other in (lambda layers: layers * 0 + 3, lambda layers: -layers):
        changed = table.assign(
            drawn_layer_by_probability=other(table["drawn_layer_by_probability"])
        )
        assert "No order is shown" in analysis_report.order_of_kinds(changed)[0]


def test_an_order_is_found_in_either_direction_and_not_from_few_images():
    noise = np.arange(20) % 3

    def sentence(**kinds):
        return analysis_report.order_of_kinds(settled(**kinds))[0]

    earlier = (
        "objects are drawn from the image before answers about colours: of 20 images, objects "
    )
    assert f"{earlier}earlier on 20" in sentence(colour=6 + noise, object=3 + noise)
    few = "11 images draw both from the image, too few"
    assert few in sentence(colour=[3] * 11, object=[6] * 11)
    assert "1 image draws both" in sentence(colour=[3], object=[6])
    assert "0 layers by odds (quartiles 0 and 0, p = 1)" in sentence(
        colour=[3] * 12, object=[3] * 12
    )


def test_the_order_is_that_of_the_test_not_of_the_mean():
    """Most images one layer later, a few very much earlier: the mean and the rank test differ in
    direction."""
    sentence = analysis_report.order_of_kinds(
        settled(colour=[3] * 25 + [31] * 3, object=[4] * 25 + [3] * 3)
    )[0]
    assert (
        "colours are drawn from the image before answers about objects: of 28 images, colours "
        "earlier on 25 and later on 3" in sentence
    )


def test_the_first_answer_of_a_kind_counts_that_has_such_a_layer():
    noise = np.arange(20) % 3
    table = settled(colour=3 + noise, object=6 + noise)
    said_anyway = table.assign(drawn_layer=np.nan, drawn_layer_by_probability=np.nan)
    more = table.assign(drawn_layer=30.0 - table["drawn_layer"])
    assert analysis_report.order_of_kinds(
        pd.concat([said_anyway, table, more])
    ) == analysis_report.order_of_kinds(table)
    assert "0 images draw both" in analysis_report.order_of_kinds(said_anyway)[0]


def test_settling_table():
    """By hand; the interval narrows with the number of images and does not exist below twelve."""
    rng = np.random.default_rng(0)

    def table(n):
        answers = settled(colour=rng.integers(2, 9, n)).assign(
            token=0, layer=0, right=[True, None] * (n // 2) + [False] * (n % 2)
        )
        return answers, analysis_answers.settling_table(answers).loc["colour"]

    answers, many = table(400)
    _, few = table(13)
    _, eleven = table(11)
    assert many["median"] == answers["settling_layer"].median() and many["images"] == 400
    assert many["graded"] == 200 and many["right"] == 1
    assert many["low"] <= many["median"] <= many["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert np.isnan(eleven["low"]) and eleven["graded"] == 6 and eleven["not_gradable"] == 5


def test_an_answer_that_never_settles_is_named(run, tables):
    answers = tables["answers"].assign(settling_layer=len(run["layers"]), whole_word=True)
    assert "| never (too few images for an interval) |" in analysis_report.report_answers(
        run, answers
    )


def test_a_peak_has_a_range(run):
    rng = np.random.default_rng(0)

    def sentence(change):
        image, layer = np.indices(change.shape)
        columns = {"image": image.ravel(), "layer": layer.ravel(), "segment": "image"}
        values = {"jsd_prev": change.ravel(), "jsd_final": change.ravel()}
        return analysis_report.report_changes(run, pd.DataFrame({**columns, **values}))

    sure, plateau, flat = (0.1 * rng.random((30, 6)) for _ in range(3))
    sure[:, 4] += 1
    sure[:, 0] = np.nan  # as at the embedding, which has no layer before it
    plateau[:, 2:4] += 1
    assert "change most at layer 4, by 1.0" in sentence(sure)
    assert "change most at some layer from 2 to 3, by 1.0" in sentence(plateau)
    assert "have no clear peak" in sentence(flat)


def test_the_lens_s_bias_against_scipy(run, mean):
    curve = curves.bias_curve(mean, run).set_index(["segment", "layer"])["bias"]
    for segment, distributions in zip(schema.SEGMENTS, mean, strict=True):
        for layer, distribution in enumerate(distributions):
            expected = scipy.stats.entropy(distributions[-1], distribution, base=2)
            assert curve[segment, layer] == pytest.approx(expected, abs=1e-4)


def test_right_and_wrong_answers_apart_by_hand():
    rows = [
        {"image": i, "kind": "colour", "right": i < 3, "whole_word": True, "token": 0, "layer": 5,
         "readable_layer": 2 * i, "probability": 0.9, "other_probability": 0.1 * i,
         "grey_probability": 0.0}
        for i in range(5)
    ]  # fmt: skip
    table = analysis_answers.right_and_wrong(pd.DataFrame(rows)).set_index("right")
    assert table.loc[True, ["images", "readable_layer"]].tolist() == [3, 2]
    assert table.loc[False, ["images", "readable_layer"]].tolist() == [2, 7]
    assert table["gain"].to_dict() == pytest.approx({True: 0.8, False: 0.55})


def test_no_text_of_a_stranger_is_mark_up_in_the_report(run, tables, mean):
    nasty = "`<script>alert(1)</script>` $x$ *b* | a_b_"
    answers = tables["answers"].assign(
        answer=nasty, truth="dog", right=False, question=nasty, image=nasty
    )
    text = report(run, {**tables, "answers": answers}, mean) + analysis_report.report_answers(
        run, answers
    )
    categories = pd.DataFrame({"images": [1], "auroc": [1.0], "above_absent": [0.5], "graded": [0],
                               "right": [np.nan]}, index=[nasty])  # fmt: skip
    text += report_image.report_categories(categories)
    assert "<script" not in text and "$" not in text and "*b*" not in text
    assert "&#60;script&#62;" in text
