"""lens_utils.look, with a photograph that scikit-learn ships: what it reads, shows, refuses."""

import os

import numpy as np
import pytest
from PIL import Image

import lens_utils as lens
from llava_lens.data.images import open_image
from llava_lens.model import load
from llava_lens.model import look as look_py

QUESTIONS = ["What is this?", {"question": "Is it red?", "truth": "no"}]


@pytest.fixture
def look(llava_folder):
    def look(image, question="What is this?", **settings):
        tiny = dict(model=llava_folder, device="cpu", max_new_tokens=3)
        return lens.look(image, question, **tiny | settings)

    return look


def test_paths_pictures_and_arrays_are_alike(look, photographs, tmp_path, monkeypatch, capsys):
    """Two questions; the model is loaded once, and nothing is saved but the page where wanted."""
    load._KEPT.clear()
    loaded, load_llava = [], load.load_llava
    monkeypatch.setattr(load, "load_llava", lambda *of: loaded.append(of) or load_llava(*of))
    monkeypatch.chdir(tmp_path)
    path, other = photographs / "flower.jpg", photographs / "china.jpg"
    picture = Image.open(path)
    pages = [look(path, QUESTIONS, other=other, folder="pages")]
    pages += [look(image, QUESTIONS, other=other) for image in (picture, np.asarray(picture))]
    assert len(loaded) == 1
    (page,) = tmp_path.rglob("*.*")
    assert page.match("pages/flower.jpg-*.html") and str(page) in capsys.readouterr().out
    records = [page.record for page in pages]
    assert [record["name"] for record in records] == ["flower.jpg", "image", "image"]
    for record in records:
        assert (record["crop"] == records[0]["crop"]).all()
        for prompt, first in zip(record["prompts"], records[0]["prompts"], strict=True):
            assert prompt["answer"] == first["answer"]
            top_ids, others = (one["readings"]["top_ids"] for one in (prompt, first))
            np.testing.assert_array_equal(top_ids, others)
            assert prompt["knockout"] == {} and prompt["route"].get("other") in (None, "china.jpg")
    assert any(prompt["route"] for prompt in records[0]["prompts"])
    assert [prompt["truth"] for prompt in records[0]["prompts"]] == [None, "no"]
    assert "srcdoc" in pages[0]._repr_html_() and "flower.jpg" in repr(pages[0])


def test_every_image_has_a_page_of_its_own(look, tmp_path):
    """Also the same pixels in another shape, and files of one name in two folders, however long it
    is and though it is not UTF-8. The same image has the same page again."""
    for number, (value, *shape) in enumerate([(0, 8, 9), (255, 8, 9), (0, 9, 8), (0, 8, 9)]):
        pixels = np.full((*shape, 3), value, np.uint8)
        path = tmp_path / str(number) / os.fsdecode(b"\xff" + b"x" * 240 + b".png")
        path.parent.mkdir()
        Image.fromarray(pixels).save(path)
        for image in (pixels, path):
            look(image, folder=tmp_path / "pages", route=False)
    for name in ("image", "\ufffdx"):
        assert len([*tmp_path.glob(f"pages/{name}*.html")]) == 3


def test_without_another_image_a_grey_one_is_the_counterfactual(look, photographs, capsys):
    """Where its answer begins alike, as on a grey image itself, that is said."""
    questions = ["What is this?", "Describe it.", "Is the dog left of the cat?", "Привет 狗"]
    prompts = look(photographs / "china.jpg", questions).record["prompts"]
    routes = [prompt["route"] for prompt in prompts]
    assert {route["other"] for route in routes if route} == {"a plain grey image"}
    assert capsys.readouterr().out.count("No route for") == routes.count({})
    (grey,) = look(np.full((50, 70, 3), 128, np.uint8)).record["prompts"]
    assert grey["route"] == {}
    assert "No route for 'What is this?': about a plain grey image" in capsys.readouterr().out


def test_a_transparent_picture_is_on_white_as_its_file_is(tmp_path):
    picture = Image.new("RGBA", (9, 9), (0, 0, 0, 0)).quantize(4)
    _, path = look_py._as_file(picture, tmp_path / "a.tiff")
    picture.save(tmp_path / "a.png")
    for file in (path, tmp_path / "a.png"):
        assert open_image(file).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    "image, question, message",
    [
        ("nowhere.jpg", "What?", "^image is 'nowhere.jpg', which is no file: it must be a path"),
        (".", "What?", "^image is '.', which is no file"),
        (Image.new("RGB", (0, 5)), "What?", "^image can't be read .*empty.*: open or make it anew"),
        (None, "What?", "^image is NoneType .*: it must be a path, a PIL image, or an array"),
        (np.zeros((9, 9), np.uint8), "What?", r"^image is ndarray of shape \[9, 9\] and uint8"),
        (np.zeros((9, 9, 3)), "What?", r"of shape \[9, 9, 3\] and float64: it must be"),
        (np.zeros((0, 9, 3), np.uint8), "What?", r"of shape \[0, 9, 3\]"),
        (np.zeros((900, 4, 3), np.uint8), "What?", "it is 4 x 900, and the model would see next"),
        (Image.new("F", (9, 9)), "What?", "floating-point numbers of an unknown range"),
        (Image.new("RGB", (9, 9)), "", "^Prompt 0 is empty or no text: give a question"),
        (Image.new("RGB", (9, 9)), ["What?", None], "^Prompt 1 is empty"),
        (Image.new("RGB", (9, 9)), [], "^question is an empty list"),
    ],
)
def test_bad_input_is_named_before_the_model_is_loaded(look, image, question, message, monkeypatch):
    monkeypatch.setattr(look_py, "load_once", None)
    with pytest.raises((ValueError, OSError), match=message):
        look(image, question)


def test_a_bad_other_and_a_bad_folder_are_named_too(look, tmp_path, monkeypatch):
    monkeypatch.setattr(look_py, "load_once", None)
    (tmp_path / "file").touch()
    picture = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="^other is ndarray of shape"):
        look(picture, other=picture[0])
    with pytest.raises(OSError, match="file' can't be used .*: change its .* another folder"):
        look(picture, folder=tmp_path / "file")
