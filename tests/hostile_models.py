"""Files of models whose configuration was changed by hand."""

import json
import zipfile

import h5py


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
