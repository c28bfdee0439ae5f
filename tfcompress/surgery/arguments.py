"""What the functions of surgery take from recipes and commands, and what is wrong with a value.

Known here without Keras, so that a slip costs no seconds; the functions check again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfcompress.suggestions import expected_one_of, require_share

# Operation -> the function of tfcompress that carries it out.
OPERATIONS = {
    "channels": "prune_channels",
    "factorize": "factorize",
    "separable": "to_separable",
}
METHODS = ("svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal")
SCORES = ("l1", "l2", "bn_gamma", "fpgm", "random", "taylor", "fisher", "apoz")
SCOPES = ("global", "local", "sensitivity")

# Operation -> its arguments but for the model and the data -> what each may be: a kind that
# `_check` knows, or the words to choose from.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "channels": {
        "macs": "share",
        "params": "share",
        "sparsity": "share",
        "per_layer": "shares",
        "score": SCORES,
        "scope": SCOPES,
        "round_to": "count",
        "max_sparsity": "part",
        "keep": "names",
        "gain": ("macs", "latency"),
        "batch_size": "count",
        "samples": "count",
        "seed": "seed",
    },
    "factorize": {
        "method": METHODS,
        "rank": "rank",
        "energy": "part",
        "macs": "share",
        "params": "share",
        "layers": "layers",
        "samples": "count",
        "allow_larger": "flag",
    },
    "separable": {"layers": "layers", "depth_multiplier": "count"},
}
# Of which an operation takes exactly one, or at most one.
TARGETS = {
    "channels": ("macs", "params", "sparsity", "per_layer"),
    "factorize": ("rank", "energy", "macs", "params"),
}


def check_arguments(operation: str, given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless an operation takes these arguments.

    Args:
        operation: of `OPERATIONS`.
        given: by name.
    """
    known = ARGUMENTS[operation]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown key {name!r} in {operation}; {expected_one_of(name, known)}")
        if value is not None:
            _check(name, value, known[name])
    targets = TARGETS.get(operation, ())
    found = [name for name in targets if given.get(name) is not None]
    if len(found) > 1 or (operation == "channels" and not found):
        few = "exactly" if operation == "channels" else "at most"
        raise ValueError(
            f"{few} one of {', '.join(targets)} must be given for {operation}; received "
            f"{', '.join(found) or 'none'}. A macs of 0.5 leaves half of the MACs."
        )


def _check(name: str, value: Any, kind: Any) -> None:
    if isinstance(kind, tuple):
        if isinstance(value, str) and value not in kind:
            raise ValueError(f"{name} {value!r} is unknown; {expected_one_of(value, kind)}")
        if not isinstance(value, str) and not (name == "score" and callable(value)):
            raise ValueError(f"{name} must be one of {', '.join(kind)}; received {value!r}.")
    elif kind == "shares":
        if not isinstance(value, Mapping) or not value:
            raise ValueError(
                f"{name} must name layers and the fraction of their channels to remove; received "
                f"{value!r}. Write {{conv1: 0.5}}."
            )
        for layer, share in value.items():
            _check_number(f"{name} of {layer!r}", share, "share")
    elif kind == "rank":
        _check_rank(name, value)
    elif kind == "flag":
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; received {value!r}.")
    elif kind in ("names", "layers"):
        _check_names(name, value, or_code=kind == "layers")
    else:
        _check_number(name, value, kind)


def _check_rank(name: str, value: Any) -> None:
    ranks = value.values() if isinstance(value, Mapping) else [value]
    for rank in ranks:
        pair = isinstance(rank, list | tuple) and len(rank) == 2
        for each in rank if pair else [rank]:
            if each != "evbmf":
                _check_number(name, each, "count")


def _check_number(name: str, value: Any, kind: str) -> None:
    if kind in ("share", "part"):
        require_share(name, value, or_one=kind == "part")
        return
    least = 0 if kind == "seed" else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; received {value!r}.")


def _check_names(name: str, value: Any, or_code: bool) -> None:
    """`or_code` admits types and predicates of layers, too."""
    several = value if isinstance(value, list | tuple | set | frozenset) else [value]
    if not all((isinstance(x, str) and x) or (or_code and callable(x)) for x in several):
        raise ValueError(
            f"{name} must be names of layers or patterns such as 'conv*'; received {value!r}."
        )
