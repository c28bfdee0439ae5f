"""Files of models whose configuration was changed by hand, or by chance."""

import json
import time
import zipfile

import h5py
import numpy as np
from refusals import damaged


def rewritten(source, target, change):
    """A copy of a .keras or .h5 file, its configuration being what `change` makes of it."""
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = change(json.loads(parts["config.json"]))
        parts["config.json"] = config if isinstance(config, str) else json.dumps(config)
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
    else:
        target.write_bytes(source.read_bytes())
        with h5py.File(target, "a") as file:
            config = change(json.loads(file.attrs["model_config"]))
            file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
    return target


def layers_of(config):
    """The layers of a whole model's configuration, input layers left out."""
    return [x for x in config["config"]["layers"] if x["class_name"] != "InputLayer"]


_VALUES = [None, -1, 0, 2, 10**6, 1e300, "x", "relu", [], {}, [1, 2], True, "x" * 1000]
_VALUES.append({"class_name": "Dense", "config": {}})


def _places(value):
    """Everything in a configuration, as (where, key)."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys if isinstance(value, (dict, list)) else ():
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def refusals_by_chance(load, source, folder, count):
    """What is said of copies of a file that are damaged, or whose configuration is odd.

    Only a ValueError may come out, soon and in few words.
    """
    random = np.random.default_rng(0)

    def change(config):
        for _ in range(random.integers(1, 3)):
            places = list(_places(config))
            where, key = places[random.integers(len(places))]
            where[key] = _VALUES[random.integers(len(_VALUES))]
        return config

    messages, path = [], folder / f"odd{source.suffix}"
    for number, copy in enumerate(damaged(source.read_bytes(), count)):
        path.write_bytes(copy)
        if number % 2 and source.suffix in (".keras", ".h5"):
            rewritten(source, path, change)
        start = time.monotonic()
        try:
            load(path)
        except ValueError as error:
            messages.append(str(error))
        assert time.monotonic() - start < 20
    assert all(len(message) < 1000 for message in messages)
    return messages
