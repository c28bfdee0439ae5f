"""The report on one model: what verify, inspect, check and the layers say is in it."""

import html
import itertools
import json
import math
import re
import shutil

import keras
import numpy as np
import pytest
from refusals import refused
from report_browser import NARROW, WIDE, Browser, check_page, check_plots
from report_pages import cells_of, data_of, run, without_scripts

import tfcompress as tfc
from tfcompress.conversion.layer_names import namer
from tfcompress.export.microcontroller.decoding import slim, weights_of, with_decoding
from tfcompress.report import model as report
from tfcompress.report.layers import layer_figures
from tfcompress.report.model import write_model_report
from tfcompress.report.page import significant
from tfcompress.targets.result import verdict_on
from tfcompress.tflite import flatbuffer
from tfcompress.verification.differences import Difference
from tfcompress.verification.verify import OutputCheck, Verification

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(qat_cnn, converted, images, tmp_path_factory):
    """A trained model, data, and files made of it."""
    folder = tmp_path_factory.mktemp("model")
    qat_cnn.save(folder / "qat.keras")
    np.save(folder / "x.npy", images[0][:40])
    shutil.copy(converted("qat", io_dtype="int8")[0], folder / "int8.tflite")
    shutil.copy(converted("float", precision="float16")[0], folder / "float16.tflite")
    return folder


@pytest.fixture(scope="module")
def float_known(folder, qat_cnn):
    """The float files of the model, which take the most time, made once."""
    return report.float_files(qat_cnn, folder / "int8.tflite")


@pytest.fixture
def quick(float_known, monkeypatch):
    """For reports on that model of which other things are asked."""
    monkeypatch.setattr(report, "float_files", lambda model, path: float_known)


@pytest.fixture(scope="module")
def text(folder, float_known, images):
    """The report on the int8 file."""
    given = (folder / "qat.keras", folder / "int8.tflite", folder / "int8.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "float_files", lambda model, path: float_known)
        size = write_model_report(*given, images[0][:40], "edge_tpu")
    assert (folder / "int8.html").stat().st_size == size
    return (folder / "int8.html").read_text()


def test_sizes_are_those_of_the_file(folder, text):
    found = tfc.inspect(folder / "int8.tflite")
    cards = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+?) *<", text))
    assert cards["File"] == f"{found.file_bytes / 1024:,.1f}"
    assert cards["Zipped"] == f"{found.zipped_bytes / 1024:,.1f}"
    assert cards["Weights"] == f"{found.weights:,}"
    assert len(text) < 8e6


def test_outputs_are_compared_as_verify_does(folder, text, qat_cnn):
    found = tfc.verify(qat_cnn, folder / "int8.tflite", np.load(folder / "x.npy"))
    _, keras_row, kernels_row = cells_of(text, "40 samples")
    (output,) = found.outputs
    assert keras_row[0] == output.name == "kind"
    for row, expected in ((keras_row, output.keras), (kernels_row, output.xnnpack)):
        assert row[2:4] == [f"{expected.max_lsb:.2f}", f"{expected.mean_lsb:.4f}"]
        assert row[5] == f"{100 * expected.agreement:.2f}"
    assert ("✓ The outputs pass" in text) == found.passed
    assert html.escape(found.rule) in text


def test_the_target_s_verdict_is_told_by_operator(folder, text):
    found = tfc.check(folder / "int8.tflite", "edge_tpu")
    rows = cells_of(text, "Operators by what the rules of edge_tpu")[1:]
    assert sum(int(row[3]) for row in rows) == len(found.operators)
    mapped = sum(int(row[3]) for row in rows if row[2].endswith("yes"))
    assert mapped == found.mapped
    # Names of layers, not of tensors.
    assert "pointwise" in " ".join(row[5] for row in rows)
    assert ";" not in " ".join(row[5] for row in rows)


def test_folders_are_not_told(folder, text):
    assert str(folder) not in without_scripts(text)


def test_what_a_target_lacks_comes_first_with_its_mend(folder, float_cnn, images, tmp_path):
    file, path = folder / "float16.tflite", tmp_path / "report.html"
    write_model_report(float_cnn, file, path, images[0][:8], "edge_tpu")
    found = tfc.check(file, "edge_tpu")
    assert not found.passed
    rows = cells_of(path.read_text(), "Operators by what")[1:]
    assert rows[0][2] == "✗ no"
    assert "✗ Does not suit" in path.read_text()
    for mend in found.mends:
        assert html.escape(mend, quote=True).replace("&#x27;", "&#39;") in path.read_text()


@pytest.mark.slow
def test_a_file_that_runs_in_parts_is_no_failure(quick, qat_cnn, images, tmp_path):
    file, path = tmp_path / "a.tflite", tmp_path / "r.html"
    tfc.convert(qat_cnn, file)
    write_model_report(qat_cnn, file, path, images[0][:8], "mobile_cpu")
    found, text = tfc.check(file, "mobile_cpu"), path.read_text()
    assert found.runs_in_parts
    assert not found.passed
    assert f"<b>Runs in parts on {found.title}</b>: {found.mapped} of" in text
    assert f"<b>{verdict_on(found)}</b>. Activations" in html.unescape(text)
    assert set(re.findall(r"[✓✗] [^<]*", without_scripts(text))) == {
        "✓ The outputs pass",
        "✓ yes",
        "✗ no",
    }


def test_layers_stand_beside_those_of_the_float_model(text):
    (task,) = data_of(text)["layers"]
    (file,) = task["files"]
    names = [layer["name"] for layer in file["layers"]]
    assert "pointwise" in names
    for layer, index in zip(file["layers"], file["before"], strict=True):
        assert (index is None) == (layer["histogram"] is None)
        if index is not None:
            before = task["before"][index]
            assert (before["name"], before["bits"]) == (layer["name"], 32)
            assert before["params"] == layer["params"]
        if layer["sqnr_db"] is not None:
            assert layer["sqnr_db"] > 10
    assert sum(layer["sqnr_db"] is not None for layer in file["layers"]) > 5


def test_latency_is_measured_beside_float32(text):
    _, this, plain = cells_of(text, "One thread")
    assert this[0] == "this file"
    assert plain[0].startswith("float32")
    assert plain[4] == "1.00"
    assert all(float(value.replace(",", "")) > 0 for value in this[1:])


def test_names_in_a_file_are_texts_and_nothing_else(quick, folder, qat_cnn, images, tmp_path):
    file = flatbuffer.read(folder / "int8.tflite")
    for i, tensor in enumerate(file.subgraphs[0].tensors):
        tensor.name = f"{EVIL}{i}"
    file.signatureDefs[0].outputs[0].name = EVIL
    (tmp_path / "a.tflite").write_bytes(flatbuffer.write(file))
    # Samples that can be gone through but once.
    samples = iter([images[0][:8]])
    write_model_report(qat_cnn, tmp_path / "a.tflite", tmp_path / "r.html", samples, "edge_tpu")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<script>") == 2
    assert "<img" not in without_scripts(text)
    assert cells_of(text, "8 samples")[1][0] == EVIL
    (task,) = data_of(text)["layers"]
    assert task["files"][0]["layers"][0]["name"].startswith(EVIL)


def test_no_more_is_taken_of_a_generator_than_is_asked_for(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((3,), name="a"), keras.Input((3,), name="b")]
    outputs = keras.layers.Dense(2)(keras.layers.Add()(inputs))
    model = keras.Model(inputs, outputs)
    tfc.convert(model, tmp_path / "a.tflite", precision="float16")
    values = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    # Lists of inputs, which in a list would be taken for one input each.
    samples = (list(values) for _ in itertools.count())
    path = tmp_path / "r.html"
    write_model_report(model, tmp_path / "a.tflite", path, samples, samples=7)
    wanted = tfc.verify(model, tmp_path / "a.tflite", list(values)).outputs[0].keras
    (row, _) = cells_of(path.read_text(), "7 samples")[1:]
    assert row[4] == significant(wanted.max_abs)
    (task,) = data_of(path.read_text())["layers"]
    assert any(layer["sqnr_db"] for layer in task["files"][0]["layers"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("ratios", "card", "cells"),
    [
        ([12.0, math.nan], ("–", ""), [("12.0", 12.0), ("–", "")]),
        ([12.0, math.inf], ("12.0", "dB"), [("12.0", 12.0), ("equal", 200.0)]),
        ([12.0, -math.inf], ("−inf", "dB"), [("12.0", 12.0), ("−inf", -200.0)]),
    ],
)
def test_ratios_that_are_no_numbers_have_their_place(ratios, card, cells, order, folder):
    found = [Difference(1.0, 0.5, 0.1, None, ratio, ratio) for ratio in ratios[::order]]
    outputs = tuple(
        OutputCheck("y", "int8", 1.0, True, each, each, True, "values", "SQNR dB", 1.0, 1.0)
        for each in found
    )
    verified = Verification("a.tflite", 1, None, False, outputs)
    (time,) = tfc.benchmark(folder / "int8.tflite", runs=1, rounds=1).files
    cards = report._cards(tfc.inspect(folder / "int8.tflite"), verified, [time])
    assert ("Outputs’ SQNR", *card) in cards
    assert [report._cells(each)[-1] for each in found] == cells[::order]


def test_a_saved_model_has_no_layers_to_compare_with(folder, float_cnn, images, tmp_path):
    float_cnn.export(str(tmp_path / "saved"), verbose=False)
    file, path = folder / "float16.tflite", tmp_path / "report.html"
    write_model_report(tmp_path / "saved", file, path, images[0][:4])
    (task,) = data_of(path.read_text())["layers"]
    assert task["before"] is None
    assert all(layer["sqnr_db"] is None for layer in task["files"][0]["layers"])
    assert len(cells_of(path.read_text(), "One thread")) == 2
    assert "before: the" not in path.read_text()


def test_what_does_not_belong_together_is_refused(folder, images, tmp_path):
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    path = tmp_path / "report.html"
    file = folder / "int8.tflite"
    refused("was made from this model", lambda: write_model_report(other, file, path, images[0]))
    refused("no file at", lambda: write_model_report(other, tmp_path / "no", path, images[0]))
    refused(
        "target",
        lambda: write_model_report(folder / "qat.keras", file, path, images[0], "no_target"),
    )
    assert not path.exists()


def test_command_writes_a_report_on_a_model(folder, tmp_path, capsys):
    path, data = tmp_path / "r.html", ["--data", folder / "x.npy", "--samples", "8"]
    given = ["report", folder / "qat.keras", folder / "int8.tflite", *data, "-o", path]
    status, out, err = run(capsys, *given, "-q", "--json", "--target", "ethos_u55")
    assert (status, err) == (0, "")
    assert json.loads(out)["bytes"] == path.stat().st_size
    assert "8 samples" in path.read_text()
    assert "Ethos-U55" in path.read_text()


def test_command_finds_slips_before_it_loads_the_model(folder, tmp_path, capsys, monkeypatch):
    from tfcompress.files import models

    monkeypatch.setattr(models, "load_model", None)  # Whoever calls it fails.
    given = ["report", folder / "qat.keras", folder / "int8.tflite", "-o", tmp_path / "r.html"]
    (tmp_path / "text.npy").write_text("text")
    for more, message in (
        (["--data", tmp_path / "text.npy"], "text.npy' starts with"),
        (["--data", folder / "x.npy", "--target", "edge_tpx"], "Did you mean 'edge_tpu'"),
    ):
        status, _, err = run(capsys, *given, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_whole_at_any_width(folder, text, width):
    browser = Browser()
    try:
        check_page(browser, folder / "int8.html", width)
        assert check_plots(browser, ".tall") == 2
        (task,) = data_of(text)["layers"]
        weighted = [each for each in task["files"][0]["layers"] if each["histogram"]]
        assert check_plots(browser, ".histogram") == len(weighted)
        outlines = browser.all("#histograms .scatterlayer .js-line")
        assert len(outlines) == len(weighted)
    finally:
        browser.close()


@pytest.mark.slow
def test_weights_in_codes_are_shown_by_the_flash_that_they_take(
    quick, float_cnn, images, converted, tmp_path, monkeypatch
):
    monkeypatch.setattr("tfcompress.export.microcontroller.decoding.OVERHEAD", 0)
    source, _ = converted("float")
    model = slim(flatbuffer.read(source), namer(float_cnn))
    kernel = next(w for w in weights_of(model) if w.layer == "pointwise")
    codes = np.where(np.arange(kernel.values.size) % 5, 0, 90).astype(np.int8)
    model.buffers[kernel.buffer].data = codes.view(np.uint8)
    chosen = [w for w in weights_of(model) if w.buffer == kernel.buffer]
    file, path = tmp_path / "coded.tflite", tmp_path / "report.html"
    file.write_bytes(flatbuffer.write(with_decoding(model, chosen)))
    write_model_report(float_cnn, file, path, images[0][:8], "microcontroller")
    text = path.read_text()
    (row,) = cells_of(text, "Constants of layers whose weights are in codes")[1:]
    layer = next(x for x in tfc.inspect(file).layer_bytes if x.code)
    numbers = (64, 2, layer.bytes, 64)
    assert row == ["pointwise", "table of 1 bit", *map(str, numbers)]
    figures = {each["name"]: each for each in layer_figures(file, float_cnn)}
    assert (figures["pointwise"]["bytes"], figures["pointwise"]["unique"]) == (layer.bytes, 2)
    assert figures["pointwise"]["sparsity"] == 0.796875
    assert "LiteRT cannot run this file" in text
