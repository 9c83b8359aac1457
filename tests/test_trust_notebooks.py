"""Both notebooks among a stranger's files: where their code comes from, texts in their pages, and
where they write."""

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from llava_lens import schema
from tests import test_notebooks as notebooks
from tests.conftest import ROOT
from tests.hostile import save_results

# ---- Code from a stranger's data set ------------------------------------------------------------

PLACES = ["kaggle/working", "kaggle/input/llava-lens", "kaggle/input/datasets/someone/llava-lens"]
PLACES += [f"{place}/llava-logit-lens-main" for place in PLACES[1:]]


def first_cell(notebook):
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])


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


@pytest.fixture
def start(tmp_path):
    """Runs the notebooks' first code cell in `kaggle/working`, and `more` after it: what is
    printed, by line, and the error."""

    def start(more=""):
        cell = first_cell("Make_Analyse.ipynb")
        assert cell == first_cell("Visualise_Analyse.ipynb")
        cell = cell.replace("/kaggle", str(tmp_path / "kaggle"))
        command = [sys.executable, "-c", f"{cell}\n{more}"]
        at = tmp_path / "kaggle/working"
        done = subprocess.run(command, cwd=at, capture_output=True, text=True)
        return done.stdout.splitlines(), done.stderr

    return start


@pytest.mark.parametrize("place", PLACES)
def test_the_code_is_found_and_named_and_own_files_come_first(put, start, place):
    for where in (place, PLACES[0]):
        code = put(where, "lens_utils.py")
        said, error = start()
        assert said == [code, code], error  # it ran, and is named


def test_nothing_of_attached_results_is_imported(put, start):
    """Whatever comes first by name, and however deep; without own code there is an error."""
    names = "lens_utils.py", "llava_lens/__init__.py", "run.pkl", "json.py"
    for place in ("aaa", "datasets/someone/aaa", "make-analyse", "aaa/llava-lens/results"):
        put(f"kaggle/input/{place}", *names)
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
    shutil.copy(next(compiled.glob("json.*")), compiled.parent / "colorsys.pyc")
    said, error = start("import json, colorsys, numpy\njson.dumps, colorsys.rgb_to_hsv, numpy.ones")
    assert said == [code, code] and not error


# ---- Texts of a stranger in pages ---------------------------------------------------------------

MARK = "document.documentElement.id='marked'"
# Between one and the next stands a tilde, or a line ends.
AS_THEY_ARE = """
<script>MARK</script> ~ <img src=x onerror=MARK> ~ <svg onload=MARK>
<img src=http://HOST/image.png> ~ ![x](http://HOST/image.md) ~ [x](javascript:MARK)
[x](http://HOST/link) ~ <http://HOST/auto> ~ http://HOST/bare ~ www.HOST ~ someone@HOST
</code><script>MARK</script> ~ </script><script>MARK</script>
</style></title></textarea></pre><script>MARK</script> ~ --><script>MARK</script><!--
]]><script>MARK</script> ~ " autofocus onfocus=MARK x=" ~ ' onmouseover='MARK' x='
` <script>MARK</script> ` ~ | a | <script>MARK</script> | ~ - <script>MARK</script>
    <script>MARK</script> ~ # <script>MARK</script> ~ {{MARK}} {% raw %} ${MARK}
&lt;script&gt;MARK&lt;/script&gt; ~ &#60;script&#62;MARK&#60;/script&#62;
%3Cscript%3EMARK%3C/script%3E ~ <iframe srcdoc='<script>parent.MARK</script>'></iframe>
<iframe src=http://HOST/frame></iframe> ~ <object data=http://HOST/object></object>
<embed src=http://HOST/embed> ~ <link rel=stylesheet href=http://HOST/style>
<style>@import 'http://HOST/import';</style>
<div style='background:url(http://HOST/url)'>x</div>
<meta http-equiv=refresh content='1;url=http://HOST/meta'> ~ <base href=http://HOST/base>
<a href=javascript:MARK>x</a>
<form action=http://HOST/form><input autofocus onfocus=MARK></form>
<details open ontoggle=MARK>x</details> ~ <video><source onerror=MARK></video>
<script src=//HOST/script.js></script>
"""
PAYLOADS = [each for line in AS_THEY_ARE.splitlines()[1:] for each in line.split(" ~ ")]
PAYLOADS += [
    "```\n<script>MARK</script>\n```",
    "$$\\href{javascript:MARK}{x}$$",
    "\\(\\unicode{x}\\) $x$",
    "\\u003cscript\\u003eMARK\\u003c/script\\u003e",
    "[ref]: http://HOST/ref\n\n[ref]",
    "\x1b]8;;http://HOST/\x07x\x1b]8;;\x07 \x1b[31m<script>MARK</script>",
    "\u2028<script>MARK</script>\u202e",
]
REFERENCES = {"href", "src", "srcset", "action", "data", "srcdoc", "content", "style"}


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


def nothing_of(page, paths, address) -> None:
    """Open pages in Chromium and assert that nothing of a payload is there but as text."""
    for path in paths:
        page.open(path)
        source = page.browser.page_source
        tags = BeautifulSoup(source, "html.parser", multi_valued_attributes=None).find_all()
        found = [(tag.name, *attribute) for tag in tags for attribute in tag.attrs.items()]
        assert len(found) > 20  # it was opened
        assert ("html", "id", "marked") not in found
        for tag, name, value in found:
            if name in REFERENCES:
                assert address not in value and "javascript:" not in value, (tag, name, value)
            assert not (name.startswith("on") and "marked" in value), (tag, name, value)


def names_of(payloads):
    """All payloads, a few lines in each name; a file's name has at most 255 bytes."""
    names = [""]
    for payload in payloads:
        if names[-1] and len(f"{names[-1]}\n{payload}".encode()) > 200:
            names.append("")
        names[-1] += "\n" * bool(names[-1]) + payload
    return names


@pytest.fixture(scope="module")
def executed(tmp_path_factory, host):
    """`(folder, page, files before, names)` of the second notebook, run on a stranger's results:
    payloads in all texts, and links where the notebook once wrote."""
    folder, (address, _) = tmp_path_factory.mktemp("stranger"), host
    names = names_of([text.replace("MARK", MARK).replace("HOST", address) for text in PAYLOADS])
    # Each record's texts have all of them, and begin with its name's.
    texts = ["\n".join(names[at:] + names[:at]) for at in range(len(names))]
    results, victim = save_results(folder / "results", texts, names), folder / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "file").write_text("precious")
    (results / "summary.csv").symlink_to(victim / "file")
    for name in ("figures", "explorer", "report"):
        (results / name).symlink_to(victim / "folder")
    before = notebooks.files_under(folder)
    shutil.copy(ROOT / "lens_utils.py", folder)
    (folder / "llava_lens").symlink_to(ROOT / "llava_lens")
    notebook = notebooks.executed(
        "Visualise_Analyse.ipynb", folder, report="my/report", explorers="all"
    )
    page = folder / "page.html"
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return folder, page, before, names


@pytest.mark.timeout(600)
def test_nothing_is_written_to_results_nor_through_their_links(executed):
    folder, page, before, names = executed
    written = {
        path
        for path, content in notebooks.files_under(folder).items()
        if before.get(path) != content
    }
    written -= {page, folder / "lens_utils.py", *folder.glob("__pycache__/*")}
    assert {path.relative_to(folder).parts[0] for path in written} == {"my"}
    victim = folder / "victim"
    assert (victim / "file").read_text() == "precious" and not [*(victim / "folder").iterdir()]
    assert (folder / "my/report/summary.csv").exists()
    of_image = {"0_prompt", "patches", "words"}
    of_all = {"settling", "mean_series", "mean_series_by_kind", "answers", "knockout"}
    of_all |= {"grounding", "gallery", "presence"}
    of_all |= {f"top_tokens_{segment}" for segment in schema.SEGMENTS}
    drawn = {path.stem for path in (folder / "my/report/figures").iterdir()}
    first = "00" + names[0].replace("/", "|").replace("\\", "|")
    assert drawn == {f"{first}_{name}" for name in of_image} | of_all


@pytest.mark.timeout(600)
def test_no_text_of_a_stranger_is_anything_but_text(tmp_path, host, executed, page):
    """In the second notebook's page and in all pages that it writes."""
    (address, asked), (folder, notebook, _, names) = host, executed
    control = tmp_path / "control.html"
    found = f"<img src=x onerror={MARK}><img src=http://{address}/image.png>"
    control.write_text("<p id=x>x</p>" * 30 + found)
    with pytest.raises(AssertionError):  # what is looked for can be found
        nothing_of(page, [control], address)
    assert asked == ["/image.png"]
    asked.clear()
    written = [*(folder / "my").rglob("*.html")]
    assert len(written) == len(names) + 1  # a page per image, and their index
    nothing_of(page, [notebook, *written], address)
    assert not asked
