"""Both notebooks among a stranger's files: where their code comes from, texts in their pages, and
where they write."""

import json
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from llava_lens import schema
from tests.conftest import ROOT
from tests.hostile import save_results

# ---- Code from a stranger's data set ------------------------------------------------------------

NOTEBOOKS = ("Make_Analyse.ipynb", "Visualise_Analyse.ipynb")
PLACES = ["kaggle/working", "kaggle/input/llava-lens", "kaggle/input/datasets/someone/llava-lens"]
PLACES += [f"{place}/llava-logit-lens-main" for place in PLACES[1:]]


@pytest.fixture
def put(tmp_path):
    """Writes files below an imitation of Kaggle's folders; each says its name when it is run."""
    (tmp_path / "kaggle/working").mkdir(parents=True)

    def put(place, *names):
        for name in names:
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"print({str(path)!r})")
        return str(tmp_path / place / names[0])

    return put


@pytest.fixture(params=NOTEBOOKS)
def start(request, tmp_path):
    """Runs a notebook's first code cell in `kaggle/working`, and `more` after it: what is printed,
    by line, and the error."""
    cells = json.loads((ROOT / request.param).read_text(encoding="utf-8"))["cells"]
    cell = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])

    def start(more=""):
        code = cell.replace("/kaggle", str(tmp_path / "kaggle")) + f"\n{more}"
        command = [sys.executable, "-c", code]
        at = tmp_path / "kaggle/working"
        done = subprocess.run(command, cwd=at, capture_output=True, text=True)
        return done.stdout.splitlines(), done.stderr

    return start


@pytest.mark.parametrize("place", PLACES)
def test_the_code_is_found_and_named(put, start, place):
    code = put(place, "lens_utils.py")
    said, error = start()
    assert said == [code, code], error  # it ran, and is named


@pytest.mark.parametrize("place", PLACES[1:])
def test_own_files_come_first(put, start, place):
    put(place, "lens_utils.py")
    own = put(PLACES[0], "lens_utils.py")
    assert start()[0] == [own, own]


def test_nothing_of_attached_results_is_imported(put, start):
    """Whatever comes first by name, and however deep; without own code there is an error."""
    for place in ("aaa", "datasets/someone/aaa", "make-analyse", "aaa/llava-lens/results"):
        put(
            f"kaggle/input/{place}", "lens_utils.py", "llava_lens/__init__.py", "run.pkl", "json.py"
        )
    said, error = start("import json, llava_lens")
    assert not said and "No module named 'lens_utils'" in error
    code = put(PLACES[1], "lens_utils.py", "llava_lens/__init__.py")
    said, error = start("import json, llava_lens")
    assert said == [code, code, code.replace("lens_utils.py", "llava_lens/__init__.py")], error


def test_nothing_attached_stands_in_for_the_standard_library(put, start, tmp_path):
    code = put(PLACES[1], "lens_utils.py", "json.py", "colorsys.py", "numpy/__init__.py")
    compiled = tmp_path / PLACES[1] / "__pycache__"
    run = [sys.executable, "-m", "compileall", "-q", str(compiled.parent)]
    subprocess.run(run, check=True)
    for path in compiled.glob("json.*"):
        shutil.copy(path, compiled.parent / "colorsys.pyc")
    said, error = start("import json, colorsys, numpy\njson.dumps, colorsys.rgb_to_hsv, numpy.ones")
    assert said == [code, code] and not error


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


@pytest.fixture(scope="module")
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


def executed_page(folder, page, **parameters):
    """Run the second notebook in `folder` and save it as `page`."""
    notebook = nbformat.read(ROOT / "Visualise_Analyse.ipynb", as_version=4)
    cells = notebook.cells
    at = next(n for n, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    shutil.copy(ROOT / "lens_utils.py", folder)
    (folder / "llava_lens").symlink_to(ROOT / "llava_lens")
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


def nothing_of(page, paths, address) -> None:
    """Open pages in Chromium and assert that nothing of a payload is there but as text."""
    for path in paths:
        page.open(path)
        links = Links()
        links.feed(page.browser.page_source)
        assert len(links.found) > 20  # it was opened
        assert ("html", "id", "marked") not in links.found
        for tag, name, value in links.found:
            if name in ("href", "src", "srcset", "action", "data", "srcdoc", "content", "style"):
                assert address not in value and "javascript:" not in value, (tag, name, value)
            assert not (name.startswith("on") and "marked" in value), (tag, name, value)


def files_in(folder):
    """The content of each file by path; links are followed to files only."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def executed(tmp_path_factory, host):
    """`(folder, page, files before, payloads)` of the second notebook, run on a stranger's results:
    payloads in all texts, and links where the notebook once wrote."""
    folder, (address, _) = tmp_path_factory.mktemp("stranger"), host
    payloads = [text.replace("MARK", MARK).replace("HOST", address) for text in PAYLOADS]
    # Each record's texts have all of them, and begin with another one.
    texts = ["\n".join(payloads[at:] + payloads[:at]) for at in range(len(payloads))]
    results, victim = save_results(folder / "results", texts, payloads), folder / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "file").write_text("precious")
    (results / "summary.csv").symlink_to(victim / "file")
    for name in ("figures", "explorer", "report"):
        (results / name).symlink_to(victim / "folder")
    before = files_in(folder)
    page = executed_page(folder, folder / "page.html", report="my/report", explorers="all")
    return folder, page, before, payloads


@pytest.mark.timeout(600)
def test_nothing_is_written_to_results_nor_through_their_links(executed):
    folder, page, before, payloads = executed
    written = {path for path, content in files_in(folder).items() if before.get(path) != content}
    written -= {page, folder / "lens_utils.py", *folder.glob("__pycache__/*")}
    assert {path.relative_to(folder).parts[0] for path in written} == {"my"}
    victim = folder / "victim"
    assert (victim / "file").read_text() == "precious" and not [*(victim / "folder").iterdir()]
    assert (folder / "my/report/summary.csv").exists()
    of_image = {"0_top1", "0_jsd_prev", "0_jsd_final", "0_entropy", "patches", "words"}
    of_all = {"settling", "mean_series", "mean_series_by_kind", "answers", "knockout"}
    of_all |= {"grounding", "gallery", "presence"}
    of_all |= {f"top_tokens_{segment}" for segment in schema.SEGMENTS}
    drawn = {path.stem for path in (folder / "my/report/figures").iterdir()}
    first = "00" + payloads[0].replace("/", "|").replace("\\", "|")
    assert drawn == {f"{first}_{name}" for name in of_image} | of_all


@pytest.mark.timeout(600)
def test_no_text_of_a_stranger_is_anything_but_text(tmp_path, host, executed, page):
    """In the second notebook's page and in all pages that it writes."""
    (address, asked), (folder, notebook, _, payloads) = host, executed
    control = tmp_path / "control.html"
    control.write_text("<p>x</p>" * 30 + payloads[1] + payloads[3])
    with pytest.raises(AssertionError):  # what is looked for can be found
        nothing_of(page, [control], address)
    assert asked == ["/image.png"]
    asked.clear()
    written = [*(folder / "my").rglob("*.html")]
    assert len(written) == len(payloads) + 1  # a page per image, and their index
    nothing_of(page, [notebook, *written], address)
    assert not asked
