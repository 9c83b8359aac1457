"""What strangers and accidents bring: code among results, links, other images under the same names,
two runs in one folder. A test per point of an audit; each failed before its point was mended."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

from llava_lens import checks as checks_py
from llava_lens import pickles, schema, store
from llava_lens.analysis import grounding
from llava_lens.data import annotations, crop, watched
from llava_lens.data import images as data_images
from llava_lens.data import prompts as data_prompts
from llava_lens.figures import one_image, style
from llava_lens.model import images as model_images
from llava_lens.model import load
from tests.conftest import ROOT
from tests.test_hostile import Within, make_readings, make_results

# ---- Code from a stranger's data set ------------------------------------------------------------

NOTEBOOKS = ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb")
MODULES = sorted(path.name for path in ROOT.glob("lens_*.*"))


@pytest.fixture
def attached(tmp_path, monkeypatch):
    """Makes data sets with small modules (a line of code each) below an imitation of Kaggle's
    inputs."""
    monkeypatch.chdir(tmp_path)

    def attach(data_set, code="", modules=MODULES, *more):
        folder = tmp_path / "kaggle/input" / data_set
        for name in (*modules, *more):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"print('{code}')" if name in modules else "")
        return folder

    return attach


def import_utils(notebook, tmp_path):
    """Run a notebook's first code cell in `tmp_path`, import lens_utils: `(output, error)`."""
    cells = json.loads((ROOT / notebook).read_text())["cells"]
    code = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
    code = code.replace("/kaggle", str(tmp_path / "kaggle")) + "\nimport lens_utils"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("place", ["{}", "datasets/someone/{}"])
def test_code_is_not_taken_from_results(attached, tmp_path, notebook, place):
    """Whatever comes first by name; the one that is taken is named."""
    attached(place.format("aaa"), "STRANGER", MODULES, "deep/results/run.pkl")
    attached(place.format("bbb"), "STRANGER", ["lens_utils.py"])
    attached(place.format("ccc/deep"), "STRANGER")
    mine = attached(place.format("lens-utils"), "mine")
    attached(place.format("zzz"), "mine")  # the same once more
    said, error = import_utils(notebook, tmp_path)
    assert "STRANGER" not in said and said.count("mine") == 1, error
    assert f"lens_* from {mine}" in said or f"lens_* from {mine.parent / 'zzz'}" in said


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_code_or_several_stop_the_notebook(attached, tmp_path, notebook):
    attached("aaa", "STRANGER", MODULES, "run.pkl")
    said, error = import_utils(notebook, tmp_path)
    assert not said and f"put all {len(MODULES)} files here" in error and "no run.pkl" in error
    attached("some", "STRANGER", MODULES[1:])
    said, error = import_utils(notebook, tmp_path)
    assert not said and "lens_* are missing" in error
    one, other = attached("one", "1"), attached("other", "2")
    said, error = import_utils(notebook, tmp_path)
    assert not said and str(one) in error and str(other) in error and "differ" in error
    shutil.rmtree(one)
    for module in MODULES:
        (tmp_path / module).write_text("print('beside')")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/run.pkl").touch()
    said, error = import_utils(notebook, tmp_path)
    assert not said and "differ" in error
    shutil.rmtree(other)
    said, _ = import_utils(notebook, tmp_path)
    assert said.count("beside") == 1 and f"lens_* from {tmp_path}" in said


# ---- Texts of a stranger in pages ---------------------------------------------------------------

MARK = "document.documentElement.id='marked'"
PAYLOADS = [
    "<script>MARK</script>",
    "<img src=x onerror=MARK>",
    "<svg onload=MARK>",
    "<img src=http://HOST/image.png>",
    "![x](http://HOST/image.md)",
    "[x](javascript:MARK)",
    "[x](http://HOST/link)",
    "<http://HOST/auto>",
    "http://HOST/bare",
    "www.HOST",
    "someone@HOST",
    "</code><script>MARK</script>",
    "</script><script>MARK</script>",
    "</style></title></textarea></pre><script>MARK</script>",
    "--><script>MARK</script><!--",
    "]]><script>MARK</script>",
    '" autofocus onfocus=MARK x="',
    "' onmouseover='MARK' x='",
    "` <script>MARK</script> `",
    "```\n<script>MARK</script>\n```",
    "| a | <script>MARK</script> |",
    "- <script>MARK</script>",
    "    <script>MARK</script>",
    "# <script>MARK</script>",
    "$$\\href{javascript:MARK}{x}$$",
    "\\(\\unicode{x}\\) $x$",
    "{{MARK}} {% raw %} ${MARK}",
    "&lt;script&gt;MARK&lt;/script&gt;",
    "&#60;script&#62;MARK&#60;/script&#62;",
    "\\u003cscript\\u003eMARK\\u003c/script\\u003e",
    "%3Cscript%3EMARK%3C/script%3E",
    "<iframe srcdoc='<script>parent.MARK</script>'></iframe>",
    "<iframe src=http://HOST/frame></iframe>",
    "<object data=http://HOST/object></object>",
    "<embed src=http://HOST/embed>",
    "<link rel=stylesheet href=http://HOST/style>",
    "<style>@import 'http://HOST/import';</style>",
    "<div style='background:url(http://HOST/url)'>x</div>",
    "<meta http-equiv=refresh content='1;url=http://HOST/meta'>",
    "<base href=http://HOST/base>",
    "<a href=javascript:MARK>x</a>",
    "<form action=http://HOST/form><input autofocus onfocus=MARK></form>",
    "<details open ontoggle=MARK>x</details>",
    "<video><source onerror=MARK></video>",
    "[ref]: http://HOST/ref\n\n[ref]",
    "<script src=//HOST/script.js></script>",
    "\x1b]8;;http://HOST/\x07x\x1b]8;;\x07 \x1b[31m<script>MARK</script>",
    "\u2028<script>MARK</script>\u202e",
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def host():
    """`(address, requests)` of a server on this machine that keeps the paths it is asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (its name)
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_OPTIONS = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


def hostile_results(folder, payloads):
    """Results with payloads in every text of run, records and parts and in the names of files."""
    run, record, part = make_results()
    texts = ["\n".join(payloads[at:] + payloads[:at]) for at in range(len(payloads))]
    singles = ("model", "revision", "dtype", "chat")
    run |= {name: texts[at % len(texts)] for at, name in enumerate(singles)}
    run["packages"] = run["questions"] = {text: text for text in texts[:3]}
    run["tokens"] = [
        payload[: schema.MOST_LABEL] for payload in (payloads * 20)[: len(run["tokens"])]
    ]
    run["categories"] = texts
    asked = {"kind": "own", "question": texts[0], "truth": texts[1], "categories": [texts[-1]]}
    run["own_prompts"] = [asked | {"truth_from": texts[2 % len(texts)], "way": ""}]
    pickles.save(folder / "run.pkl", run, checks_py.check_run)
    part["images"] = []
    for at, text in enumerate(texts):
        name = f"{at:02}" + re.sub(r"[/\\]", "|", payloads[at])
        part["images"].append(name)
        color = {"category": text, "color": text, "color_from": text}
        prompts = [
            {**record["prompts"][0], "kind": kind, "question": text, "truth": text, "answer": other}
            | {"categories": [text], "truth_from": text}
            for kind in ("presence", "colour")
            for other in (text + "!",)
        ]
        shown = {"objects": [{**record["objects"][0], **color}], "prompts": prompts}
        shown["words"] = [
            {**record["words"][0], "category": text},
            {**record["words"][0], "category": texts[at - 1], "present": False, "way": "random"},
        ]
        saved = {**record, "name": name, **shown}
        check = partial(checks_py.check_record, run=run, name=name)
        pickles.save(folder / "images" / f"{name}.pkl", saved, check)
    n = len(texts)
    part |= {"skipped": dict(zip(texts, texts, strict=True)), "sums": part["sums"] * n}
    pickles.save(folder / "parts/0.pkl", part | {"n_images": part["n_images"] * n})
    return folder


def executed_page(folder, page, **parameters):
    """Run the second notebook in `folder` and save it as `page`."""
    notebook = nbformat.read(ROOT / "Visualise_Analyse.ipynb", as_version=4)
    cells = notebook.cells
    at = next(n for n, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    for module in MODULES:
        shutil.copy(ROOT / module, folder)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return page


class Links(HTMLParser):
    """Collects what a page refers to and where it could run something."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, name, value or "") for name, value in attributes]


def nothing_of(page, tmp_path, address) -> None:
    """Open a page in Chromium and assert that nothing of a payload is there but as text."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=180)
    links = Links()
    links.feed(done.stdout)
    assert len(links.found) > 20, done.stderr  # it was opened
    assert ("html", "id", "marked") not in links.found
    for tag, name, value in links.found:
        if name in ("href", "src", "srcset", "action", "data", "srcdoc", "content", "style"):
            assert address not in value and "javascript:" not in value, (tag, name, value)
        assert not (name.startswith("on") and "marked" in value), (tag, name, value)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; .ci/run installs it")
def test_no_text_of_a_stranger_is_anything_but_text(tmp_path, host):
    """In the second notebook's page and in all pages that it writes."""
    address, asked = host
    payloads = [text.replace("MARK", MARK).replace("HOST", address) for text in PAYLOADS]
    page = tmp_path / "control.html"
    page.write_text("<p>x</p>" * 30 + payloads[1] + payloads[3])
    with pytest.raises(AssertionError):  # what is looked for can be found
        nothing_of(page, tmp_path, address)
    assert asked == ["/image.png"]
    asked.clear()
    hostile_results(tmp_path / "results", payloads)
    page = executed_page(tmp_path, tmp_path / "page.html", explorers="all")
    nothing_of(page, tmp_path, address)
    written = [path for path in tmp_path.glob("re*/**/*.html") if path.is_file()]
    assert len(written) == len(payloads) + 1  # a page per image, and their index
    for page in written:
        nothing_of(page, tmp_path, address)
    assert not asked


# ---- Links and the folder for what is written ---------------------------------------------------


def changed_files(folder, before):
    """The files that are there now and were not, or not with this content."""
    now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path for path, content in now.items() if before.get(path) != content}, now


def test_nothing_is_written_to_results_nor_through_their_links(tmp_path):
    """Links where the notebook once wrote, in results of a stranger's."""
    results, victim = hostile_results(tmp_path / "results", ["a", "b"]), tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "file").write_text("precious")
    (results / "summary.csv").symlink_to(victim / "file")
    for name in ("figures", "explorer", "report"):
        (results / name).symlink_to(victim / "folder")
    _, before = changed_files(tmp_path, {})
    page = executed_page(tmp_path, tmp_path / "page.html", report="my/report")
    written, _ = changed_files(tmp_path, before)
    written -= {page, *tmp_path.glob("lens_*.*"), *tmp_path.glob("__pycache__/*")}
    assert {path.parts[len(tmp_path.parts)] for path in written} == {"my"}
    assert (victim / "file").read_text() == "precious" and not [*(victim / "folder").iterdir()]
    assert (tmp_path / "my/report/summary.csv").exists()
    of_image = {"0_top1", "0_jsd_prev", "0_jsd_final", "0_entropy", "patches", "words"}
    of_all = {*["settling", "mean_series", "mean_series_by_kind", "answers", "knockout"]}
    of_all |= {*["grounding", "gallery", "presence"]}
    of_all |= {f"top_tokens_{segment}" for segment in schema.SEGMENTS}
    drawn = {path.stem for path in (tmp_path / "my/report/figures").iterdir()}
    assert drawn == {f"00a_{name}" for name in of_image} | of_all


@pytest.mark.parametrize("linked", ["run.pkl", "parts", "images", "parts/0.pkl", "images/00a.pkl"])
def test_links_in_results_are_refused_when_read(tmp_path, linked):
    results = store.Results(hostile_results(tmp_path / "results", ["a", "b"]))
    (tmp_path / "linked").symlink_to(results.folder)  # to the whole folder a user may link
    assert len(list(store.Results.find(tmp_path / "linked").records())) == 2
    (results.folder / linked).rename(tmp_path / "elsewhere")
    (results.folder / linked).symlink_to(tmp_path / "elsewhere")
    for call in (
        lambda: list(store.Results(results.folder).records()),
        lambda: store.Results(tmp_path / "new").continue_from(results.folder),
    ):
        with pytest.raises(ValueError, match="is a link"):
            call()


def test_what_is_saved_does_not_go_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name in ("a.pkl", f"a.pkl.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    pickles.save(tmp_path / "a.pkl", {"a": 1})
    assert (tmp_path / "victim").read_text() == "precious" and pickles.load(tmp_path / "a.pkl")


# ---- Sizes and kinds of files -------------------------------------------------------------------


def crop_record(jpeg: bytes):
    run, record, _ = make_results()
    return {**record, "crop": np.frombuffer(jpeg, np.uint8)}, run


def scans(times: int) -> bytes:
    """A sequential grey JPEG in RGB, 8 x 8, whose first component comes in so many scans, the two
    others in one each."""
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(jpeg, "JPEG", subsampling=0)
    before = jpeg.getvalue().split(b"\xff\xda")[0]
    # No change of the mean, then the end of the block, in the codes of the standard's tables.
    first, *others = (
        b"\xff\xda\x00\x08\x01" + bytes([component, table, 0, 63, 0, code])
        for component, table, code in ((1, 0x00, 0x2B), (2, 0x11, 0x0F), (3, 0x11, 0x0F))
    )
    return before + first * times + b"".join(others) + b"\xff\xd9"


def test_a_crop_has_one_scan(tmp_path):
    """A record of 8 kB with hundreds of thousands of them hangs."""
    run = make_results()[0]
    for times in (1, 2, 300_000):
        many = crop_record(scans(times))[0]
        with Within(), pytest.raises(ValueError, match="no plain image"):
            checks_py.check_record(many, run, "a.jpg")
    with Image.open(io.BytesIO(scans(1))) as image:
        image.load()  # it is a JPEG
        assert image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 60_000_000,  # the name of a file, without an end
        gzip.compress(b"") * 3_000_000,
        gzip.compress(pickle.dumps(1)) + bytes(10_000_000),
        gzip.compress(pickle.dumps(1)) + gzip.compress(b"")[:3] + b"\x08" + b"x" * 60_000_000,
        gzip.compress(bytes(2**28)),
        gzip.compress(pickle.dumps([1] * 9))[:-9],
        gzip.compress(pickle.dumps(1))[:-8] + bytes(8),
    ],
    ids=["name", "members", "zeros", "second name", "bomb", "cut", "checksum"],
)
def test_a_gzip_is_one_plain_member(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    start = time.process_time()
    with Within(), pytest.raises(ValueError, match="a.pkl"):
        pickles.load(tmp_path / "a.pkl")
    assert time.process_time() - start < 3


def test_a_pipe_and_a_file_of_gigabytes_are_refused_unread(tmp_path):
    """As results, as an image and as annotations; a link to an image is one."""
    for name in ("a.pkl", "a.png", "a.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(3 * 2**30)  # takes no room
        for _ in range(2):
            with Within():
                if name == "a.pkl":
                    with pytest.raises(ValueError, match="a.pkl"):
                        pickles.load(tmp_path / name)
                elif name == "a.png":
                    with pytest.raises(OSError, match="a.png.*(MiB|no file)"):
                        data_images.open_image(tmp_path / name)
                else:
                    found = annotations.read_annotations(tmp_path)
                    assert not found.objects and "a.json" in found.problems[0]
            (tmp_path / name).unlink()
            os.mkfifo(tmp_path / name)
        (tmp_path / name).unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("b.png")
    assert data_images.open_image(tmp_path / "c.png").size == (9, 9)


# ---- Another model, other images, another run ---------------------------------------------------


def test_a_weight_anywhere_makes_another_fingerprint(llava):
    """A hundredth of any tensor, wherever it lies; nothing else does."""
    model = llava[0].original_model
    fingerprint = model_images._fingerprint(model)
    assert fingerprint == model_images._fingerprint(model)
    for at, (name, weight) in enumerate(model.state_dict().items()):
        values = weight.flatten() if weight.is_contiguous() else None
        assert values is None or values.data_ptr() == weight.data_ptr(), name
        size = -(-len(values) // 100)
        start = (at * 7919) % (len(values) - size + 1)
        changed = values[start : start + size]
        before = changed.clone()
        changed += 1
        assert model_images._fingerprint(model) != fingerprint, name
        changed.copy_(before)
    assert model_images._fingerprint(model) == fingerprint


def test_digests_are_of_content(tmp_path, photographs):
    dog = {"category": "dog", "box": [1.0, 2.0, 3.0, 4.0], "image_size": (5, 6)}
    shutil.copy(photographs / "china.jpg", tmp_path / "other.png")
    one = data_images.digests_of(photographs / "china.jpg", [dog])
    assert one == data_images.digests_of(tmp_path / "other.png", [dict(reversed(dog.items()))])
    other = data_images.digests_of(
        photographs / "flower.jpg", [{**dog, "box": [1.0, 2.0, 3.0, 5.0]}]
    )
    assert one.keys() == other.keys() == {"image_digest", "annotations_digest"}
    assert not {*one.values()} & {*other.values()}


# ---- What is given is plain, or refused before anything is read ---------------------------------


@pytest.mark.parametrize(
    "prompts",
    [
        list(np.array(["What is it?", "Where?"])),
        np.array(["What is it?", "Where?"]),
        [{"question": np.str_("What is it?"), "kind": np.str_("object"), "truth": np.str_("a")}],
        [{np.str_("question"): "What is it?"}],
    ],
)
def test_texts_of_numpy_are_made_plain(tmp_path, prompts):
    asked = data_prompts.as_prompts(prompts)
    for prompt in asked:
        assert {type(value) for value in prompt.values()} <= {str, type(None), list}
        assert {type(key) for key in prompt} == {str}
    run = make_results()[0] | {"own_prompts": asked}
    pickles.save(tmp_path / "run.pkl", run, checks_py.check_run)


def test_a_run_that_could_not_be_saved_is_refused_before_it_begins(tmp_path, llava):
    """With the check that loading makes."""
    settings = load.Settings("m", top_k=np.int64(3), seed=np.int32(1), per_kind=np.int8(2))
    run = model_images.describe_run(*llava, settings, 0.0)
    store.Results(tmp_path).refuse_another(run)  # numbers are made plain
    for change in ({"model": np.str_("m")}, {"top_k": 0}, {"seed": "0"}, {"last_layer_jsd": 2.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            store.Results(tmp_path).refuse_another({**run, **change})
    prompt = {**data_prompts.as_prompts(["?"])[0], "question": np.str_("?")}
    with pytest.raises(ValueError, match="own_prompts 0, question"):
        store.Results(tmp_path).refuse_another({**run, "own_prompts": [prompt]})


@pytest.mark.parametrize("token", ["</s>", "<s>", "<unk>", "<pad>", "<image>"])
def test_special_tokens_in_a_question_or_category_are_refused(token, photographs, tmp_path):
    with pytest.raises(ValueError, match="Prompt 0 .*has its own"):
        data_prompts.as_prompts([f"What is {token}?"])
    data = json.loads((photographs / "instances_test.json").read_text())
    data["categories"][2]["name"] = f"a {token}"
    (tmp_path / "instances.json").write_text(json.dumps(data))
    _, _, categories, problems, _ = annotations.read_annotations(tmp_path)
    assert categories == ["temple", "tree"] and "can't be asked about" in problems[0]


# ---- What is accepted can be shown --------------------------------------------------------------


def with_box(box):
    run, record, _ = make_results()
    record["objects"][0]["box"] = box
    return run, record


@pytest.mark.parametrize(
    "box",
    [
        [9.0, 9.0, 2.0, 2.0],
        [8.0, 1.0, 2.0, 2.0],
        [7.0, 7.0, 2.0, 0.5],
        [1.0, 1.0, 1e-9, 4.0],
        [1.0, 1.0, 4.0, 1e-3],
        [0.0, 0.0, 1e4, 1e4],
    ],
)
def test_the_box_of_a_present_word_is_in_the_crop(box):
    run, record = with_box(box)
    with pytest.raises(ValueError, match="box|no object's"):
        checks_py.check_record(record, run, "a.jpg")


def test_what_is_watched_can_be_saved(llava):
    """A box that is no larger than rounding makes no present word."""
    tiny = {"category": "dog", "color": None, "crowd": False, "image_size": (56, 56)}
    boxes = [[1.0, 1.0, 1e-9, 5.0], [-4.0, 1.0, 4.005, 1.0], [-4.0, -3.0, 2.0, 1.0]]
    objects = [{**tiny, "box": box} for box in boxes]
    objects = crop.objects_in_crop(objects, (56, 56), llava[1].image_processor)
    words = watched.words_to_watch(llava[1].tokenizer, objects, ["dog", "cat"])
    assert not [word for word in words if word["present"]]
    run, record = with_box([7.0, 7.0, 1.0, 0.5])
    checks_py.check_record(record, run, "a.jpg")
    assert grounding.patches_of(record, run, "dog").tolist() == [False, False, False, True]


def test_each_mean_distribution_sums_to_one():
    run, _, part = make_results()
    checks_py.check_part(part, run)
    for wrong in (part["sums"] * 0.5, part["sums"] * 1.01, np.zeros_like(part["sums"])):
        with pytest.raises(ValueError, match="sums"):
            checks_py.check_part({**part, "sums": wrong}, run)
    none = {"n_images": np.array([1, 1, 0]), "sums": part["sums"] * [[[1]], [[1]], [[0]]]}
    checks_py.check_part({**part, **none}, run)  # no answer has positions


# ---- Sizes that can be shown --------------------------------------------------------------------


def a_large_prompt(n_pos, n_layers=201, question="Why? " * 300):
    rng, run = np.random.default_rng(0), make_results()[0]
    run |= {"n_layers": n_layers - 1, "layers": ["emb", *map(str, range(1, n_layers))]}
    shape = (n_layers, n_pos)
    readings = {
        "top_ids": rng.integers(20, size=(*shape, 1)).astype(np.uint8),
        "top_probs": rng.random((*shape, 1), np.float32),
        **{name: rng.random(shape, np.float32) for name in ("jsd_prev", "jsd_final", "entropy")},
    }
    prompt = make_results()[1]["prompts"][0]
    token_ids = np.arange(n_pos) % 20
    prompt |= {"question": question, "answer": "\u0600" * 5000, "token_ids": token_ids}
    return run, prompt | {"n_prompt": n_pos - 3, "readings": readings}


@pytest.mark.parametrize("n_layers, n_pos", [(33, 4000), (201, 4000), (3, 65), (3, 64)])
def test_of_a_long_prompt_the_last_positions_are_drawn(n_layers, n_pos):
    run, prompt = a_large_prompt(n_pos, n_layers)
    n_shown = min(64, 4000 // n_layers)
    style.use_style()
    for plot in (one_image.plot_top1, partial(one_image.plot_series, series="jsd_final")):
        start = time.process_time()
        figure = plot(run, prompt)
        figure.canvas.draw()
        assert time.process_time() - start < 20
        panels = [axis for axis in figure.axes if axis.get_xlabel() or axis.get_ylabel() == "layer"]
        ticks = [tick for axis in panels for tick in axis.get_xticklabels() if tick.get_text()]
        assert len(ticks) == n_shown
        assert [tick.get_text() for tick in ticks][-1] == f"▁{(n_pos - 1) % 20}"
        assert [tick.get_fontweight() for tick in ticks].count("bold") == 3
        title = panels[0].get_title(loc="left")
        assert (f"last {n_shown} of {n_pos:,} positions" in title) == (n_pos > 64)
        # As it is shown: with all that belongs to the figure around it.
        width = figure.get_tightbbox().width
        assert width < 13 and figure.get_size_inches()[1] * 150 < 2**15
        plt.close(figure)


def test_of_a_fine_grid_the_colours_are_drawn_and_of_many_boxes_the_largest(monkeypatch):
    run, record, _ = make_results()
    rng, jpeg = np.random.default_rng(0), io.BytesIO()
    Image.new("RGB", (640, 640)).save(jpeg, "JPEG")
    run |= {"grid": 64, "image_size": 640}
    record["crop"] = np.frombuffer(jpeg.getvalue(), np.uint8)
    record["patches"] = {
        "top_ids": rng.integers(20, size=(3, 4096, 1)).astype(np.uint8),
        "top_probs": rng.random((3, 4096, 1), np.float32),
    }
    boxes = [[at / 100, 1.0, 100.0, 1 + at / 10] for at in range(5000)]
    category = "a long name " * 500
    record["objects"] = [
        {**record["objects"][0], "category": category, "box": box, "share": box[3]} for box in boxes
    ]
    start = time.process_time()
    figure = one_image.plot_patches(run, record, [0, 1, 2, 0, 1])
    figure.canvas.draw()
    assert time.process_time() - start < 20
    drawn = [patch.get_height() for patch in figure.axes[0].patches]
    assert len(drawn) == 100 and max(drawn) == 1 + 499.9
    assert max(len(text.get_text()) for text in figure.axes[0].texts) <= 30
    assert figure.get_tightbbox().width < 13
    plt.close(figure)


@pytest.mark.parametrize(
    "what, where, new",
    [
        ("run", "chat", "a" * 100_000),
        ("run", "packages", {"a": "b" * 100_000}),
        ("run", "model", "half \ud800"),
        ("part", "skipped", {"a": "half \ud800"}),
        ("record", "image_digest", "a" * 100_000),
        ("record", "prompts", None),
    ],
)
def test_texts_and_numbers_of_readings_are_bounded(what, where, new):
    run, record, part = make_results()
    value = {"run": run, "record": record, "part": part}[what]
    if new is None:  # more positions than figures can show
        ids, long = np.full(400_000, 1), record["prompts"][0]
        long = long | {"token_ids": ids, "readings": make_readings(400_000)}
        new = [long | {"n_prompt": 399_999}]
    checks = {
        "run": checks_py.check_run,
        "record": partial(checks_py.check_record, run=run, name="a.jpg"),
        "part": partial(checks_py.check_part, run=run),
    }
    checks[what](value)
    with Within(), pytest.raises(ValueError, match=where):
        checks[what]({**value, where: new})


# ---- Images -------------------------------------------------------------------------------------


# ---- Names and folders at the limits, kills and deletions ---------------------------------------


def test_names_of_255_bytes_are_refused_in_results_and_shortened_among_images(tmp_path):
    run, _, part = make_results()
    name = "a" * 251 + ".jpg"
    with pytest.raises(ValueError, match="name of a file"):
        checks_py.check_part({**part, "images": [name]}, run)
    (tmp_path / name).touch()
    (short,) = data_images.find_images(tmp_path)
    checks_py.check_part({**part, "images": [short]}, run)


def test_the_clock_of_the_wall_does_not_end_a_run():
    for module in MODULES:
        assert not re.search(r"time\.time\(|datetime", (ROOT / module).read_text()), module


# ---- Annotations --------------------------------------------------------------------------------
