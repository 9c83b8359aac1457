"""lens_tables: settling, tables, sentences of the report, the order of the kinds."""

import numpy as np
import pandas as pd
import pytest

import lens_data as ld
import lens_tables as lt
import lens_utils as lu


@pytest.fixture
def run(results):
    return lu.Results(results).run


@pytest.fixture
def tables(results, run):
    return lt.tabulate(lu.Results(results).records(), run)


@pytest.fixture
def mean(results):
    return lu.Results(results).mean_probability()


def test_a_prompt_or_layer_that_is_not_there_is_refused_with_what_is(results, run):
    record = lu.Results(results).record()
    for number in (3, -1):
        message = f"prompt is {number}: china.jpg has the prompts 0 to 2"
        with pytest.raises(ValueError, match=message):
            lt.choose_prompt(record, number)
    with pytest.raises(ValueError, match=r"layers_shown is \[0, 6\]: the layers are 0 \(emb\), 1"):
        lt.layer_positions(run, [0, 6])


def test_the_prompt_and_the_layers_are_those_that_were_chosen(results, run):
    record = lu.Results(results).record("flower.jpg")
    assert lt.choose_prompt(record, 1)["question"] == ld.object_question()
    assert lt.layer_positions(run, [5, 0]) == [5, 0]
    assert lt.layer_positions(run, []) == [0, 1, 2, 4, 5]


def test_where_not_every_layer_was_read_a_number_is_no_position():
    run = {"layers": ["emb", "4", "8"]}
    assert lt.layer_numbers(run).tolist() == [0, 4, 8]
    assert lt.layer_positions(run, [8, 4]) == [2, 1]
    labels = [lt.layer_label(run, number) for number in (0, 4, 6.5, 8, 9)]
    assert labels == ["emb", "4", "6.5", "8", "never"]
    with pytest.raises(ValueError, match=r"the layers are 0 \(emb\), 4, 8\."):
        lt.layer_positions(run, [2])


def test_tables_have_the_numbers_of_the_layers_that_were_read(records, run, tables):
    """Of the same records with every second layer taken out."""
    kept = [1, 3, 5]

    def thinned(value):
        if isinstance(value, dict):
            return {key: thinned(inner) for key, inner in value.items()}
        return value[kept] if isinstance(value, np.ndarray) and value.shape[:1] == (6,) else value

    def of_word(prompt):
        return {name: prompt[name] for name in ("word_prob", "word_rank", "grey")}

    thin = []
    for record in records:
        prompts = [
            {**prompt, "readings": thinned(prompt["readings"]), **thinned(of_word(prompt))}
            for prompt in record["prompts"]
        ]
        thin.append({**record, "patches": thinned(record["patches"]), "prompts": prompts})
    few = lt.tabulate(thin, {**run, "layers": ["1", "3", "5"]})
    for name, table in few.items():
        whole = tables[name][tables[name]["layer"].isin(kept)]
        assert table["layer"].tolist() == whole["layer"].tolist()
    ranks = [prompt["word_rank"] for record in thin for prompt in record["prompts"]]
    settled = [[*kept, 6][lt.settling_layer(rank)] for rank in ranks]
    assert lt.first_tokens(few["answers"])["settling_layer"].tolist() == settled


def test_settling_layer_against_a_loop():
    rank = np.random.default_rng(0).integers(1, 3, (6, 500))
    rank[-1] = 1
    for column, settled in zip(rank.T, lt.settling_layer(rank), strict=True):
        assert (column[settled:] == 1).all() and (settled == 0 or column[settled - 1] != 1)


def test_readable_layer_by_hand():
    probs = np.array(
        [[0.1, 0.3, 0.0], [0.95, 0.3, 0.0], [0.5, 0.3, 0.9], [0.91, 0.3, 0.1], [1.0, 0.3, 0.5]]
    )
    assert lt.readable_layer(probs).tolist() == [3, 0, 4]


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
    assert (graded["right"] == [lt.is_right("object", a, "temple") for a in graded["answer"]]).all()
    assert answers[answers["truth"].isna()]["right"].isna().all()
    # The same whichever comes first.
    turned = [
        {**record, "prompts": record["prompts"][1:] + record["prompts"][:1]} for record in records
    ]
    again = lt.tabulate(turned, run)["answers"]
    assert again["right"].isna().sum() == answers["right"].isna().sum()
    assert again["right"].dropna().sum() == answers["right"].dropna().sum()


def test_the_words_to_show_end_with_a_control():
    present = {"dog": True, "hot dog": True, "cat": False, "red": True, "tree": True, "sky": False}
    words = [{"category": name, "present": there} for name, there in present.items()]
    record = {"name": "china.jpg", "words": words}
    assert lt.choose_words(record, []) == ["dog", "hot dog", "red", "cat"]
    assert lt.choose_words(record, ["sky", "tree"]) == ["sky", "tree"]
    assert lt.choose_words({"name": "china.jpg", "words": []}, []) == []
    message = "'frisbee' not watched in china.jpg; watched categories: dog, hot dog, cat, red, tree"
    with pytest.raises(ValueError, match=message):
        lt.choose_words(record, ["dog", "frisbee"])


def test_report_counts_what_was_loaded(run, tables, mean):
    text = lt.report(run, tables, mean)
    first = tables["answers"].query("token == 0 and layer == 0")
    objects = first[first["kind"] == "object"]
    assert "3 images with 9 prompts" in text and "In which order" not in text
    assert "too few images for an interval" in text
    assert f"| object | 3 | {objects['right'].mean():.0%} of 3 (" in text
    assert f") | {objects['settling_layer'].median():g} (" in text
    wrong = objects[~objects["right"].astype(bool)]
    assert f"{len(wrong)} of 3 answers with a known truth" in text
    assert all(lt.as_code(image) in text for image in wrong["image"])
    changes = tables["layers"].query("segment == 'image'").groupby("layer")["jsd_prev"].mean()
    assert f"Image positions change most at layer {changes.idxmax()} (" in text
    assert f", by {changes.max():.2f} bits" in text


def settled(**kinds):
    """A table of first answer tokens: layers per kind, an image each."""
    return pd.DataFrame(
        [
            {
                "image": f"{number}.jpg",
                "kind": kind,
                "settling_layer": layer,
                "readable_layer": layer,
            }
            for kind, layers in kinds.items()
            for number, layer in enumerate(layers)
        ]
    )


def test_an_order_is_claimed_only_where_a_paired_test_allows_it():
    noise = np.arange(20) % 3
    colours_objects, colours_relations, objects_relations = lt.order_of_kinds(
        settled(colour=3 + noise, object=3 + noise[::-1], relation=6 + noise)
    )
    assert "no sure order" in colours_objects
    assert (
        "colours become readable before answers about the arrangement of objects: colours earlier "
        "on 20 and later on 0 of the 20 images" in colours_relations
    )
    assert "objects become readable before answers about the arrangement" in objects_relations


def test_an_order_is_found_in_either_direction_and_not_from_few_images():
    noise = np.arange(20) % 3

    def sentence(**kinds):
        return lt.order_of_kinds(settled(**kinds))[0]

    earlier = "objects become readable before answers about colours: objects earlier on 20"
    assert earlier in sentence(colour=6 + noise, object=3 + noise)
    assert "6 images have both, too few" in sentence(colour=[3] * 6, object=[6] * 6)
    assert "readable at the same layer" in sentence(colour=[3] * 9, object=[3] * 9)


def test_the_order_is_that_of_the_test_not_of_the_mean():
    """Most images one layer later, a few very much earlier: the mean and the rank test differ in
    direction."""
    sentence = lt.order_of_kinds(settled(colour=[3] * 25 + [31] * 3, object=[4] * 25 + [3] * 3))[0]
    assert (
        "colours become readable before answers about objects: colours earlier on 25 and later on "
        "3 of the 28" in sentence
    )


def test_settling_table():
    """By hand; the interval narrows with the number of images and does not exist below six."""
    rng = np.random.default_rng(0)

    def table(n):
        answers = settled(colour=rng.integers(2, 9, n)).assign(
            token=0,
            layer=0,
            whole_word=True,
            truth=None,
            right=[True, None] * (n // 2) + [False] * (n % 2),
        )
        return answers, lt.settling_table(answers).loc["colour"]

    answers, many = table(400)
    _, few = table(12)
    _, five = table(5)
    assert many["median"] == answers["settling_layer"].median() and many["images"] == 400
    assert many["graded"] == 200 and many["right"] == 1
    assert many["low"] <= many["median"] <= many["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert np.isnan(five["low"]) and five["graded"] == 3


def test_an_answer_that_never_settles_is_named(run, tables, mean):
    answers = tables["answers"].assign(settling_layer=len(run["layers"]))
    text = lt.report(run, {**tables, "answers": answers}, mean)
    assert "| never (too few images for an interval) |" in text


def test_the_peak_has_a_range(run):
    sure, unsure = np.zeros((30, 6)), np.random.default_rng(0).random((30, 6))
    sure[:, 4] = 1
    sure[:, 0] = np.nan  # as at the embedding, which has no layer before it
    assert lt._peak(run, pd.DataFrame(sure)) == "4 (4 to 4)"
    low, high = lt._peak(run, pd.DataFrame(unsure))[3:-1].split(" to ")
    assert low != high


def test_no_text_of_a_stranger_is_mark_up_in_the_report(run, tables, mean):
    nasty = "`<script>alert(1)</script>` $x$ *b* | a_b_"
    answers = tables["answers"].assign(
        answer=nasty, truth="dog", right=False, question=nasty, image=nasty
    )
    text = lt.report(run, {**tables, "answers": answers}, mean)
    assert "<script" not in text and "$" not in text and "*b*" not in text
    assert "&#60;script&#62;" in text
