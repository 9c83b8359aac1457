"""Each kind of checkpoint from end to end, against plain HF."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import lens_utils
from llava_lens import kinds, words
from llava_lens.data.images import open_image
from llava_lens.figures import explorer, one_image
from llava_lens.model import lens, load, run
from llava_lens.model.read import check_last_layer
from llava_lens.store import Results
from tests.model.families import CHATS, VICUNA, make_family
from tests.model.plain_hf import Hooked, hf_answer, hf_inputs, load_hf
from tests.model.test_causal import check_cuts, check_routes

OWN = {"question": "What is the main object?", "kind": "object", "truth": "temple"}
QUESTIONS = [OWN, {"question": "Is there a dog in the image? é"}]
CHAT_OF = {"llava-llama-3-8b": "<|begin_of_text|>" + CHATS["llava-llama-3-8b"]}


@pytest.fixture(scope="module", params=CHATS)
def family(request, tmp_path_factory, photographs):
    """The checkpoint, read by this project and by plain HF."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    make_family(folder, name)
    settings = {"dtype": "float32", "device": "cpu", "max_new_tokens": 4, "prompts": QUESTIONS}
    results = folder / "results"
    lens_utils.analyse(lens_utils.load_images(photographs), results, model=folder, **settings)
    llava = load.load_llava(folder, "float32", "cpu")
    hf = load_hf(folder, torch.float32, CHATS[name])
    if name == "llava-llama-3-8b":  # no file says it
        hf[1].patch_size = 14
    images = [open_image(photographs / image) for image in ("china.jpg", "flower.jpg")]
    return SimpleNamespace(
        name=name, chat=CHATS[name], llava=llava, hf=hf, results=Results(results), images=images
    )


def test_ids_are_the_processors_own(family):
    assert VICUNA == kinds.CHAT  # what LLaVA-1.5 is asked with where no template says it
    run_, chat = family.results.run, CHAT_OF.get(family.name, family.chat)
    assert run_["chat"] == chat and run_["grid"] == [4, 4] and run_["image_size"] == 56
    assert run_["n_image_tokens"] == 16 + (family.name == "clip-full")
    questions = [prompt["question"] for prompt in QUESTIONS]
    pixels, sequences = run.encode_prompts(family.llava[1], family.images[0], questions)
    record = family.results.record("china.jpg")
    for question, ids, prompt in zip(questions, sequences, record["prompts"], strict=True):
        expected = hf_inputs(family.hf, family.images[0], question)
        assert ids.tolist() == expected["input_ids"][0].tolist()
        assert torch.equal(pixels, expected["pixel_values"])
        after = ids[-prompt["n_prompt"] :]
        assert prompt["token_ids"][: prompt["n_prompt"]].tolist() == after.tolist()


def test_the_lens_is_the_models_own(family):
    """The last layer against the model's output; patches and text at all layers."""
    assert check_last_layer(*family.llava, family.images[0]) <= lens.LAST_LAYER_TOLERANCE["float32"]
    record = family.results.record("china.jpg")
    prompt = record["prompts"][0]
    answer = prompt["token_ids"][prompt["n_prompt"] :]
    plain = Hooked(family.hf, family.images[0], prompt["question"], answer)
    _, probs, logits = plain.lens()
    assert (probs[-1] - logits.double().softmax(-1)).abs().max() < 1e-5
    of_patches, of_text = probs[:, plain.groups["image"][-16:]], probs[:, plain.end :]
    for readings, of in (record["patches"], of_patches), (prompt["readings"], of_text):
        assert readings["top_probs"].shape == (5, of.shape[1], 10)
        np.testing.assert_allclose(readings["top_probs"], of.topk(10).values, atol=1e-4)
        np.testing.assert_allclose(readings["entropy"], -(of * of.log2()).sum(-1), atol=2e-3)


def test_answers_are_those_of_generate(family):
    record = family.results.record("flower.jpg")
    for prompt in record["prompts"]:
        said = hf_answer(family.hf, family.images[1], prompt["question"], max_new_tokens=4)
        assert prompt["answer_ids"].tolist() == said


def test_route_and_knockout_are_those_of_plain_hf(family):
    """A class token's states and keys are patched and cut with the patches'."""
    both = family.llava, family.hf, "float32", family.images
    check_routes(*both)
    check_cuts(*both, family.results.run["n_image_tokens"])


def test_the_second_notebook_shows_it(family, tmp_path):
    """Tables, a page and a figure; each leading space is shown as `▁`."""
    run_, tables = family.results.run, lens_utils.tabulate(family.results)
    assert len(tables.answers) and set(tables.answers["kind"]) == {"object", "own"}
    assert "▁dog" in run_["tokens"]
    assert not any("Ġ" in token for token in run_["tokens"])
    tokenizer = family.llava[1].tokenizer
    dog, yes = (tokenizer.encode(text, add_special_tokens=False) for text in (" dog", "Yes"))
    assert dog[-1] in words.word_ids(words.ids_by_label(tokenizer), "dog")
    spellings = [run_["tokens"][i] for i in words.first_word(run_["tokens"], yes)[1]]
    assert {"▁Yes", "▁yes"} <= {*spellings}  # however it is said, with a space or without
    record = family.results.record("china.jpg")
    page = explorer.save_explorer(tmp_path / "page.html", run_, record)
    assert page.stat().st_size > 10_000
    plt.close(one_image.plot_patches(run_, record, [0, 4]))
