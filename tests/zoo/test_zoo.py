"""Models that people have: a flat copy that is equal, training, whole int8 files, equal numbers.

`make zoo` installs what they are built with, and tells more of them (docs/zoo.md).
"""

import sys
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / ".venv" / "zoo"
MODELS = sorted(path.stem for path in (Path(__file__).parent / "models").glob("[a-z]*.py"))
# What is not reached yet, by model.
FLOAT: set[str] = set()
STEPS: dict[str, int] = {}


@pytest.fixture(scope="module", autouse=True)
def _packages():
    sys.path.append(str(PACKAGES))
    yield
    sys.path.remove(str(PACKAGES))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_of_the_zoo(name):
    from zoo.measuring import measure

    try:
        found = measure(name, ["flatten", "qat", "file", "ptq"])
    except ImportError as error:
        pytest.skip(f"{error}; run `make zoo`")
    errors = {stage: row["error"] for stage, row in found.items() if "error" in (row or {})}
    assert not errors
