"""Reports in headless Chromium, driven by selenium."""

import json
import shutil
import time

import pytest

WIDE, NARROW = 1400, 400
# What is not told in the log of a page: texts that lie on one another, text outside of the page.
_OVERLAPS = """
const boxes = [...arguments[0].querySelectorAll(arguments[1])]
  .filter((e) => e.textContent.trim() && e.getClientRects().length)
  .map((e) => [e.textContent, e.getBoundingClientRect()]);
const found = [];
boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
  const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  // Boxes of letters are higher than the letters.
  if (wide > 1 && high > 4) found.push(`${one} / ${other}`);
}));
return [boxes.length, found];
"""


def require():
    """The paths of Chromium and its driver; skips the test where one is missing."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    return browser, driver


class Browser:
    """A page at a time, with what it logs and asks for."""

    def __init__(self):
        browser, driver = require()
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = browser
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        for word in [*words, "--hide-scrollbars"]:
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def close(self):
        self.driver.quit()

    def open(self, path, width=WIDE, dark=False):
        """Opens a file anew in a window of a width in pixels."""
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())

    def run(self, script, *arguments):
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        """The texts of elements, as they are in the page."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.run(script, selector)

    def overlaps(self, inside, selector):
        """How many texts there are, and which of them lie on one another."""
        return self.run(_OVERLAPS, inside, selector)

    def errors(self):
        """What the page complained of since it was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """What was asked for since the page was opened, apart from what is in the file itself."""
        entries = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e["params"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        urls = [entry["request"]["url"] for entry in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def width(self):
        """The width of the page; more than that of the window if it must be scrolled aside."""
        return self.run("return document.documentElement.scrollWidth")


def check_page(browser, path, width, dark=False):
    """Opens a report and checks what holds of each: no errors, no requests, nothing too wide."""
    browser.open(path, width, dark)
    assert browser.errors() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.width() == width
    outside = browser.run(
        "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') "
        "&& e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert outside == []


def in_sight(browser, plot):
    """Scrolls to a plot, which may be drawn only then; how many marks it has."""
    browser.run("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", plot)
    marks = "path.point, .point path, .scatterlayer .js-line"
    until = time.monotonic() + 10
    while not (
        found := browser.run(f"return arguments[0].querySelectorAll('{marks}').length", plot)
    ):
        assert time.monotonic() < until, "nothing was drawn"
        time.sleep(0.02)
    return found


def check_plots(browser, selector):
    """Every plot has marks, and texts that lie apart and within it."""
    plots = browser.all(selector)
    for plot in plots:
        assert in_sight(browser, plot) > 0
        texts = ".xtick text, .ytick text, .xtitle, .ytitle"
        count, overlaps = browser.overlaps(plot, texts)
        assert count > 0
        assert overlaps == []
        clipped = browser.run(
            "const box = arguments[0].getBoundingClientRect();"
            f"return [...arguments[0].querySelectorAll('{texts}')].filter((e) => "
            "{ const b = e.getBoundingClientRect(); return b.width && (b.left < box.left - 1 "
            "|| b.right > box.right + 1 || b.bottom > box.bottom + 1 || b.top < box.top - 1) })"
            ".map((e) => e.textContent)",
            plot,
        )
        assert clipped == []
    return len(plots)
