"""Records to the tables of answers and of layers, and the summary as a file."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_lens import kinds as kinds_py
from llava_lens.analysis import answers as answers_py
from llava_lens.analysis import curves, grading, per_kind, report, stats
from tests.analysis.made import answers_of, layers_of
from tests.hostile import make_results


def test_a_prompt_is_that_which_was_chosen_or_refused_with_what_is_there(records):
    assert answers_py.choose_prompt(records[0], 1)["question"] == kinds_py.question_of("object")
    for number in (3, -1, "What"):
        message = f"prompt is {number!r}: china.jpg has the prompts 0 to 2"
        with pytest.raises(ValueError, match=message):
            answers_py.choose_prompt(records[0], number)


def test_layers_are_chosen_by_their_numbers_which_are_no_positions():
    run = {"layers": ["emb", "4", "8", "12", "16", "20"]}
    assert answers_py.layer_positions(run, [8, 0]) == [2, 0]
    assert answers_py.layer_positions(run, []) == [0, 1, 2, 4, 5]
    message = r"layers_shown is \[0, 2\]: the layers are 0 \(emb\), 4, 8, 12, 16, 20\."
    with pytest.raises(ValueError, match=message):
        answers_py.layer_positions(run, [0, 2])


def test_tables_have_the_numbers_of_the_layers_that_were_read(records, run, tables):
    """Of the same records with every second layer taken out."""
    kept = [1, 3, 5]

    def thinned(value):
        if isinstance(value, dict):
            return {key: thinned(inner) for key, inner in value.items()}
        return value[kept] if isinstance(value, np.ndarray) and value.shape[:1] == (6,) else value

    names = {"readings", "word_prob", "word_rank", "grey", "other"}
    thin = [
        record | {"patches": thinned(record["patches"]), "prompts": [
            prompt | thinned({name: prompt[name] for name in names}) for prompt in record["prompts"]
        ]}
        for record in records
    ]  # fmt: skip
    of_few = run | {"layers": ["1", "3", "5"]}
    few_answers, few_layers = answers_of(thin, of_few), layers_of(thin, of_few)
    for table, whole in ((few_answers, tables.answers), (few_layers, tables.layers)):
        assert table["layer"].tolist() == whole[whole["layer"].isin(kept)]["layer"].tolist()
    ranks = [prompt["word_rank"] for record in thin for prompt in record["prompts"]]
    settled = [[*kept, 6][stats.stays_from(rank == 1)] for rank in ranks]
    assert curves.first_tokens(few_answers)["settling_layer"].tolist() == settled


def test_layer_table_against_a_loop(tables, records):
    layers = tables.layers
    rows = layers.set_index(["image", "prompt", "segment"]).sort_values("layer")
    for record in records:
        for number, prompt in enumerate(record["prompts"]):
            n_prompt = prompt["n_prompt"]
            for segment, at in (("prompt", slice(n_prompt)), ("answer", slice(n_prompt, None))):
                for series in curves.SERIES_IN_BITS:
                    expected = [np.mean(row[at]) for row in prompt["readings"][series]]
                    found = rows.loc[[(record["name"], number, segment)], series]
                    np.testing.assert_allclose(found, expected, rtol=1e-5)
    images = layers[layers["segment"] == "image"]
    assert len(images) == 3 * 6 and set(images["kind"]) == {"image"}


def test_answer_table(tables, records, run):
    answers = tables.answers
    n_tokens = [len(prompt["answer_ids"]) for record in records for prompt in record["prompts"]]
    assert len(answers) == 6 * sum(n_tokens)
    last = answers[answers["layer"] == 5]
    # What the lens reads last is what the model said.
    assert (last["token_rank"] == 1).all() and (last["top1"] == last["token_label"]).all()
    assert (answers["settling_layer"] <= 5).all()
    graded = answers[answers["truth"].notna()]
    assert set(graded["kind"]) == {"object"}
    by_hand = [grading.is_right("object", answer, "temple") for answer in graded["answer"]]
    assert graded["right"].tolist() == by_hand
    assert answers[answers["truth"].isna()]["right"].isna().all()


def test_the_words_to_show_end_with_a_control():
    present = {"dog": True, "hot dog": True, "cat": False, "red": True, "tree": True, "sky": False}
    words = [{"category": name, "present": there} for name, there in present.items()]
    record = {"name": "china.jpg", "words": words}
    assert answers_py.choose_words(record, []) == ["dog", "hot dog", "red", "tree", "cat", "sky"]
    assert answers_py.choose_words(record, ["sky", "tree"]) == ["sky", "tree"]
    assert answers_py.choose_words({"name": "china.jpg", "words": []}, []) == []
    message = "'frisbee' not watched in china.jpg; watched categories: dog, hot dog, cat, red, tree"
    with pytest.raises(ValueError, match=message):
        answers_py.choose_words(record, ["dog", "frisbee"])


def test_patches_that_say_no_word(records, run, tables):
    """By hand, on the image's positions."""
    rows = tables.layers.query("image == @records[0]['name'] and segment == 'image'")
    for no_word, top_ids in zip(rows["no_word"], records[0]["patches"]["top_ids"], strict=True):
        labels = [run["tokens"][i] for i in top_ids[:, 0]]
        by_hand = np.mean([not label.replace("▁", "").isalpha() for label in labels])
        assert no_word == pytest.approx(by_hand)


RUN = {"layers": ["emb", *map(str, range(1, 33))], "tokens": ["▁a", "▁Red", "▁red"]}
RUN["categories"] = []


def planted(kind: str, word_from: int, capital_from: int, whole: bool = True) -> dict:
    """A record of one prompt: the answer's word is top from one layer on, its capitalised token
    from a later one, as in LLaVA-1.5 (Zhang et al., arXiv 2411.18620)."""
    layers = np.arange(33)
    word, token = layers >= word_from, layers >= capital_from
    ranks = {"word_rank": np.where(word, 1, 2), "target_rank": np.where(token, 1, 60)}
    probs = {"word_prob": 0.9 * word, "target_prob": 0.8 * token}
    readings = {name: np.zeros((33, 1)) for name in curves.SERIES_IN_BITS}
    readings |= {"top_ids": np.zeros((33, 1, 1), int), "top_probs": np.full((33, 1, 1), 0.05)}
    readings |= {name: (ranks | probs)[name][:, None] for name in ("target_prob", "target_rank")}
    prompt = {
        "kind": kind, "question": "?", "truth": None, "answer": "Red", "categories": [],
        "token_ids": [0], "n_prompt": 1, "answer_ids": [1], "readings": readings,
        "word_ids": [1, 2] if whole else [], "word_prob": probs["word_prob"],
        "word_rank": ranks["word_rank"], "word_at": 0, "grey": probs | ranks,
        "other": {"word_prob": probs["word_prob"] / 9, "word_rank": 10 * ranks["word_rank"]},
    }  # fmt: skip
    return {"name": f"{kind}.jpg", "patches": readings, "prompts": [prompt]}


def test_a_word_is_found_where_it_was_planted_not_where_its_capital_wins():
    where = {"colour": 10, "object": 14, "relation": 20}
    records = [planted(kind, layer, 25) for kind, layer in where.items()]
    answers = answers_of(records, RUN)
    for column in ("settling_layer", "readable_layer"):
        assert dict(curves.first_tokens(answers)[["kind", column]].to_numpy().tolist()) == where
        assert per_kind.settling_table(answers, column)["value"].to_dict() == where
    # The exact token stays, and says 25 for all three.
    top = answers[answers["token_rank"] == 1].groupby("kind")["layer"].min()
    assert top.to_dict() == dict.fromkeys(where, 25)
    colour = answers[(answers["kind"] == "colour") & (answers["layer"] == 12)].iloc[0]
    assert (colour["probability"], colour["token_probability"]) == (0.9, 0.0)


def test_answers_that_begin_with_a_piece_are_left_out_and_counted():
    records = [planted("colour", 10, 10), planted("object", 3, 3, whole=False)]
    answers = answers_of(records, RUN)
    median = per_kind.settling_table(answers)["value"]
    assert median["colour"] == 10 and np.isnan(median["object"])
    assert per_kind.grades_table(answers)["answers"].tolist() == [1, 1]
    run = RUN | {"dtype": "float32", "quantize": "4bit", "last_layer_jsd": 0.0, "route_layers": []}
    procedure = report._procedure(run, answers)
    assert "float32&#44; 4 bit" in procedure
    assert "Left out of what the lens reads: 1 of 2" in procedure
    by_column = curves.answer_curves(answers)
    assert all(set(curve["kind"]) == {"colour"} for curve in by_column.values())
    most = [by_column[f"other_{column}"]["mean"].max() for column in ("probability", "rank")]
    assert most == pytest.approx([0.1, np.log10(20)])
    assert list(per_kind.controls_table(answers).index) == ["colour"]


TEXTS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=x", "'", "", "None", "NA", "nan", "1", 'a,"b"\n']


def test_texts_in_the_summary_are_no_formulas_and_come_back(tmp_path):
    run, record, _ = make_results()
    prompts = [record["prompts"][0] | {"answer": text, "question": text or "?"} for text in TEXTS]
    answers = answers_of([record | {"prompts": prompts}], run)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/summary.csv").symlink_to(tmp_path / "precious")
    answers_py.save_summary(tmp_path / "deep/summary.csv", answers)
    assert not (tmp_path / "precious").exists()
    cells = pd.read_csv(tmp_path / "deep/summary.csv", dtype=str, keep_default_na=False)
    texts = cells[["answer", "question", "token_label"]]
    assert not [text for text in texts.to_numpy().ravel() if text and text[0] in "=+-@\t"]
    back = answers_py.load_summary(tmp_path / "deep/summary.csv")
    answers["categories"] = answers["categories"].map(str)
    tables = [table.astype(object).where(table.notna(), np.nan) for table in (back, answers)]
    pd.testing.assert_frame_equal(*tables)
    assert back["answer"].unique().tolist() == TEXTS


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", ":", "\n"])
def test_with_no_separator_a_cell_of_the_summary_is_a_formula(tmp_path, separator):
    run, record, _ = make_results()
    texts = [f"x{separator}{sign}1+1{separator}y" for sign in "=+-@"]
    said = [{"question": text, "answer": text, "categories": [text]} for text in texts]
    prompts = [record["prompts"][0] | each for each in said]
    answers_py.save_summary(tmp_path / "a.csv", answers_of([record | {"prompts": prompts}], run))
    for line in (tmp_path / "a.csv").read_text().splitlines():
        for cell in line.split(separator):
            bare = cell.strip('"')
            assert bare[:1] not in ("=", "+", "@") and not re.match(r"-(?!\d)", bare), cell
            assert bare != "-1+1"
    assert list(answers_py.load_summary(tmp_path / "a.csv")["question"].unique()) == texts


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="a1'=+-@ _;\"", max_size=8))
def test_any_text_comes_back_from_the_summary(tmp_path_factory, text):
    run, record, _ = make_results()
    path = tmp_path_factory.mktemp("summary") / "a.csv"
    prompts = [record["prompts"][0] | {"answer": text, "truth": text}]
    answers_py.save_summary(path, answers_of([record | {"prompts": prompts}], run))
    assert answers_py.load_summary(path)[["answer", "truth"]].to_numpy()[0].tolist() == [text] * 2


@pytest.mark.parametrize("height, readable", [(0.09, 33), (0.1, 10)])
def test_what_is_never_likely_is_never_readable(height, readable):
    record = planted("colour", 10, 25)
    (prompt,) = record["prompts"]
    prompt["word_prob"] = prompt["word_prob"] * height / 0.9
    prompt["readings"]["top_probs"] = np.full((33, 1, 1), 0.01)
    assert curves.first_tokens(answers_of([record], RUN))["readable_layer"].item() == readable


def test_a_word_that_is_read_at_a_later_token_is_not_lost():
    """A number that begins with a bare space: `▁`, then the digit, at which its word is read."""
    record = planted("colour", 10, 25)
    (prompt,) = record["prompts"]
    two = {name: np.repeat(values, 2, axis=1) for name, values in prompt["readings"].items()}
    two["target_rank"][:, 0] = 1
    record["prompts"] = [{**prompt, "readings": two, "answer_ids": [0, 1], "word_at": 1}]
    answers = answers_of([record], RUN)
    first = curves.first_tokens(answers)
    assert first[["token", "settling_layer"]].to_numpy().tolist() == [[1, 10]]
    assert curves.whole_words(answers)["probability"].tolist() == prompt["word_prob"].tolist()
    of_space = answers[answers["token"] == 0]
    assert of_space["probability"].equals(of_space["token_probability"])
    assert of_space["grey_probability"].isna().all() and of_space["handed_over"].isna().all()
