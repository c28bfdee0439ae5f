"""Flat copies of KerasHub's backbones, where it is installed."""

import keras
import numpy as np
import pytest
from zoo_models.keras_hub_models import BUILDERS, model

from tfcompress.graph.flatten import flatten

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", BUILDERS)
def test_backbones(name):
    pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    zoo_model = model(name)
    built = zoo_model.build()
    x = zoo_model.data(3, np.random.default_rng(0))
    flat = flatten(built)
    pairs = zip(*(keras.tree.flatten(m(x, training=False)) for m in (built, flat)), strict=True)
    for ours, theirs in pairs:
        wanted = np.asarray(ours, "float64")
        np.testing.assert_allclose(np.asarray(theirs, "float64"), wanted, atol=1e-5 * wanted.std())
