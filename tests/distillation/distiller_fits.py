"""A small Distiller, always the same, and what it is after two epochs without tricks."""

import functools

import keras
import numpy as np
import pytest
from distillation_models import X, Y, compiled, fit, pair

import tfcompress as tfc
from tfcompress import distillation as kd

LOSSES = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden", weight=0.5)]


def make(losses=LOSSES, optimizer=None, **settings):
    """Always the same Distiller."""
    distiller = tfc.Distiller(*pair(), losses)
    for layer in distiller.adapters:
        layer.kernel.assign(np.linspace(-1, 1, 32).reshape(4, 8))
    return compiled(distiller, optimizer=optimizer or keras.optimizers.Adam(0.01), **settings)


@functools.cache
def _fitted():
    distiller = make(run_eagerly=False)
    history = fit(distiller, X, Y, epochs=2)
    return distiller, history


@pytest.fixture
def trained():
    """Two epochs over X and Y as arrays, without tricks; fitted once, and only to be read."""
    return _fitted()
