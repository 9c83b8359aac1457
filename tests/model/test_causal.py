"""Knockout and patching against plain HF: its own mask and hooks, one uncached pass, none of this
project's code."""

from functools import cache

import numpy as np
import pytest
import torch
from tiny_llava import make_llava

from llava_lens import kinds, schema
from llava_lens.data.images import find_images, open_image
from llava_lens.data.prompts import as_prompts
from llava_lens.model import causal, load, run
from llava_lens.model.images import Reader, describe_run
from tests.conftest import NOTHING_KNOWN, ROOT, TEXT, VISION
from tests.model.conftest import read_image
from tests.model.plain_hf import CHOSEN, Hooked, hf_answer, load_hf
from tests.model.test_load import change_json

QUESTIONS = ["What is this? 狗", kinds.question_of("relation", a="dog", b="cat")]
PLACES = {"grid": [4, 4], "n_image_tokens": 16}  # of RUN
# Rounding of another matrix shape, about twice what was measured. Of two logits against plain HF,
# and of all logits of a row beside others, in standard deviations; of probabilities.
TOLERANCE = {"float32": 2e-5, "float16": 3e-3}  # float16: mostly none, so one last place
BESIDE = {"float32": 1.6e-5, "float16": 1.4e-2}
PROBABILITY = {"float32": 3e-6, "float16": 6e-4}
WINDOW = 44  # of the 53 positions of the longer prompt


@pytest.fixture(scope="module")
def mistral_folder(tmp_path_factory):
    """A tiny LLaVA on Mistral: two key-value heads for four heads (grouped-query attention), and a
    window of attention that is shorter than a prompt."""
    folder, text = tmp_path_factory.mktemp("mistral"), TEXT | {"num_key_value_heads": 2}
    torch.manual_seed(2)
    make_llava(folder, [kinds.CHAT, *QUESTIONS], 56, 14, vision=VISION, text=text)
    of_mistral = {"model_type": "mistral", "sliding_window": WINDOW}
    change_json(folder / "config.json", text_config=of_mistral)
    return folder


@pytest.fixture(scope="module", params=["mistral", "float16", "4bit"])
def both(request, llava_folder, mistral_folder):
    """`((bridge, processor), plain HF's (model, processor), dtype)` with the same weights. Llama in
    float32 is among the families of test_models.py."""
    folder = mistral_folder if request.param == "mistral" else llava_folder
    dtype = "float16" if request.param == "float16" else "float32"
    quantize = request.param if request.param == "4bit" else None
    llava = load.load_llava(folder, dtype, "cpu", quantize)
    return llava, load_hf(folder, getattr(torch, dtype), quantize=quantize), dtype


@pytest.fixture(scope="module")
def images(photographs):
    """The image, and the counterfactual."""
    return [open_image(photographs / name) for name in ("china.jpg", "flower.jpg")]


def causal_of(llava, image, prompts, patches, about):
    """What `read_causal` gives where there is no other image."""
    prefix = run.keep_prefix(*llava, image)
    return causal.read_causal(llava[0], prefix, lambda: iter(()), prompts, patches, about)


def text_ids(llava, image, question):
    """The tokens of a prompt after its image."""
    _, (ids,) = run.encode_prompts(llava[1], image, [question])
    return ids[(ids == llava[1].image_token_id).nonzero()[-1] + 1 :]


@torch.inference_mode()
def routes_of(llava, prefix, other_prefix, texts, own_id=300, other_id=7):
    """ROUTE of each text between two tokens, whatever the model answers."""
    bridge, layers = llava[0], [*range(llava[0].cfg.n_layers + 1)]
    cache, other_cache = run.as_cache(prefix), run.as_cache(other_prefix)
    runs = causal.run_texts(run.Texts(bridge, cache), texts)
    others = causal.run_texts(run.Texts(bridge, other_cache), texts)
    for other in others.values():
        other.said[0] = other_id
    answers = {number: [own_id] for number in texts}
    found = iter([("other.jpg", other_cache, others)])
    return dict(causal.read_routes(bridge, cache, runs, answers, found, layers))


def check_routes(llava, hf, dtype, images):
    """Each group at each layer, both ends too, and the question at all layers, equal hooks that
    replace states in plain HF; for two prompts of unequal length side by side."""
    layers = [*range(llava[0].cfg.n_layers + 1)]
    prefixes = [run.keep_prefix(*llava, image) for image in images]
    texts = {number: text_ids(llava, images[0], asked) for number, asked in enumerate(QUESTIONS)}
    for number, asked in enumerate(QUESTIONS):
        own, other = (Hooked(hf, image, asked) for image in images)
        donor, nothing = other.lens()[0], own.patched("last", [], [])
        change = nothing - other.patched("last", [], [])
        ids = int(change.argmax()), int(change.argmin())  # on which the two runs differ most
        route = routes_of(llava, *prefixes, texts, *ids)[number]
        scale = TOLERANCE[dtype] * float(nothing.std())

        def difference(logits, ids=ids):
            return float(logits[ids[0]] - logits[ids[1]])

        for group in ("image", "question", "last"):
            assert route[group].shape == (len(layers),)
            for layer in layers:
                expected = difference(own.patched(group, [layer], donor))
                assert abs(route[group][layer] - expected) < scale, (group, layer)
        expected = difference(own.patched("question", layers, donor))
        assert abs(route["mediated"] - expected) < scale
        assert abs(route["own"] - difference(nothing)) < scale
        assert abs(route["counterfactual"] - difference(other.patched("last", [], donor))) < scale
        # The two runs differ by far more than that, and so do the layers between.
        assert abs(route["own"] - route["counterfactual"]) > 20 * scale
        inner = np.array([route[group][1:-1] for group in ("image", "question", "last")])
        assert (np.ptp(inner, axis=1) > 5 * scale).all()


def test_patching_equals_plain_hf(both, images):
    check_routes(*both, images)


def check_cuts(llava, hf, dtype, images, n_image_tokens=16):
    """Each cut in its blocks equals plain HF with that mask."""
    record, _ = read_image(llava, images[0], as_prompts(QUESTIONS))
    windows, n_layers = [[2, 3], [4, 4]], llava[0].cfg.n_layers
    windows.append([1, n_layers])
    about = PLACES | {"knockout_windows": windows, "route_layers": []}
    about["n_image_tokens"] = n_image_tokens
    read = causal_of(llava, images[0], record["prompts"], [CHOSEN, {}], about)
    assert [one["route"] for one in read] == [{}, {}]
    assert {*read[0]["knockout"]} == {*schema.KNOCKOUT}
    assert {*read[1]["knockout"]} == {"image_last", "question_last", "image"}
    for prompt, one in zip(record["prompts"], read, strict=True):
        said, token = np.split(prompt["answer_ids"], [prompt["word_at"]])  # where cuts are read
        plain, token = Hooked(hf, images[0], prompt["question"], said), int(token[0])
        undisturbed = plain.cut("image", []).softmax(-1)[token]
        for cut, prob in one["knockout"].items():
            of_windows = cut in schema.OF_OBJECTS
            assert type(prob) is (np.ndarray if of_windows else float)
            for number, (first, last) in enumerate(windows if of_windows else windows[-1:]):
                expected = plain.cut(cut, range(first, last + 1)).softmax(-1)[token]
                assert abs((prob[number] if of_windows else prob) - expected) < PROBABILITY[dtype]
            assert dtype == "float16" or abs(expected - undisturbed) > 1e-4


def test_a_cut_equals_plain_hf_with_that_mask(both, images):
    check_cuts(*both, images)


def test_rows_side_by_side_equal_those_by_themselves(both, images):
    """Logits of many rows in a pass, and of one row per pass."""
    llava, _, dtype = both
    bridge, _ = llava
    texts = {number: text_ids(llava, images[0], asked) for number, asked in enumerate(QUESTIONS)}
    about = PLACES | {"knockout_windows": [[1, 2], [2, 3], [4, 5], [1, 5]]}
    with torch.inference_mode():
        cache = run.as_cache(run.keep_prefix(*llava, images[0]))
        runs = causal.run_texts(run.Texts(bridge, cache), texts)
        n_cached = [layer.get_seq_length() for layer in cache.layers]
        rows = {
            (number, *key): row
            for number, own in runs.items()
            for key, row in causal.cut_rows(own, about, CHOSEN).items()
        }
        together = causal.logits_of(bridge, cache, rows)
        alone = {key: causal.logits_of(bridge, cache, {key: row})[key] for key, row in rows.items()}
    assert n_cached == [layer.get_seq_length() for layer in cache.layers]
    assert together.keys() == alone.keys() == rows.keys()
    for key, logits in together.items():
        assert (logits - alone[key]).abs().max() < BESIDE[dtype] * alone[key].std()


@pytest.fixture
def two_prompts(llava, images):
    """The prompts of a record, and its run."""
    record, _ = read_image(llava, images[0], as_prompts(QUESTIONS), max_new_tokens=2)
    return record["prompts"], describe_run(*llava, load.Settings(""))


def test_a_prompt_that_is_not_run_at_once_is_left_out(llava, images, two_prompts, monkeypatch):
    prompts, about = two_prompts
    shorter = min(prompt["n_prompt"] for prompt in prompts)
    for module in (causal, run):
        monkeypatch.setattr(module, "PIECE", shorter)
    read = causal_of(llava, images[0], prompts, [{}, {}], about)
    expected = [prompt["n_prompt"] == shorter for prompt in prompts]
    assert [bool(one["knockout"]) for one in read] == expected


def test_nan_is_named(llava, images, two_prompts, monkeypatch):
    prompts, about = two_prompts
    nan = lambda bridge, resid: torch.full((len(resid), 9), torch.nan)  # noqa: E731
    monkeypatch.setattr(causal, "lens_logits", nan)
    with pytest.raises(FloatingPointError, match="attention cut or states patched"):
        causal_of(llava, images[0], prompts, [{}, {}], about)


def test_nan_after_the_other_image_alone_is_named(llava, images, monkeypatch):
    """Where the route's two runs are read, by themselves; rows side by side are finite."""
    lens_logits = causal.lens_logits
    nan = lambda bridge, resid: lens_logits(bridge, resid) / (len(resid) > 1)  # noqa: E731
    monkeypatch.setattr(causal, "lens_logits", nan)
    prefixes = [run.keep_prefix(*llava, image) for image in images]
    with pytest.raises(FloatingPointError, match="attention cut or states patched"):
        routes_of(llava, *prefixes, {0: text_ids(llava, images[0], QUESTIONS[0])})


def test_windows_are_six_of_a_quarter_of_the_blocks_and_one_of_all():
    of_32 = causal.knockout_windows(32)
    assert of_32[0] == [1, 9] and of_32[-2:] == [[24, 32], [1, 32]] and len(of_32) == 7
    assert all(last - first == 8 for first, last in of_32[:-1])
    steps = np.diff([first for first, _ in of_32[:-1]])
    assert set(steps) == {4, 5}  # so each overlaps half of the next
    assert causal.knockout_windows(8)[:2] == [[1, 3], [2, 4]]
    assert causal.knockout_windows(6) == [[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [1, 6]]
    assert causal.knockout_windows(2) == [[1, 2]] and causal.knockout_windows(1) == [[1, 1]]


def test_every_layer_is_patched_or_seventeen_evenly_spaced():
    for n_layers in (1, 2, 8, 12):
        assert causal.route_layers(n_layers) == [*range(n_layers + 1)]
    assert causal.route_layers(32) == [*range(0, 33, 2)]
    for n_layers in (13, 16, 17, 24, 28, 40, 80):
        layers = causal.route_layers(n_layers)
        assert [layers[0], layers[-1]] == [0, n_layers]
        assert len(set(layers)) == len(layers) and 13 <= len(layers) <= 18
        assert np.ptp(np.diff(layers)) <= 1


# ---- Which image is the counterfactual ----------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    """`(model, paths, RUN, settings)` of the demo."""
    model = load.load_llava(ROOT / "demo/model", "float32", "cpu")
    asked = [("presence", {"category": "circle"}), ("object", {})]
    own = [kinds.question_of(kind, **words) for kind, words in asked]
    own = as_prompts([*own, "Describe the image."])
    settings = load.Settings("demo/model", "float32", "cpu", own, top_k=1, max_new_tokens=3)
    paths = find_images(ROOT / "demo/scenes")
    return model, paths, describe_run(*model, settings), settings


def test_the_counterfactual_is_the_nearest_image_before_with_another_answer(demo):
    """Each answer by plain HF's `generate`, one by one; the list is a ring."""
    model, paths, about, settings = demo
    hf = load_hf(ROOT / "demo/model", torch.float32)
    names = list(paths)

    @cache
    def answer(name, question):
        ids = hf_answer(hf, open_image(paths[name]), question, max_new_tokens=5)
        return ids, hf[1].decode(ids, skip_special_tokens=True).strip()

    reader, distances = Reader(model, paths, NOTHING_KNOWN, about, settings), []
    for at in (0, 3, 4, 11):
        record, _ = reader.read(names[at])
        for prompt in record["prompts"]:
            route, asked = prompt["route"], prompt["question"]
            own_ids, own = answer(names[at], asked)
            nearest = [names[at - back] for back in range(1, 9)]
            differ = [name for name in nearest if answer(name, asked)[1].split() != own.split()]
            if asked.startswith("Describe"):  # "The ..." everywhere
                differ = [name for name in differ if answer(name, asked)[0][0] != own_ids[0]]
            if not differ:
                assert route == {}
                continue
            ids, text = answer(differ[0], asked)
            assert (route["other"], route["other_answer"]) == (differ[0], text)
            assert (route["own_id"], route["other_id"]) == (own_ids[0], ids[0])
            distances.append(nearest.index(differ[0]))
    assert max(distances) > 0


def test_no_pass_is_run_for_an_answer_that_is_known(llava, images, monkeypatch):
    """The model is known to begin its answer there with the own answer's token."""
    texts = {0: text_ids(llava, images[0], QUESTIONS[0])}
    own = llava[1].tokenizer.encode("dog")[-1:]
    said = {tuple(texts[0].tolist()): own[0]}
    monkeypatch.setattr(causal, "run_texts", lambda *_: pytest.fail("it was run"))
    others = iter([("other.jpg", run.keep_prefix(*llava, images[1]), said)])
    assert [*causal.counterfactuals(llava[0], texts, {0: own}, others)] == []


@pytest.mark.parametrize(
    "own, other, is_another",
    [
        ("▁dog </s>", "▁cat </s>", True),
        ("▁dog </s>", "▁dog </s>", False),  # the same token
        ("▁cat </s>", "▁c a t </s>", False),  # the same word, begun with another token
        ("▁cat </s>", "▁c a t s </s>", True),
        ("▁cat </s>", "</s> ▁dog", False),  # no answer
        ("▁cat </s>", ": </s>", False),  # no word
        (": </s>", "▁dog </s>", False),
    ],
)
def test_another_answer_is_another_word_begun_with_another_token(
    llava, images, monkeypatch, own, other, is_another
):
    bridge, processor = llava
    vocabulary = processor.tokenizer.get_vocab()
    monkeypatch.setitem(vocabulary, "", 0)
    own, other = ([vocabulary[token] for token in said.split()] for said in (own, other))
    texts = {0: text_ids(llava, images[0], QUESTIONS[0])}
    steps = iter(other)

    def says(bridge, resid):
        """The model says the other answer's tokens, one after the other."""
        return torch.nn.functional.one_hot(torch.tensor([next(steps)]), bridge.cfg.d_vocab).float()

    monkeypatch.setattr(run, "lens_logits", says)
    others = iter([("other.jpg", run.keep_prefix(*llava, images[1]), {})])
    with torch.inference_mode():
        found = [*causal.counterfactuals(bridge, texts, {0: own}, others)]
    assert bool(found) == is_another
    if found:
        name, _, runs = found[0]
        said = processor.decode(runs[0].said, skip_special_tokens=True)
        assert name == "other.jpg" and said in processor.decode(other, skip_special_tokens=True)
        assert len(runs[0].places) == len(texts[0])
