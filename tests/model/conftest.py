"""The tiny model in plain HF, and one prompt of it."""

import pytest
import torch

from llava_lens.data.images import open_image
from llava_lens.model import load, read
from tests.conftest import PROMPTS
from tests.model.plain_hf import Hooked, load_hf


def read_image(llava, image, prompts, words=(), **settings):
    """`(record, mean probability)` of an image."""
    return read.read_image(*llava, image, prompts, load.Settings("", **settings), words)[:2]


@pytest.fixture(scope="session")
def hf(llava_folder):
    """The same weights in plain HF, float64."""
    return load_hf(llava_folder, torch.float64)


@pytest.fixture(scope="session")
def image(photographs):
    return open_image(photographs / "china.jpg")


@pytest.fixture(scope="session", params=range(len(PROMPTS)))
def pair(request, hf, image, records):
    """One prompt's record, whose prefix came from the cache, and HF's distributions of one uncached
    pass over all of it."""
    record = next(record for record in records if record["name"] == "china.jpg")
    prompt = record["prompts"][request.param]
    fed_back = prompt["token_ids"][prompt["n_prompt"] :]
    plain = Hooked(hf, image, prompt["question"], fed_back)
    return record, prompt, plain.ids, plain.lens()[1]
