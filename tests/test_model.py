"""lens_model against plain HF, written independently of it: forward hooks on HF's decoder layers,
one uncached pass."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import AutoProcessor, DynamicCache, LlavaForConditionalGeneration

from llava_lens import schema, store
from llava_lens import words as words_py
from llava_lens.analysis import curves
from llava_lens.data import images
from llava_lens.data import prompts as data_prompts
from llava_lens.model import images as model_images
from llava_lens.model import lens as model_lens
from llava_lens.model import load
from llava_lens.model import read as model_read
from llava_lens.model import run as model_run
from tests.conftest import PROMPTS, ROOT


@pytest.fixture(scope="module")
def hf(llava_folder):
    """The same weights in plain HF, float64."""
    return load_hf(llava_folder, torch.float64), AutoProcessor.from_pretrained(
        llava_folder, backend="pil"
    )


def load_hf(folder, dtype):
    return LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def image(photographs):
    return images.open_image(photographs / "china.jpg")


def read_image(llava, image, prompts, words=(), **settings):
    return model_read.read_image(*llava, image, prompts, load.Settings("", **settings), words)


def hf_inputs(hf, image, question, answer_ids=()):
    """What HF's own processor makes of image and prompt, with the answer appended."""
    inputs = hf[1](text=f"USER: <image>\n{question} ASSISTANT:", images=image, return_tensors="pt")
    input_ids = torch.cat(
        [inputs["input_ids"], torch.tensor([list(answer_ids)], dtype=torch.long)], dim=1
    )
    return {"input_ids": input_ids, "pixel_values": inputs["pixel_values"].to(hf[0].dtype)}


@torch.inference_mode()
def hf_lens(model, inputs):
    """Residual streams `[layer, pos, d_model]`, distributions `[layer, pos, d_vocab]` and logits
    `[pos, d_vocab]`."""
    language, residuals = model.model.language_model, []
    handles = [
        language.layers[0].register_forward_pre_hook(lambda module, args: residuals.append(args[0]))
    ]
    for layer in language.layers:
        handles.append(
            layer.register_forward_hook(
                lambda module, args, out: residuals.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
        )
    logits = model(**inputs).logits[0]
    for handle in handles:
        handle.remove()
    residuals = torch.stack(residuals)[:, 0]
    return (
        residuals,
        torch.softmax(model.lm_head(language.norm(residuals)).double(), dim=-1),
        logits,
    )


@pytest.fixture(scope="module", params=range(len(PROMPTS)))
def pair(request, hf, image, records):
    """One prompt's record, whose prefix came from the cache, and HF's distributions of one uncached
    pass over all of it."""
    record = next(record for record in records if record["name"] == "china.jpg")
    prompt = record["prompts"][request.param]
    fed_back = prompt["token_ids"][prompt["n_prompt"] :]
    inputs = hf_inputs(hf, image, prompt["question"], fed_back)
    return record, prompt, inputs["input_ids"][0], hf_lens(hf[0], inputs)[1]


@pytest.mark.parametrize(
    "dtype, hf_dtype, tolerance",
    [
        ("float32", torch.float64, 1e-4),
        ("float16", torch.float64, 5e-2),
        ("float16", torch.float16, 1e-3),
    ],
)
def test_residual_streams_distributions_and_logits(
    llava_folder, hf, image, dtype, hf_dtype, tolerance
):
    """Largest differences, in standard deviations of the residual stream and the logits, and as
    probabilities."""
    bridge, processor = load.load_llava(llava_folder, dtype, "cpu")
    assert bridge.W_U.dtype == getattr(torch, dtype)
    question = PROMPTS[0]["question"]
    pixel_values, (input_ids,) = model_run.encode_prompts(processor, image, [question])
    with torch.inference_mode():
        residuals, logits = model_run.run_and_capture(
            bridge, input_ids, DynamicCache(), pixel_values=pixel_values.to(bridge.cfg.dtype)
        )
    reference = (hf[0] if hf_dtype == torch.float64 else load_hf(llava_folder, hf_dtype), hf[1])
    expected_residuals, expected_probs, expected_logits = hf_lens(
        reference[0], hf_inputs(reference, image, question)
    )
    scale = expected_residuals.double().std()
    assert len(residuals) == len(expected_residuals) == 6
    for resid, expected, probs in zip(residuals, expected_residuals, expected_probs, strict=True):
        assert (resid.double() - expected).abs().max() < tolerance * scale
        lens = model_lens.lens_logits(bridge, resid).softmax(-1)
        assert lens.dtype == torch.float32
        assert (lens - probs).abs().max() < tolerance
        assert torch.allclose(lens.sum(-1), torch.ones(len(lens)), atol=1e-5)
    assert logits.shape == (1, bridge.cfg.d_vocab)
    assert (
        logits[0].double() - expected_logits[-1]
    ).abs().max() < tolerance * expected_logits.double().std()


def test_prompts_are_tokenised_as_by_the_processor(llava, hf, image):
    questions = [prompt["question"] for prompt in PROMPTS]
    pixel_values, sequences = model_run.encode_prompts(llava[1], image, questions)
    for question, sequence in zip(questions, sequences, strict=True):
        expected = hf_inputs(hf, image, question)
        assert sequence.tolist() == expected["input_ids"][0].tolist()
        assert sequence[0] == llava[1].tokenizer.bos_token_id
        assert torch.equal(pixel_values.double(), expected["pixel_values"])


def test_record_is_about_the_right_positions(pair, llava):
    record, prompt, input_ids, probs = pair
    n_text = len(prompt["token_ids"])
    assert input_ids[-n_text:].tolist() == prompt["token_ids"].tolist()
    at_image = (input_ids == llava[1].image_token_id).nonzero()[:, 0]
    assert record["patches"]["entropy"].shape == (6, len(at_image)) == (6, 16)
    assert at_image[-1] + 1 == len(input_ids) - n_text
    assert llava[1].tokenizer.convert_ids_to_tokens(
        [prompt["token_ids"][0], prompt["token_ids"][prompt["n_prompt"] - 1]]
    ) == ["<0x0A>", ":"]


def test_readings_equal_those_of_one_uncached_pass(pair, llava):
    record, prompt, input_ids, probs = pair
    at_image = (input_ids == llava[1].image_token_id).nonzero()[:, 0].numpy()
    n_text, n_prompt = len(prompt["token_ids"]), prompt["n_prompt"]
    text_targets = probs[-1].argmax(-1)[-n_text:].numpy()
    text_targets[n_prompt - 1 :] = prompt["answer_ids"]
    check_readings(
        record["patches"], probs[:, at_image].numpy(), probs[-1, at_image].argmax(-1).numpy()
    )
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


def test_greedy_answer_equals_generate(pair, hf, image):
    _, prompt, _, _ = pair
    inputs = hf_inputs(hf, image, prompt["question"])
    generated = hf[0].generate(**inputs, do_sample=False, max_new_tokens=6)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert prompt["answer_ids"].tolist() == generated.tolist()


def test_answer_ends_with_the_end_token(llava, image, monkeypatch):
    """The end token stops the answer, is kept among the ids, and is not fed back."""
    (free,) = read_image(llava, image, PROMPTS[:1], max_new_tokens=6)[0]["prompts"]
    monkeypatch.setattr(
        llava[0].original_model.generation_config, "eos_token_id", [int(free["answer_ids"][2])]
    )
    (stopped,) = read_image(llava, image, PROMPTS[:1], max_new_tokens=6)[0]["prompts"]
    end = free["answer_ids"].tolist().index(free["answer_ids"][2]) + 1
    assert stopped["answer_ids"].tolist() == free["answer_ids"].tolist()[:end]
    assert len(stopped["token_ids"]) == stopped["n_prompt"] + end - 1


def test_mean_probability_and_top_tokens_against_brute_force(read, run, hf, image, llava):
    record, mean = next((record, mean) for record, mean in read if record["name"] == "china.jpg")
    per_segment = {"image": [], "prompt": [], "answer": []}
    for prompt in record["prompts"]:
        inputs = hf_inputs(hf, image, prompt["question"], prompt["token_ids"][prompt["n_prompt"] :])
        probs, n_text = hf_lens(hf[0], inputs)[1].numpy(), len(prompt["token_ids"])
        per_segment["image"] = [
            probs[:, (inputs["input_ids"][0] == llava[1].image_token_id).numpy()]
        ]
        per_segment["prompt"].append(probs[:, -n_text:][:, : prompt["n_prompt"]])
        per_segment["answer"].append(probs[:, -n_text:][:, prompt["n_prompt"] :])
    for segment, name in enumerate(schema.SEGMENTS):
        expected = np.concatenate(per_segment[name], axis=1).mean(axis=1)
        assert np.abs(mean[segment] - expected).max() < 2e-5
        table = curves.top_tokens(mean[segment], run)
        scores = expected.mean(axis=0)
        assert len(table) == 30 and np.abs(table["mean"] - np.sort(scores)[::-1][:30]).max() < 2e-5
        assert np.abs(scores[table["id"]] - table["mean"]).max() < 2e-5
        assert list(table["token"]) == [run["tokens"][i] for i in table["id"]]


def test_slices_change_nothing(llava, monkeypatch):
    bridge, _ = llava
    residuals = [torch.randn(11, 64) for _ in range(6)]
    segments, targets = [0] * 4 + [1] * 7, [-1] * 9 + [3, 5]
    readings, sums = [], []
    for slice_size in (3, 100):
        monkeypatch.setattr(model_read, "SLICE", slice_size)
        prob_sum = torch.zeros(3, 6, bridge.cfg.d_vocab)
        with torch.inference_mode():
            readings.append(
                model_read.read_positions(bridge, residuals, segments, targets, prob_sum, 10)
            )
        sums.append(prob_sum)
    for name in readings[0]:
        np.testing.assert_allclose(readings[0][name], readings[1][name], rtol=1e-4, atol=1e-5)
    assert torch.allclose(*sums, atol=1e-5)


@pytest.mark.parametrize(
    "d_vocab, k", [(32_064, 10), (32_064, 1), (640, 9), (640, 10), (449, 10), (64, 64)]
)
def test_top_k_is_torchs_own(d_vocab, k):
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(7, d_vocab) * 5, -1)
    p[3] = torch.softmax(torch.arange(d_vocab).float() % 3, -1)  # many equal ones
    values, ids = model_lens.top_k_of(p, k)
    assert torch.equal(values, p.topk(k).values) and torch.equal(p.gather(1, ids), values)
    assert all(len(set(row.tolist())) == k for row in ids)


def distribution_pairs():
    torch.manual_seed(0)
    n = 32_064
    for sharpness in (0.1, 1, 10, 100):
        yield (
            torch.softmax(torch.randn(4, n) * sharpness, -1),
            torch.softmax(torch.randn(4, n) * sharpness, -1),
        )
    one_hot, flat = torch.eye(n)[:4], torch.full((4, n), 1 / n)
    yield one_hot, one_hot.roll(1, 0)  # disjoint
    yield one_hot, one_hot
    yield flat, flat
    yield one_hot, flat
    half = torch.cat([torch.full((4, n // 2), 2 / n), torch.zeros(4, n // 2)], dim=1)
    yield half, half.flip(-1)  # disjoint, spread out
    nearly = torch.softmax(torch.randn(4, n), -1)
    yield nearly, torch.softmax(nearly.log() + 1e-4 * torch.randn(4, n), -1)


@pytest.mark.parametrize("p, q", list(distribution_pairs()))
def test_jsd_against_scipy(p, q):
    jsd = model_lens.jsd_bits(p, q)
    expected = (
        np.nan_to_num(jensenshannon(p.double(), q.double(), base=2, axis=-1)) ** 2
    )  # scipy: NaN for some equal pairs
    assert torch.isfinite(jsd).all() and (jsd >= 0).all() and (jsd <= 1).all()
    assert np.abs(jsd.numpy() - expected).max() < 1e-5


def test_last_layer_check_passes_and_finds_a_second_norm(llava_folder, image, monkeypatch):
    bridge, processor = load.load_llava(llava_folder, "float32", "cpu")
    # In a random model the norm's gain is 1, and norming twice is norming once: give it a gain,
    # as training does.
    bridge.ln_final.weight.data.uniform_(0.5, 1.5)
    assert (
        model_lens.check_last_layer(bridge, processor, image)
        <= model_lens.LAST_LAYER_TOLERANCE["float32"]
    )
    once = model_lens.lens_logits
    monkeypatch.setattr(
        model_lens,
        "lens_logits",
        lambda bridge, resid: once(bridge, bridge.ln_final(resid[None])[0]),
    )
    with pytest.raises(RuntimeError, match="last layer differs"):
        model_lens.check_last_layer(bridge, processor, image)


def test_infinity_is_an_error_that_names_the_layer(llava, image):
    bridge, _ = llava
    hook = ("blocks.2.hook_resid_post", lambda resid, hook: resid * torch.inf)
    with bridge.hooks(fwd_hooks=[hook]), pytest.raises(FloatingPointError, match="layer 3"):
        read_image(llava, image, PROMPTS[:1])


@pytest.mark.parametrize("top_k", [0, -1, 100_000])
def test_top_k_out_of_range(llava, image, top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        read_image(llava, image, PROMPTS[:1], top_k=top_k)


@pytest.mark.parametrize(
    "prompts, max_new_tokens, message",
    [([], 5, "There are no prompts"), (PROMPTS[:1], 0, "max_new_tokens is 0: it must be")],
)
def test_nothing_to_ask_or_to_answer(llava, image, prompts, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        read_image(llava, image, prompts, max_new_tokens=max_new_tokens)


def test_the_model_is_where_its_weights_are(llava_folder, monkeypatch):
    """Also where there is a GPU that is not to be used."""
    monkeypatch.setattr(
        "transformer_lens.model_bridge.sources.transformers.source.get_device", lambda: "cuda"
    )
    assert str(load.load_llava(llava_folder, "float32", "cpu")[0].cfg.device) == "cpu"


def test_an_unknown_dtype_is_refused(llava_folder):
    with pytest.raises(ValueError, match="'fp16': it must be one of float32, float16"):
        load.load_llava(llava_folder, "fp16")


def test_what_is_no_llava_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load.load_llava(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' model"):
        load.load_llava(tmp_path)


def test_a_cache_that_stays_empty_is_an_error(llava, image, monkeypatch):
    """As with transformers 5.24 and TransformerLens 4.3: no prompt would see the image."""

    class Empty(model_run.DynamicCache):
        def update(self, keys, values, *args, **kwargs):
            return keys, values

    monkeypatch.setattr(model_run, "DynamicCache", Empty)
    with pytest.raises(RuntimeError, match="holds 0 of .* positions: transformers .* don't fit"):
        read_image(llava, image, PROMPTS[:1])


def test_a_long_prompt_is_fed_in_pieces_with_the_same_result(llava, image, monkeypatch):
    """By 7 tokens at a time, so that pieces end within the prompt, at its end and within the
    answer; and never more than these are held."""
    whole, whole_mean = read_image(llava, image, PROMPTS, max_new_tokens=9)
    monkeypatch.setattr(model_run, "PIECE", 7)
    pieces, pieces_mean = read_image(llava, image, PROMPTS, max_new_tokens=9)
    for one, other in zip(whole["prompts"], pieces["prompts"], strict=True):
        assert (
            one["answer"] == other["answer"]
            and one["token_ids"].tolist() == other["token_ids"].tolist()
        )
        for name, values in one["readings"].items():
            assert values.dtype == other["readings"][name].dtype
            np.testing.assert_allclose(values, other["readings"][name], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole_mean, pieces_mean, atol=1e-5)


def test_a_prompt_beyond_the_context_is_refused(llava, image):
    message = (
        r"A prompt has, with its image and max_new_tokens, \d+ tokens, and the model's context \d+"
    )
    with pytest.raises(ValueError, match=message):
        read_image(llava, image, data_prompts.as_prompts(["dog " * 5000]))


@pytest.mark.parametrize(
    "layer, where", [(0, "first at layer 0 of 5"), (3, "first at layer 3 of 5")]
)
def test_a_broken_layer_is_named_even_at_a_position_that_is_not_read(llava, image, layer, where):
    """Infinity at the first token, before the image."""
    bridge, _ = llava
    hook = "blocks.0.hook_resid_pre" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"

    def spoil(resid, hook):
        resid = resid.clone()
        resid[0, 0, 0] = torch.inf
        return resid

    with bridge.hooks(fwd_hooks=[(hook, spoil)]), pytest.raises(FloatingPointError, match=where):
        read_image(llava, image, PROMPTS[:1])


def test_a_logit_of_minus_infinity_is_an_error_though_its_softmax_is_zero(llava, image):
    def spoil(logits, hook):
        return logits.index_fill(-1, torch.tensor([5]), -torch.inf)

    message = "NaN or infinity in the lens's logits, first at layer 0 of 5|in the logits"
    with (
        llava[0].hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
        pytest.raises(FloatingPointError, match=message),
    ):
        read_image(llava, image, PROMPTS[:1])


def test_the_lens_alone_overflowing_is_an_error(llava):
    bridge, _ = llava
    residuals = [torch.randn(4, 64) for _ in range(6)]
    once = model_lens.lens_logits

    def overflowing(bridge, resid):
        logits = once(bridge, resid)
        return (
            logits.index_fill(-1, torch.tensor([5]), -torch.inf)
            if resid.data_ptr() == residuals[2].data_ptr()
            else logits
        )

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(FloatingPointError, match="lens's logits, first at layer 2 of 5"),
        torch.inference_mode(),
    ):
        patch.setattr(model_read, "lens_logits", overflowing)
        prob_sum = torch.zeros(3, 6, bridge.cfg.d_vocab)
        model_read.read_positions(bridge, residuals, [0] * 4, [-1] * 4, prob_sum, 3)


def test_the_words_are_read_from_the_full_distribution(llava, image):
    """Against the softmax of the lens at every patch and layer."""
    bridge, processor = llava
    words = [
        {"category": "x", "present": True, "way": "", "token_ids": [7, 300]},
        {"category": "y", "present": False, "way": "random", "token_ids": [11]},
    ]
    record, _ = read_image(llava, image, PROMPTS[:1], words, top_k=1, max_new_tokens=1)
    pixel_values, (ids,) = model_run.encode_prompts(processor, image, [PROMPTS[0]["question"]])
    with torch.inference_mode():
        residuals, _ = model_run.run_and_capture(
            bridge, ids, None, pixel_values=pixel_values, use_cache=False
        )
        for layer, resid in enumerate(residuals):
            patches = resid[ids == bridge.original_model.config.image_token_id]
            p = model_lens.lens_logits(bridge, patches).double().softmax(-1)
            for word, kept in zip(words, record["words"], strict=True):
                np.testing.assert_allclose(
                    kept["log2_probs"][layer], p[:, word["token_ids"]].sum(-1).log2(), atol=0.02
                )
    assert [word["category"] for word in record["words"]] == ["x", "y"]
    assert "words" not in record["patches"]


def test_the_grey_control_is_a_run_on_a_grey_image(llava, records):
    """Each prompt read from the one prefix equals a whole run on a grey image, whatever was asked
    before it."""
    bridge, processor = llava
    grey = images.open_image(ROOT / "demo/scenes/scene_00.png").resize((90, 70))
    grey.paste((128, 128, 128), (0, 0, 90, 70))
    for record in records[:2]:
        for prompt in record["prompts"]:
            pixel_values, (ids,) = model_run.encode_prompts(processor, grey, [prompt["question"]])
            with torch.inference_mode():
                residuals, _ = model_run.run_and_capture(
                    bridge, ids, None, pixel_values=pixel_values, use_cache=False
                )
                p = torch.stack(
                    [
                        model_lens.lens_logits(bridge, resid[-1:]).softmax(-1)[0]
                        for resid in residuals
                    ]
                )
            target = p[:, prompt["answer_ids"][0]]
            np.testing.assert_allclose(prompt["grey"]["target_prob"], target, atol=1e-5)
            rank = ((p > target[:, None]).sum(-1) + 1).numpy()
            assert np.abs(prompt["grey"]["target_rank"].astype(int) - rank).max() <= 1


def test_token_labels_are_unique_and_keep_the_leading_space(llava):
    bridge, processor = llava
    labels = words_py.token_labels(processor.tokenizer, bridge.cfg.d_vocab)
    assert len(labels) == bridge.cfg.d_vocab == len(set(labels))
    last = f"<row{bridge.cfg.d_vocab - 1}>"
    assert {"▁dog", "<0x0A>", "<s>", "<image>", "▁狗", last} <= set(labels)
    for i in range(len(processor.tokenizer)):
        assert processor.tokenizer.convert_tokens_to_ids(labels[i]) == i


GIB = 2**30
WEIGHTS = 7_063_427_072 * 2


@pytest.mark.parametrize(
    "free, device_map",
    [
        ([], {"": "cpu"}),
        ([15.5 * GIB], {"": 0}),
        ([3 * GIB, 15.5 * GIB], {"": 1}),
        ([14.0 * GIB] * 2, "balanced"),
        ([14.5 * GIB] * 2, {"": 0}),
    ],
)
def test_placement(free, device_map):
    assert load.placement(WEIGHTS, free) == device_map


@pytest.mark.parametrize("free", [[8 * GIB], [7 * GIB, 7 * GIB]])
def test_no_room_is_said_in_numbers(free):
    with pytest.raises(MemoryError, match=r"13\.2 GiB.* free are only"):
        load.placement(WEIGHTS, free)


@pytest.mark.parametrize("free, copies", [([], 1), ([GIB], 1), ([2 * GIB, 0, 2 * GIB], 2)])
def test_as_many_copies_as_have_room(llava_folder, monkeypatch, free, copies):
    gpus = [{"free": one} for one in free]
    monkeypatch.setattr(load, "probe_gpus", lambda: {"gpus": gpus})
    assert load.copies_that_fit(str(llava_folder), "float32") == copies


def test_the_other_image_is_the_one_before_and_an_unreadable_one_is_passed_over():
    run = []

    def prefix_of(name):
        run.append(name)
        if name in ("broken", "overflows"):
            raise OSError if name == "broken" else FloatingPointError
        return [name]

    def before(names, name, **at_hand):
        run.clear()
        return model_images._prefix_before(names.split(), name, at_hand, prefix_of), list(run)

    assert before("a b c", "b") == (["a"], ["a"])
    assert before("a b c", "a") == (["c"], ["c"])  # the last one
    assert before("a b c", "c", b=["at hand"]) == (["at hand"], [])
    assert before("a broken c", "c") == (["a"], ["broken", "a"])
    assert before("a overflows broken", "a") == (None, ["broken", "overflows"])
    assert before("a", "a") == (None, [])


def test_the_control_other_is_what_the_model_says_after_the_image_before(
    llava_folder, llava, photographs, tmp_path
):
    """By itself for the second image; the first one's is the last image, however images are shared
    and whatever was read before."""
    paths, settings = (
        images.find_images(photographs),
        load.Settings(str(llava_folder), "float32", "cpu"),
    )
    model_images.read_images(paths, {}, [], tmp_path / "all", settings)
    records = list(store.Results(tmp_path / "all").records())
    for number, record in enumerate(records):
        prefix = model_run.keep_prefix(
            *llava, images.open_image(paths[records[number - 1]["name"]])
        )
        expected = model_read.read_control(llava[0], prefix, record["prompts"])
        for prompt, control in zip(record["prompts"], expected, strict=True):
            for name, values in control.items():
                np.testing.assert_allclose(prompt["other"][name], values, rtol=1e-4)
    (first, *_) = paths
    alone = tmp_path / "alone"
    model_images.read_images({first: paths[first]}, {}, [], alone, settings)
    assert all("other" not in prompt for prompt in store.Results(alone).record(first)["prompts"])
