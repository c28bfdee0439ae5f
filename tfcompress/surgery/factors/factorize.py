"""factorize: layers taken apart into smaller ones, by low rank or by structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras

from tfcompress.data import batches
from tfcompress.graph import Graph, Node
from tfcompress.suggestions import expected_one_of
from tfcompress.surgery.factors.choice import (
    Goal,
    choose,
    energy_words,
    goal_of,
    ranks_given,
    require_reachable,
)
from tfcompress.surgery.factors.layers import call_parts, kernel_of
from tfcompress.surgery.factors.moments import gather
from tfcompress.surgery.factors.search import METHODS, Wanted, find_sites
from tfcompress.surgery.factors.sites import Rank, Site
from tfcompress.surgery.factors.svd import SvdSite
from tfcompress.surgery.macs import count
from tfcompress.surgery.model import exchanged, opened
from tfcompress.surgery.report import Change, SurgeryReport, with_report
from tfcompress.techniques.technique import check

Method = Literal["svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal"]


def factorize(
    model: keras.Model,
    method: Method = "svd",
    *,
    rank: int | tuple[int, int] | Mapping[str, Any] | Literal["evbmf"] | None = None,
    energy: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    layers: Wanted = None,
    data: Any = None,
    samples: int | None = 1024,
    allow_larger: bool = False,
) -> keras.Model:
    """Takes layers apart into smaller ones that together compute nearly the same.

    Methods, and what a layer `name` becomes (its last part keeps name, bias and activation):
        "svd": Dense, EinsumDense and Embedding become two; a convolution becomes one of as many
            filters as the rank, and a 1x1 convolution (Zhang et al. 2016, arXiv:1505.06798).
        "tucker": a convolution becomes a 1x1 one, a small one and a 1x1 one (Tucker-2, Kim et al.
            2016, arXiv:1511.06530).
        "cp": a Conv1D or Conv2D becomes a 1x1 one, a depthwise one and a 1x1 one (Lebedev et al.
            2015, arXiv:1412.6553, of which the kx1 and 1xk depthwise ones are one kxk here). It
            mostly needs fine-tuning. Factors are searched for some seconds a layer at most.
        "spatial_svd": a Conv2D becomes a kx1 and a 1xk one (Jaderberg et al. 2014,
            arXiv:1405.3866).
        "kronecker": a Dense becomes a sum of Kronecker products (Van Loan & Pitsianis 1993).
        "block_diagonal": a Dense becomes diagonal blocks, a convolution a grouped one, of inputs
            and outputs in the best order. Here `rank` is the number of blocks; 1 is exact.
    The last two keep what has that structure and lose the rest: unless the kernel is so by
    itself, the model must be fine-tuned.

    Layers inside of others (attention, RNNs, TimeDistributed), grouped, depthwise and transposed
    convolutions stay. So does a layer that would get no smaller in MACs and parameters (an
    Embedding: in parameters). A layer that is called several times is taken apart once.

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched.
        method: see above.
        rank: an integer for all layers, at most the full rank of one (the others get theirs);
            {name of a layer in the flat model: rank}; for "tucker" also pairs (out, in); or
            "evbmf", what stands out of noise (Nakajima et al. 2013, JMLR 14).
        energy: the share of the squared singular values that each layer keeps at least; of the
            squared kernel with "cp" and "block_diagonal". 0.95 if nothing else is given.
        macs: the share of the whole model's MACs that may remain, such as 0.5. Layers share it so
            that the product of the energies they keep is large.
        params: likewise of the parameters.
        layers: which layers: a pattern, type or predicate as of `Rule`, or a list of these.
        data: for "svd": samples in any form that `fit` takes as x. Then that rank is found which
            changes the layer's outputs the least on these (SVD-LLM, Wang et al. 2024,
            arXiv:2403.07378), and energy is that of the outputs.
        samples: at most so many of `data` are read; None takes all.
        allow_larger: whether a layer may get larger. With energy=1 the new model then equals the
            old one up to rounding.

    Returns:
        A new flat Functional `keras.Model`, not compiled. `print(new.surgery_report)` tells what
        was done.

    Raises:
        TypeError: an argument is of another type, or the model is no Keras 3 model.
        ValueError: an argument is out of range, a rank is above full rank, a budget cannot be
            reached, no layer fits, the data does not, or the model is not built or is wrapped by
            `compress`.

    Example:
        >>> x = keras.Input((64,))
        >>> model = keras.Model(x, keras.layers.Dense(64, name="wide")(x))
        >>> small = factorize(model, rank=8)
        >>> [layer.name for layer in small.layers[1:]], small.count_params()
        (['wide_in', 'wide'], 1088)
    """
    goal = _checked(method, rank, energy, macs, params, data, samples)
    flat = opened(model)
    graph, before = Graph.of(flat), count(flat)
    if layers is None and isinstance(rank, Mapping):
        layers = list(rank)
    sites, kept = find_sites(flat, graph, method, layers)
    given = ranks_given(sites, kept, rank) if goal.kind == "rank" else {}
    total = before[0] if goal.kind == "macs" else before[1]
    if goal.kind in ("macs", "params"):
        require_reachable(sites, goal, total)
    if data is not None:
        svd = [site for site in sites if isinstance(site, SvdSite)]
        gather(graph, svd, batches(data, flat.inputs, samples))
    chosen = choose(sites, goal, given, total, allow_larger)
    stay = [Change(site.layer.name, x) for site, x in chosen.items() if isinstance(x, str)]
    new, changes = _rebuilt(graph, {s: x for s, x in chosen.items() if not isinstance(x, str)})
    macs_and_params = zip(before, count(new), strict=True)
    report = SurgeryReport("factorize", changes, (*stay, *kept), *macs_and_params)
    return with_report(new, report)


def _checked(method, rank, energy, macs, params, data, samples) -> Goal:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {expected_one_of(str(method), METHODS)}")
    if data is not None and method != "svd":
        raise ValueError(
            f"data weights the singular values of method='svd'; received method='{method}'. Leave "
            "data out."
        )
    whole = isinstance(samples, int) and not isinstance(samples, bool) and samples > 0
    check(samples is None or whole, "samples", "an integer of 1 or more, or None", samples)
    return goal_of(method, rank, energy, macs, params)


def _rebuilt(graph: Graph, chosen: Mapping[Site, Rank]) -> tuple[keras.Model, tuple[Change, ...]]:
    """The model with layers taken apart, and what was done."""
    sites = {id(site.layer): site for site in chosen}
    made: dict[int, Sequence[Callable]] = {}
    changes = []

    def call(node: Node, *args, **kwargs):
        operation = node.operation
        site = sites.get(id(operation))
        if site is None:
            return operation(*args, **kwargs)
        x = args[0] if args else kwargs["inputs"]
        if id(operation) in made:
            for part in made[id(operation)]:
                x = part(x)
            return x
        parts, kept = site.parts(chosen[site])
        made[id(operation)] = [part.call for part in parts]
        detail = f"{site.text(chosen[site])}, {energy_words(site, kept)}"
        changes.append(Change(operation.name, detail))
        return call_parts(parts, x, bool(kernel_of(operation).trainable))

    return exchanged(graph, call), tuple(changes)
