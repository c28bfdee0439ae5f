"""Reports on results, opened in headless Chromium."""

import time

import pytest
from report_browser import NARROW, WIDE, Browser, check_page, check_plots, in_sight
from report_rows import TASKS, make_rows

from tfcompress.bench.methods import METHODS
from tfcompress.bench.report import write_results_report
from tfcompress.bench.summaries import summarize
from tfcompress.bench.tasks import TASKS as BENCH_TASKS

EVIL = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
MARKUP = "<b>a</b> &amp; <i>"  # Of plotly.


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def report(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_results_report(rows, path)
    return path


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_whole_at_any_width(browser, report, width):
    check_page(browser, report, width)
    assert check_plots(browser, ".plot") == 2 * len(TASKS)
    assert check_plots(browser, ".tall") == 2
    assert check_plots(browser, ".histogram") == 6


def test_plots_have_a_mark_for_each_method(browser, report, rows):
    browser.open(report)
    for i, task in enumerate(TASKS):
        methods = [s for s in summarize(rows) if s.task == task]
        plot = browser.one(f"#plot-{i}-zipped")
        marks = "return [...arguments[0].querySelectorAll('.point')]"
        suitable = sum(method.suits(BENCH_TASKS[task]) for method in METHODS.values())
        assert browser.run(f"{marks}.length", plot) == len(methods) == suitable
        shapes = browser.run(f"{marks}.map((e) => getComputedStyle(e).fill)", plot)
        assert len(set(shapes)) == 5  # Four makers, and float32.
        box = "getBoundingClientRect().toJSON()"
        frame = browser.run(f"return arguments[0].querySelector('.nsewdrag').{box}", plot)
        inside = [
            all(frame[side] <= mark[side] for side in ("left", "top"))
            and all(mark[side] <= frame[side] for side in ("right", "bottom"))
            for mark in browser.run(f"{marks}.map((e) => e.{box})", plot)
        ]
        below = "return arguments[0].closest('figure').querySelectorAll('ul.inline li').length"
        assert inside.count(False) == browser.run(below, plot) < len(methods) / 2
        bars = browser.run("return arguments[0].querySelectorAll('.yerror').length", plot)
        assert bars == suitable


def sorted_column(browser, index):
    values = browser.run(
        "return [...document.querySelectorAll('#task-1-table tbody tr')]"
        f".map((row) => row.cells[{index}].dataset.value)"
    )
    return [float(value) for value in values if value], values


def test_tables_are_sorted_by_click_and_by_key(browser, report):
    browser.open(report)
    headings = browser.all("#task-1-table thead th")
    names = browser.texts("#task-1-table thead th")
    zipped = next(i for i, name in enumerate(names) if name.startswith("Zipped"))
    assert {heading.get_attribute("aria-sort") for heading in headings} == {"none"}
    before, _ = sorted_column(browser, zipped)
    assert before != sorted(before)
    button = headings[zipped].find_element("css selector", "button")
    browser.run("arguments[0].click()", button)
    assert sorted_column(browser, zipped)[0] == sorted(before)
    assert headings[zipped].get_attribute("aria-sort") == "ascending"
    button.send_keys("\ue007")  # Enter
    assert sorted_column(browser, zipped)[0] == sorted(before, reverse=True)
    assert headings[zipped].get_attribute("aria-sort") == "descending"
    # The best quality comes first; another column is no longer the sorted one.
    quality = headings[2].find_element("css selector", "button")
    quality.send_keys(" ")
    found, _ = sorted_column(browser, 2)
    assert found == sorted(found, reverse=True)
    assert headings[zipped].get_attribute("aria-sort") == "none"


@pytest.mark.slow
def test_what_is_not_known_is_sorted_last(browser, report):
    browser.open(report)
    names = browser.texts("#task-1-table thead th")
    index = next(i for i, name in enumerate(names) if name.startswith("Training step"))
    button = browser.all("#task-1-table thead button")[index]
    for descending in (False, True):
        browser.run("arguments[0].click()", button)
        numbers, values = sorted_column(browser, index)
        assert 0 < len(numbers) < len(values)
        assert all(not value for value in values[len(numbers) :])
        assert numbers == sorted(numbers, reverse=descending)


@pytest.mark.slow
def test_texts_are_sorted_by_their_letters(browser, report):
    browser.open(report)
    browser.run("arguments[0].click()", browser.all("#task-0-table thead button")[1])
    makers = browser.texts("#task-0-table tbody td:nth-child(2)")
    assert makers == sorted(makers, key=str.lower)


def choose(browser, select, text):
    from selenium.webdriver.support.ui import Select

    Select(browser.one(f"#layers-{select}")).select_by_visible_text(text)


@pytest.mark.slow
def test_layers_of_the_chosen_file_are_shown(browser, report, rows):
    browser.open(report)
    choose(browser, "task", "Keywords")
    choose(browser, "file", "16 values, int8 (TFMOT)")
    line = next(
        r
        for r in rows
        if r["kind"] == "layers"
        and (r["task"], r["method"]) == ("keywords", "cluster16_int8_tfmot")
    )
    shown = [
        [text.strip() for text in browser.texts(f"#layers-table tbody tr:nth-child({i + 1}) > *")]
        for i in range(len(line["layers"]))
    ]
    assert len(browser.all("#layers-table tbody tr")) == len(line["layers"])
    layer = line["layers"][2]
    assert shown[2][:4] == [layer["name"], layer["op"], str(layer["bytes"]), str(layer["params"])]
    assert shown[2][4:8] == ["0.0", str(layer["unique"]), "8", f"{layer['sqnr_db']:.1f}"]
    assert float(shown[2][9]) == pytest.approx(layer["range"][1], rel=5e-3)
    assert shown[-1][4] == "–"
    assert "16 values, int8 (TFMOT)" in browser.texts("#layers-table caption")[0]
    weighted = [each for each in line["layers"] if each["histogram"]]
    assert browser.texts("#histograms figcaption b") == [each["name"] for each in weighted]
    assert check_plots(browser, ".histogram") == len(weighted)
    # Bars after, and the outline of float32 before.
    assert len(browser.all("#histograms .scatterlayer .js-line")) == len(weighted)
    choose(browser, "file", "float32 (tfcompress)")
    assert check_plots(browser, ".histogram") == len(weighted)
    assert browser.all("#histograms .scatterlayer .js-line") == []
    assert not browser.one("#layers-range").is_displayed()  # Floats have no ranges.
    choose(browser, "task", "Digits")
    assert browser.texts("#layers-table caption") == ["Layers of float32 (tfcompress)"]
    assert browser.errors() == []


def report_on_layers(path, count, histogram):
    """A report on one file with so many layers."""
    rows = make_rows(["digits"], ["float32"], seeds=[0])
    line = next(row for row in rows if row["kind"] == "layers")
    first = {**line["layers"][0], "histogram": histogram}
    line["layers"] = [{**first, "name": f"layer_{i}"} for i in range(count)]
    write_results_report(rows, path)


def test_histograms_are_drawn_when_they_come_into_sight(browser, tmp_path):
    report_on_layers(tmp_path / "r.html", 300, {"edges": [-1, 1], "counts": [1, 5, 2]})
    browser.open(tmp_path / "r.html")
    places = browser.all(".histogram")
    assert len(places) == 300
    drawn = "return document.querySelectorAll('.histogram.js-plotly-plot').length"
    assert browser.run(drawn) < 100
    assert in_sight(browser, places[-1]) == 3
    assert browser.run(drawn) < 200
    assert browser.errors() == []


@pytest.mark.slow
def test_colours_follow_the_theme(browser, report):
    colours = {}
    for dark in (False, True):
        check_page(browser, report, WIDE, dark)
        colours[dark] = browser.run(
            "const of = (e, name) => getComputedStyle(document.querySelector(e))[name];"
            "return [of('body', 'color'), of('body', 'backgroundColor'), "
            "of('#plot-0-zipped .xtick text', 'fill'), of('#plot-0-zipped .point', 'fill')]"
        )
    assert all(a != b for a, b in zip(colours[False], colours[True], strict=True))
    # A change while the page is open.
    light = {"name": "prefers-color-scheme", "value": "light"}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [light]})
    script = "return getComputedStyle(document.querySelector('#plot-0-zipped .point')).fill"
    until = time.monotonic() + 10
    while browser.run(script) != colours[False][3]:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_texts_stand_out_from_what_is_behind_them(browser, report):
    script = """
    const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const light = (text) => parse(text).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const seen = (name) => { const e = document.createElement('i'); document.body.append(e);
      e.style.color = `var(--${name})`; return light(getComputedStyle(e).color); };
    return arguments[0].map(([text, behind]) => { const [a, b] = [seen(text), seen(behind)];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
    """
    texts = ["ink", "quiet", "link", "bad", "good"]
    pairs = [(text, behind) for text in texts for behind in ("paper", "page", "soft")]
    marks = [(f"maker-{i}", "paper") for i in range(6)]
    for dark in (False, True):
        browser.open(report, WIDE, dark)
        contrasts = browser.run(script, pairs + marks)
        assert min(contrasts[: len(pairs)]) >= 4.5  # WCAG 2.1, AA, for texts
        assert min(contrasts[len(pairs) :]) >= 3  # for graphics


@pytest.mark.slow
def test_hostile_names_do_nothing(browser, tmp_path):
    rows = make_rows(["digits"], ["float32", "qat_int8", "qat_int8_tfmot"], seeds=[0])
    for row in rows:
        for key in ("task", "title", "who", "cpu"):
            if key in row:
                row[key] = EVIL
        if row["kind"] == "layers":
            for layer in row["layers"]:
                layer["name"] = layer["op"] = EVIL
            row["layers"][1]["name"] = MARKUP
    path = tmp_path / "report.html"
    write_results_report(rows, path)
    check_page(browser, path, NARROW)
    assert browser.run("return window.broken") is None
    # They are shown as they are, in the page and in plots.
    assert EVIL in browser.texts("#layers-table tbody th")
    ticks = browser.texts("#layers-sqnr .ytick text")
    assert ticks[0].startswith("</script>")
    assert ticks[1] == MARKUP
    assert browser.all("main img") == []


@pytest.mark.slow
def test_one_method_is_enough(browser, tmp_path):
    path = tmp_path / "report.html"
    rows = make_rows(["digits"], ["float32"], seeds=[0])
    write_results_report(rows, path)
    check_page(browser, path, NARROW)
    assert check_plots(browser, ".plot") == 2
    write_results_report([row for row in rows if row["kind"] in ("machine", "run")], path)
    check_page(browser, path, NARROW)
    assert check_plots(browser, ".plot") == 1
