"""Models that people have: a flat copy that is equal, training, whole int8 files, equal numbers.

`make zoo` installs what they are built with, and tells more of them (docs/zoo.md).
"""

import sys
from pathlib import Path

import pytest
from zoo.backbones import BUILDERS

PACKAGES = Path(__file__).parents[2] / ".venv" / "zoo"
MODELS = sorted(path.stem for path in (Path(__file__).parent / "models").glob("[a-z]*.py"))
# What is not reached yet: by model the stages that end with an error, ...
FAILED: dict[str, set[str]] = {
    "ex_kws_stream": {"prune"},  # all channels are states that go in and out
    "kf_tsmixer": {"prune"},  # its width and length are those of inputs and outputs
    "ncps_cfc": {"prune"},  # all are of a cell of the package's own
}
# ... those with operators that stay float, and by how many steps outputs differ.
FLOAT: set[str] = {
    "ex_kws_stream",
    "ncps_cfc",
    "ex_convlstm",
    "ex_seq2seq",
    "ex_imdb_mask",
    "ex_crnn_ctc",
    "kf_grn_tft",
    "ex_melcnn",
    "hub_moonshine",
}
STEPS: dict[str, int] = {
    "ex_convlstm": 3,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _packages():
    sys.path.append(str(PACKAGES))
    yield
    sys.path.remove(str(PACKAGES))


def measured(name, stages):
    from zoo.measuring import measure

    try:
        found = measure(name, stages)
    except ImportError as error:
        pytest.skip(f"{error}; run `make zoo`")
    failed = {stage: found[stage]["error"] for stage in stages if "error" in found[stage]}
    assert failed.keys() == FAILED.get(name, set()) & set(stages), failed
    return {stage: found[stage] for stage in stages if stage not in failed}


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    found = measured(name, ["flatten", "qat", "file", "ptq", "prune"])
    if "flatten" in found:
        assert found["flatten"]["difference"] <= 1e-5
    if "qat" in found:
        assert found["qat"]["finite"]
    if "file" in found:
        assert bool(found["file"]["floats"]) == (name in FLOAT)
        # LiteRT's own kernels may be apart by more.
        assert found["file"]["steps"] <= max(STEPS.get(name, 2), found["file"]["kernels"]) + 0.5
    if "prune" in found:
        assert found["prune"]["same"]
        assert found["prune"]["macs"] <= 0.5


@pytest.mark.parametrize("name", BUILDERS)
def test_backbone(name):
    assert measured(name, ["flatten"])["flatten"]["difference"] <= 1e-5
