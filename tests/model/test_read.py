"""What is read of an image, against plain HF in one uncached pass."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import jensenshannon

from llava_lens import checks, schema
from llava_lens.analysis import curves
from llava_lens.data.images import find_images
from llava_lens.data.prompts import as_prompts
from llava_lens.model import images, lens, load, run
from llava_lens.model import read as model_read
from llava_lens.model.run import encode_prompts, run_and_capture
from tests.conftest import NOTHING_KNOWN, PROMPTS
from tests.model.conftest import read_image
from tests.model.plain_hf import Hooked
from tests.model.test_images_runs import assert_close


def test_last_layer_check_passes_and_finds_a_second_norm(llava_folder, image, monkeypatch):
    bridge, processor = load.load_llava(llava_folder, "float32", "cpu")
    # In a random model the norm's gain is 1, and norming twice is norming once: give it a gain,
    # as training does.
    bridge.ln_final.weight.data.uniform_(0.5, 1.5)
    difference = model_read.check_last_layer(bridge, processor, image)
    assert difference <= lens.LAST_LAYER_TOLERANCE["float32"]

    def twice(bridge, resid):
        return lens.lens_logits(bridge, bridge.ln_final(resid[None])[0])

    monkeypatch.setattr(model_read, "lens_logits", twice)
    with pytest.raises(RuntimeError, match="last layer differs"):
        model_read.check_last_layer(bridge, processor, image)


TABLES = schema.PATCHES, schema.WORD, schema.CONTROL, schema.PROMPT
PER_LAYER = {name for of in TABLES for name, field in of.items() if "layer" in field.shape[:1]}


def at_layers(value, layers, name=""):
    """What a record has where only these layers are read."""
    if isinstance(value, dict):
        return {key: at_layers(one, layers, key) for key, one in value.items()}
    if isinstance(value, list):
        return [at_layers(one, layers) for one in value]
    if name.startswith("embedding_"):
        return value[::2]  # of layers 0, 2 and 4 those that are every second of `layers`
    return value[layers] if name in PER_LAYER else value


def test_every_second_layer_is_one_place(llava, photographs, monkeypatch):
    """Where `layers_read` leaves some out, all that is read of the others is as before."""
    paths, layers = find_images(photographs), [0, 2, 4, 5]
    dog = {"category": "dog", "box": [200, 90, 300, 200], "crowd": False, "color": "red"}
    annotations = NOTHING_KNOWN._replace(
        objects={"china.jpg": [dog | {"image_size": (640, 427)}]}, absent={"china.jpg": ["cat"]}
    )
    asked = as_prompts(["What is this?"])
    settings = load.Settings("", prompts=asked, top_k=3, max_new_tokens=2)

    def read_china():
        described = images.describe_run(*llava, settings)
        reader = images.Reader(llava, paths, annotations, described, settings)
        return described, *reader.read("china.jpg")

    _, everything, mean = read_china()
    for module in (lens, model_read, run, images):
        monkeypatch.setattr(module, "layers_read", lambda n_layers: layers)
    described, record, its_mean = read_china()
    assert described["layers"] == ["emb", "2", "4", "5"]
    checks.check_run(described)
    checks.check_record(record, described, "china.jpg")  # all its numbers are finite
    np.testing.assert_allclose(its_mean, mean[:, layers], rtol=1e-4, atol=1e-7)
    expected = at_layers(everything, layers)
    for readings, its in (
        (expected["patches"], record["patches"]),
        (expected["prompts"][0]["readings"], record["prompts"][0]["readings"]),
    ):
        its, before = its.pop("jsd_prev"), readings.pop("jsd_prev")
        np.testing.assert_allclose(its[-1], before[-1], rtol=1e-3, atol=1e-5)  # to layer 4
    assert record["words"] and record["prompts"][0]["route"]
    assert_close(record, expected)


def test_readings_equal_those_of_one_uncached_pass(pair, llava):
    record, prompt, input_ids, probs = pair
    at_image = (input_ids == llava[1].image_token_id).nonzero()[:, 0].numpy()
    n_text, n_prompt = len(prompt["token_ids"]), prompt["n_prompt"]
    assert input_ids[at_image[-1] + 1 :].tolist() == prompt["token_ids"].tolist()
    ends = prompt["token_ids"][[0, n_prompt - 1]].tolist()
    assert llava[1].tokenizer.convert_ids_to_tokens(ends) == ["<0x0A>", ":"]
    text_targets = probs[-1].argmax(-1)[-n_text:].numpy()
    text_targets[n_prompt - 1 :] = prompt["answer_ids"]
    of_patches = probs[:, at_image].numpy()
    check_readings(record["patches"], of_patches, of_patches[-1].argmax(-1))
    check_readings(prompt["readings"], probs[:, -n_text:].numpy(), text_targets)


def check_readings(readings, probs, targets):
    """`readings` against the full distributions `[layer, pos, d_vocab]` in float64."""
    top = np.sort(probs, axis=-1)[..., ::-1][..., :10]
    assert np.abs(readings["top_probs"] - top).max() < 1e-4
    # Tokens of nearly equal probability may change places: the ids named must have the
    # probabilities named.
    named = np.take_along_axis(probs, readings["top_ids"].astype(int), axis=-1)
    assert np.abs(named - top).max() < 1e-4
    assert np.abs(readings["entropy"] - -(probs * np.log2(probs)).sum(-1)).max() < 2e-3
    to_final = jensenshannon(probs, np.broadcast_to(probs[-1], probs.shape), base=2, axis=-1) ** 2
    to_previous = jensenshannon(probs[1:], probs[:-1], base=2, axis=-1) ** 2
    assert np.abs(readings["jsd_final"] - to_final).max() < 2e-4
    assert np.isnan(readings["jsd_prev"][0]).all()
    assert np.abs(readings["jsd_prev"][1:] - to_previous).max() < 2e-4
    target = probs[:, np.arange(len(targets)), targets]
    assert np.abs(readings["target_prob"] - target).max() < 1e-4
    # The rank is exact but for tokens nearer to the target than float32 tells apart.
    lowest = (probs > target[..., None] * 1.001 + 1e-9).sum(-1) + 1
    highest = (probs > target[..., None] * 0.999 - 1e-9).sum(-1) + 1
    assert (lowest <= readings["target_rank"]).all() and (readings["target_rank"] <= highest).all()


def test_mean_probability_and_top_tokens_against_brute_force(read, run, hf, image):
    record, mean = next((record, mean) for record, mean in read if record["name"] == "china.jpg")
    per_segment = {"image": [], "prompt": [], "answer": []}
    for prompt in record["prompts"]:
        n_prompt, ids = prompt["n_prompt"], prompt["token_ids"]
        plain = Hooked(hf, image, prompt["question"], ids[n_prompt:])
        probs, at_image = plain.lens()[1].numpy(), plain.groups["image"]
        per_segment["image"] = [probs[:, at_image]]
        per_segment["prompt"].append(probs[:, -len(ids) :][:, :n_prompt])
        per_segment["answer"].append(probs[:, -len(ids) :][:, n_prompt:])
    for segment, name in enumerate(schema.SEGMENTS):
        expected = np.concatenate(per_segment[name], axis=1).mean(axis=1)
        assert np.abs(mean[segment] - expected).max() < 2e-5
        table = curves.top_tokens(mean[segment], run)
        scores = expected.mean(axis=0)
        assert len(table) == 30 and np.abs(table["mean"] - np.sort(scores)[::-1][:30]).max() < 2e-5
        assert np.abs(scores[table["id"]] - table["mean"]).max() < 2e-5
        assert list(table["token"]) == [run["tokens"][i] for i in table["id"]]


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        (PROMPTS[:1], {"top_k": 100_000}, "top_k is 100000"),
        ([], {}, "There are no prompts"),
        (as_prompts(["dog " * 5000]), {}, r"A prompt has, .* \d+ tokens, .* model's context \d+"),
    ],
)
def test_what_cannot_be_read_is_refused(llava, image, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        read_image(llava, image, prompts, **settings)


def test_the_words_are_read_from_the_full_distribution(llava, image):
    """Against the softmax of the lens, and against the cosines, at every patch and layer; what the
    embedding lens adds is all that `embedding_lens = False` leaves out."""
    bridge, processor = llava
    there, absent = {"present": True, "absent_sampling": ""}, {"present": False}
    words = [{"category": "x", "token_ids": [7, 300], **there}]
    words += [{"category": "y", "token_ids": [11], "absent_sampling": "random", **absent}]
    record, *_ = read_image(llava, image, PROMPTS[:1], words, top_k=1, max_new_tokens=1)
    pixel_values, (ids,) = encode_prompts(processor, image, [PROMPTS[0]["question"]])
    given = dict(pixel_values=pixel_values, use_cache=False)
    with torch.inference_mode():
        residuals, _ = run_and_capture(bridge, ids, None, **given)
        for layer, resid in enumerate(residuals):
            patches = resid[ids == bridge.original_model.config.image_token_id]
            p = lens.lens_logits(bridge, patches).double().softmax(-1)
            for word, kept in zip(words, record["words"], strict=True):
                expected = p[:, word["token_ids"]].sum(-1).log2()
                np.testing.assert_allclose(kept["log2_probs"][layer], expected, atol=0.02)
                rows = bridge.original_model.get_input_embeddings().weight[word["token_ids"]]
                cosines = torch.cosine_similarity(patches[:, None], rows[None], dim=-1).amax(-1)
                np.testing.assert_allclose(kept["cosines"][layer], cosines, atol=5e-4)
            norms = record["patches"]["norms"][layer]
            np.testing.assert_allclose(norms, patches.norm(dim=-1), rtol=1e-3)
    assert [word["category"] for word in record["words"]] == ["x", "y"]
    assert record["patches"].keys() == schema.PATCHES.keys()
    without = {"top_k": 1, "max_new_tokens": 1, "embedding_lens": False}
    other, *_ = read_image(llava, image, PROMPTS[:1], words, **without)
    left_out = record["patches"].keys() - other["patches"].keys()
    assert left_out == {"embedding_ids", "embedding_cosines"}
    assert not any("cosines" in word for word in other["words"])


def test_the_grey_control_is_a_run_on_a_grey_image(llava, records):
    """Each prompt read from the one prefix equals a whole run on a grey image, whatever was asked
    before it."""
    bridge, processor = llava
    grey = Image.new("RGB", (90, 70), (128, 128, 128))
    for record in records[:2]:
        for prompt in record["prompts"]:
            pixel_values, (ids,) = encode_prompts(processor, grey, [prompt["question"]])
            # The word may begin at a later token of the answer.
            at = prompt["word_at"]
            ids = torch.cat([ids, torch.tensor(prompt["answer_ids"][:at])])
            given = dict(pixel_values=pixel_values, use_cache=False)
            with torch.inference_mode():
                residuals, _ = run_and_capture(bridge, ids, None, **given)
                logits = [lens.lens_logits(bridge, resid[-1:])[0] for resid in residuals]
            p = torch.stack(logits).softmax(-1)
            target = p[:, prompt["answer_ids"][at]]
            np.testing.assert_allclose(prompt["grey"]["target_prob"], target, atol=1e-5)
            rank = ((p > target[:, None]).sum(-1) + 1).numpy()
            assert np.abs(prompt["grey"]["target_rank"].astype(int) - rank).max() <= 1
