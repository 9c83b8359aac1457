"""One Chromium for all tests that open a page (.ci/run installs it)."""

import csv
import io
import shutil
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,900", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def start_browser(downloads):
    """Chromium under selenium, which saves what it downloads into the folder `downloads`."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    return webdriver.Chrome(options=options, service=service)


class Page:
    """The page that is open in the browser."""

    def __init__(self, browser, downloads):
        self.browser, self.downloads = browser, downloads
        self.run = browser.execute_script

    def open(self, path, state: str = "") -> None:
        self.browser.get("about:blank")  # else a new state after # would not load the page anew
        for kind in ("browser", "performance"):
            self.browser.get_log(kind)
        self.browser.get(path.as_uri() + state)  # until all that it loads is there
        # A page of the explorer says when it is drawn.
        self.wait("!document.getElementById('data') || document.documentElement.dataset.ready")

    def wait(self, condition: str) -> None:
        """Until the JavaScript expression is true."""
        until(lambda: self.run(f"return {condition}"), condition)

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.textContent", selector)

    def texts(self, selector: str) -> list[str]:
        get = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return self.run(get, selector)

    def chain(self):
        from selenium.webdriver import ActionChains  # only where a browser has been found

        return ActionChains(self.browser, duration=0)

    def choose(self, select: str, value: str) -> None:
        self.find(f"#{select} option[value='{value}']").click()

    def mouse(self, canvas, x: float, y: float, click: bool = False) -> None:
        """Move the mouse to x, y in CSS pixels of the canvas, and click there."""
        box = "arguments[0].scrollIntoView({block: 'center', inline: 'nearest'});"
        box += "const box = arguments[0].getBoundingClientRect(); return [box.width, box.height]"
        width, height = self.run(box, canvas)
        chain = self.chain()
        chain.move_to_element_with_offset(canvas, round(x - width / 2), round(y - height / 2))
        (chain.click() if click else chain).perform()

    def at_patch(self, patch: int, click: bool = False) -> None:
        x, y, side = self.run(
            "return [...patchCorner(arguments[0], patchSide()), patchSide()]", patch
        )
        self.mouse(self.find("#photo"), x + side / 2, y + side / 2, click)

    def at_text(self, pane: str, pos: int, layer: int, click: bool = False) -> None:
        """At a cell of the text in `pane`; where it is, the page's own function says."""
        x, y = self.run(
            "const pane = panes[arguments[0]], [x, y] = pane.corner(arguments[1], arguments[2]);"
            "pane.scroller.scrollLeft = x - 200; return [x, y]",
            *(["#texts", "#second"].index(pane), pos, layer),
        )
        self.mouse(self.find(f"{pane} canvas"), x + 20, y + 8, click)

    def key(self, *names: str) -> None:
        """Press keys: letters, or names of selenium's Keys."""
        from selenium.webdriver import Keys

        self.chain().send_keys(*(getattr(Keys, name, name) for name in names)).perform()

    def hash(self) -> dict[str, str]:
        """The state in the address, once it has come to rest."""
        time.sleep(0.4)
        address = self.run("return location.hash").removeprefix("#")
        return dict(part.split("=", 1) for part in address.split("&"))

    def saved(self, button: str, ending: str) -> bytes:
        """What pressing the button saves."""
        before = set(self.downloads.glob(f"*{ending}"))
        self.find(button).click()
        until(lambda: set(self.downloads.glob(f"*{ending}")) - before, "something is saved")
        time.sleep(0.2)
        (new,) = set(self.downloads.glob(f"*{ending}")) - before
        return new.read_bytes()

    def numbers(self, shown: str) -> list[dict[str, str]]:
        """The rows that *Save CSV* saves of the patches, the word, the texts or the pins."""
        text = self.saved("#save-numbers", ".csv").decode("utf-8-sig")
        return [row for row in csv.DictReader(io.StringIO(text)) if row["shown"] == shown]


def until(holds, what: str) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, f"never true: {what}"
        time.sleep(0.05)
