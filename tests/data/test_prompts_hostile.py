"""llava_lens.data.prompts: questions that come as numpy's texts, or with tokens of the model's."""

import json

import numpy as np
import pytest

from llava_lens import checks, pickles
from llava_lens.data import annotations, prompts
from tests.hostile import RUN


@pytest.mark.parametrize(
    "asked",
    [
        list(np.array(["What is it?", "Where?"])),
        np.array(["What is it?", "Where?"]),
        [{"question": np.str_("What is it?"), "kind": np.str_("object"), "truth": np.str_("a")}],
        [{np.str_("question"): "What is it?"}],
    ],
)
def test_texts_of_numpy_are_made_plain(tmp_path, asked):
    plain = prompts.as_prompts(asked)
    for prompt in plain:
        assert {type(value) for value in prompt.values()} <= {str, type(None), list}
        assert {type(key) for key in prompt} == {str}
    pickles.save(tmp_path / "run.pkl", RUN | {"own_prompts": plain}, checks.check_run)


@pytest.mark.parametrize("token", ["</s>", "<s>", "<unk>", "<pad>", "<image>"])
def test_special_tokens_in_a_question_or_category_are_refused(token, photographs, tmp_path):
    with pytest.raises(ValueError, match="Prompt 0 .*has its own"):
        prompts.as_prompts([f"What is {token}?"])
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = f"a {token}"
    (tmp_path / "instances.json").write_text(json.dumps(data))
    read = annotations.annotate(tmp_path, {"china.jpg": tmp_path / "china.jpg"})
    assert read.categories == ["temple", "tree"] and "can't be asked about" in read.problems[0]
