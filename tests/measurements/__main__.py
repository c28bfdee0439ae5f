"""Carries a measurement out, or all: `python -m measurements [NAME [options]]`."""

import argparse
import importlib
import os
import subprocess
import sys

# name -> file
MEASUREMENTS = {
    "auto_budgets": "auto_budgets",
    "training_cost": "training_cost",
    "ptq_speed": "conversion",
    "equality": "conversion",
    "mask_update": "training_cost",
    "joint_quality": "training_quality",
    "distillation_cost": "training_cost",
    "distillation_quality": "distillation_quality",
    "surgery_quality": "surgery_quality",
    "channel_groups": "channel_groups",
    "few_bits": "few_bits",
    "peer_rate": "peer_rate",
    "recurrent_quality": "recurrent_quality",
    "digits_table": "digits_table",
    "architecture_search": "architecture_search",
    "engines_live": "engines_live",
    "channels_and_bits": "channels_and_bits",
    "zoo": "zoo",
}
# One needs packages that `make zoo` installs, the others take hours.
OWN_COMMANDS = ("zoo", "auto_budgets", "digits_table")


def main(arguments: list[str] | None = None) -> int:
    """Hands the options on to the measurement that is named; without a name runs all others."""
    parser = argparse.ArgumentParser(prog="python -m measurements", description=__doc__)
    parser.add_argument("name", nargs="?", choices=MEASUREMENTS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="NAME --help lists them")
    given = parser.parse_args(arguments)
    if given.name is None:
        for name in (name for name in MEASUREMENTS if name not in OWN_COMMANDS):
            subprocess.run([sys.executable, "-m", __package__, name], check=True)
        return 0
    module = importlib.import_module(f"measurements.{MEASUREMENTS[given.name]}")
    return getattr(module, given.name)(given.options)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
