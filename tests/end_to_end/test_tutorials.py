"""Every tutorial runs from top to bottom, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))


def test_there_are_tutorials():
    names = ("1_quantize", "2_prune_and_cluster", "3_distill", "4_deploy", "5_shrink")
    assert {f"{name}.ipynb" for name in names} <= {path.name for path in TUTORIALS}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    errors = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert not errors
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    if path.stem == "1_quantize":
        accuracy = float(printed.split("int8 file: ")[1].split("%")[0])
        assert accuracy >= 96
        assert (tmp_path / "digits_int8.tflite").exists()
    if path.stem == "2_prune_and_cluster":
        last = printed.split("int8, 80% zeros, 16 values")[1].split()
        assert int(last[1]) < 7000  # zipped, of 46,600
        assert float(last[2].rstrip("%")) >= 96
    if path.stem == "3_distill":
        alone, taught = printed.split("\nmean")[1].split()[:2]
        assert float(taught.rstrip("%")) > float(alone.rstrip("%"))
        last = printed.split("student_int8.tflite ")[1].split()
        assert int(last[0]) < 8000  # bytes, of the teacher's 229,104
        assert float(last[1].rstrip("%")) >= 95
    if path.stem == "4_deploy":
        # In a notebook, tables of rich are displayed and not printed.
        shown = "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        )
        fits, swish = shown.split("digits_edgetpu.tflite")[1].split("swish.tflite")[:2]
        assert "7 of 7 mapped" in fits
        assert "Replace hard_swish by relu6" in " ".join(swish.split())
        assert "rule check passed: True" in printed
        assert (tmp_path / "android/app/src/main/assets/digits.tflite").exists()
        assert "resolver.AddConv2D()" in printed
    if path.stem == "5_shrink":
        # The file's name, MACs, bytes, latencies and accuracy.
        table = printed.split("(float32)  accuracy\n")[1].splitlines()
        rows = {line.split()[0].removesuffix(".tflite"): line.split()[1:] for line in table}
        macs, size, correct = (
            {name: float(row[i].strip("%").replace(",", "")) for name, row in rows.items()}
            for i in (0, 1, 4)
        )
        for name in ("channels", "gradual", "low_rank", "separable", "recipe"):
            assert macs[name] <= 0.5 * macs["original"]
            assert size[name] < 0.6 * size["original"]
        for name in ("channels", "gradual", "recipe"):
            assert correct[name] >= correct["original"] - 2  # in percent, of 450 digits
        assert correct["separable"] >= 80
        assert float(printed.split("difference of the outputs: ")[1].split()[0]) <= 1e-5
        without, with_data = (
            float(printed.split(f"\n{label}")[1].split("25%: ")[1].split("%")[0])
            for label in ("without data", "with data")
        )
        assert with_data > without + 10
