"""factorize: layers taken apart into smaller ones, by low rank or by structure."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras.layers import BatchNormalization

from tfcompress.errors import check, did_you_mean, expected_one_of, is_whole, require_share
from tfcompress.files.samples import batches
from tfcompress.graph.nodes import Graph
from tfcompress.post_training.batch_norm import reestimate_batch_norm
from tfcompress.post_training.drift import MOST, drift, outputs_of
from tfcompress.surgery.base import Change, Wanted, opened, reported
from tfcompress.surgery.factors import ranks
from tfcompress.surgery.factors.layers import Part, with_parts
from tfcompress.surgery.factors.search import METHODS, find_sites, without_separable
from tfcompress.surgery.factors.sites import Rank, Site
from tfcompress.surgery.factors.structured import BlockSite
from tfcompress.surgery.factors.svd import SvdSite
from tfcompress.surgery.factors.tensors import TuckerSite
from tfcompress.surgery.factors.weighing import (
    ENOUGH,
    Samples,
    count_of,
    gather,
    weigh,
)
from tfcompress.surgery.macs import count

Method = Literal["svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal"]


def factorize(
    model: keras.Model,
    method: Method = "svd",
    *,
    rank: int | tuple[int, int] | Mapping[str, Any] | Literal["evbmf"] | None = None,
    energy: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    layers: Wanted | Sequence[Wanted] | None = None,
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

    Of a separable convolution "svd" and "block_diagonal" take the pointwise part apart, which
    keeps its name. Layers inside of others (attention, RNNs, TimeDistributed), grouped, depthwise
    and transposed convolutions stay. So does a layer that would get no smaller in MACs and
    parameters (an Embedding: in parameters). A layer that is called several times is taken apart
    once.

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
        data: for "svd": samples in any form that `fit` takes as x. Then factors are found which
            change the layer's outputs the least on these (SVD-LLM, Wang et al. 2024,
            arXiv:2403.07378), where errors count by what they do to the outputs of the model, and
            energy is that of the outputs so counted. Biases make up for what is left out of their
            mean, and BatchNormalization gets the statistics of what it is given now.
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
    before = count(flat)
    if layers is None and isinstance(rank, Mapping):
        layers = list(rank)
    flat, layers = without_separable(flat, method, layers)
    graph = Graph.of(flat)
    sites, kept = find_sites(flat, graph, method, layers)
    given = ranks_given(sites, kept, rank) if goal.kind == "rank" else {}
    total = before[0] if goal.kind == "macs" else before[1]
    if goal.kind in ("macs", "params"):
        require_reachable(sites, goal, total)
    held: Samples = []
    if data is not None:
        svd = [site for site in sites if isinstance(site, SvdSite)]
        held = gather(graph, svd, batches(data, flat.inputs, samples))
        weigh(graph, svd, held)
    chosen = choose(sites, goal, given, total, allow_larger)
    stay = [Change(site.layer.name, x) for site, x in chosen.items() if isinstance(x, str)]
    parts: dict[int, list[Part]] = {}
    changes = []
    for site, found in chosen.items():
        if not isinstance(found, str):
            parts[id(site.layer)], energy = site.parts(found)
            detail = f"{site.text(found)}, {energy_words(site, energy)}"
            changes.append(Change(site.layer.name, detail))
    starts = [tensor.name for tensor in keras.tree.flatten(flat._inputs_struct)]
    # Fewer samples do not tell.
    enough = count_of(held) >= ENOUGH
    judged = [[batch[name] for name in starts] for batch in held] if enough else []
    outputs = outputs_of(flat, judged)
    new = with_parts(graph, parts)
    if enough and any(isinstance(x, BatchNormalization) for x in new.layers):
        new = reestimate_batch_norm(new, held, samples=None, reference=model)
    if enough:
        _warn_of(drift(outputs, outputs_of(new, judged)), goal)
    return reported(new, "factorize", changes, (*stay, *kept), before)


def _warn_of(lost: float, goal: Goal) -> None:
    """Warns of a cut after which outputs differ more than a short training brings back."""
    if lost <= MOST:
        return
    mend = "Keep more of the layers"
    if goal.kind in ("macs", "params"):
        mend = (
            f"Where layers have as many inputs as outputs, tfcompress.prune_channels(model, "
            f"{goal.kind}={goal.value:g}) often keeps more; else ask for more than "
            f"{goal.kind}={goal.value:g}"
        )
    warnings.warn(
        f"on the data the outputs of the new model differ from the old ones by {lost:.0%} of their "
        f"variance; expected at most {MOST:.0%}, as a short training does not bring back "
        f"more. {mend}.",
        stacklevel=3,
    )


def _checked(method, rank, energy, macs, params, data, samples) -> Goal:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {expected_one_of(str(method), METHODS)}")
    if data is not None and method != "svd":
        raise ValueError(
            f"data weights the singular values of method='svd'; received method='{method}'. Leave "
            "data out."
        )
    fits = samples is None or is_whole(samples)
    check(fits, "samples", "an integer of 1 or more, or None", samples)
    return goal_of(method, rank, energy, macs, params)


_DEFAULT_ENERGY = 0.95


@dataclasses.dataclass(frozen=True)
class Goal:
    """What ranks are to reach: `kind` is "rank", "energy", "macs" or "params"."""

    kind: str
    value: Any


def goal_of(method: str, rank, energy, macs, params) -> Goal:
    """The one goal that is given."""
    given = {"rank": rank, "energy": energy, "macs": macs, "params": params}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            "expected one of rank, energy, macs and params; received "
            f"{', '.join(f'{name}={value!r}' for name, value in given.items())}. Keep one of them."
        )
    kind, value = next(iter(given.items()), ("energy", _DEFAULT_ENERGY))
    if kind == "rank":
        _check_rank(method, value)
    else:
        require_share(kind, value, or_one=kind == "energy")
    return Goal(kind, value)


def _check_rank(method: str, rank) -> None:
    if isinstance(rank, str):
        mend = did_you_mean(rank, ["evbmf"])
        check(rank == "evbmf", "rank", "an integer, a dict or 'evbmf'", rank, mend)
        if method in ("cp", "block_diagonal"):
            raise ValueError(
                f"rank='evbmf' is for ranks of matrices; received method='{method}'. Give rank as "
                "an integer, or energy, macs or params."
            )
        return
    for value in rank.values() if isinstance(rank, Mapping) else [rank]:
        pair = isinstance(value, tuple | list) and len(value) == 2 and method == "tucker"
        for number in value if pair else (value,):
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                forms = "an integer, a dict {layer: rank} or 'evbmf'"
                forms += ", or a pair (out, in)" if method == "tucker" else ""
                raise TypeError(f"rank must be {forms}; received {rank!r}.")
            check(bool(number >= 1), "rank", "1 or more", rank)


def ranks_given(sites: Sequence[Site], kept: Sequence[Change], rank) -> dict[Site, Rank]:
    """The rank of each layer where the user says it."""
    if rank == "evbmf":
        return {}
    if not isinstance(rank, Mapping):
        if all(_clipped(site, rank) != _exactly(site, rank) for site in sites):
            widest = max(sites, key=lambda site: _most(site.full))
            raise ValueError(
                f"rank must be at most the full rank of some layer; received {rank!r}. The largest "
                f"is that of '{widest.layer.name}', {widest.full}."
            )
        return {site: _clipped(site, rank) for site in sites}
    by_name = {site.layer.name: site for site in sites}
    reasons = {change.layer: change.detail for change in kept}
    found = {}
    for name, value in rank.items():
        if name not in by_name:
            mend = did_you_mean(str(name), by_name, f"These can: {', '.join(by_name)}.")
            why = f" cannot be taken apart: {reasons[name]}" if name in reasons else " is none"
            raise ValueError(
                f"rank must name layers that the method can take apart; {name!r}{why}. {mend}"
            )
        site = by_name[name]
        if _clipped(site, value) != _exactly(site, value):
            what = "a divisor of" if isinstance(site, BlockSite) else "at most"
            raise ValueError(
                f"the rank of layer '{name}' must be {what} {site.full}, its full rank; received "
                f"{value!r}."
            )
        found[site] = _clipped(site, value)
    return found


def _exactly(site: Site, rank) -> Rank:
    """A rank in the form that a layer has it."""
    if isinstance(site, TuckerSite):
        out, into = rank if isinstance(rank, tuple | list) else (rank, rank)
        return int(out), int(into)
    return int(rank)


def _clipped(site: Site, rank) -> Rank:
    """The nearest rank that a layer can have, none larger."""
    full, rank = site.full, _exactly(site, rank)
    if isinstance(full, tuple):
        out, into = rank
        return min(int(out), full[0]), min(int(into), full[1])
    assert isinstance(rank, int)
    if isinstance(site, BlockSite):
        return max(i for i in range(1, min(rank, full) + 1) if full % i == 0)
    return min(rank, full)


def _most(rank: Rank) -> int:
    return max(rank) if isinstance(rank, tuple) else rank


def why_larger(site: Site, rank: Rank) -> str | None:
    """Why a layer is better left as it is than taken apart; None if it gets smaller."""
    own, new = site.own_cost, site.cost(rank)
    if isinstance(site.layer, keras.layers.Embedding):  # a look-up takes no MACs, its factors some
        smaller = new.params < own.params
    else:
        smaller = new.macs <= own.macs and new.params <= own.params and new != own
    if smaller:
        return None
    return (
        f"{site.text(rank)} would make it no smaller: MACs {own.macs:,} -> {new.macs:,}, params "
        f"{own.params:,} -> {new.params:,}"
    )


def require_reachable(sites: Sequence[Site], goal: Goal, total: int) -> None:
    """Raises a ValueError if the budget is below what the layers take at the least rank."""
    saved = sum(
        getattr(site.own_cost, goal.kind) - getattr(site.cost(site.least), goal.kind)
        for site in sites
        if _saves(site, goal) and why_larger(site, site.least) is None
    )
    least = math.ceil((total - saved) / max(total, 1) * 10000) / 10000
    if least >= 1:
        why = f"a share that can be reached: no layer here has fewer {goal.kind} once taken apart"
        check(False, goal.kind, why, goal.value)
    mend = "Ask for more, or take more layers in."
    what = f"{least:g} or more, which the least rank in all {len(sites)} layers here reaches"
    check(total - saved <= goal.value * total, goal.kind, what, goal.value, mend)


def _saves(site: Site, goal: Goal) -> bool:
    return goal.kind == "params" or not isinstance(site.layer, keras.layers.Embedding)


def choose(
    sites: Sequence[Site], goal: Goal, given: Mapping[Site, Rank], total: int, larger: bool
) -> dict[Site, Rank | str]:
    """A rank for each layer, or the reason why it stays."""
    if goal.kind in ("macs", "params"):
        return _within_budget(sites, goal, total)
    found: dict[Site, Rank | str] = {}
    for site in sites:
        if goal.kind == "energy":
            rank = site.rank_for(goal.value)
        elif goal.value == "evbmf":
            rank = site.noiseless()
        elif site in given:
            rank = given[site]
        else:
            continue
        reason = None if larger else why_larger(site, rank)
        found[site] = rank if reason is None else reason
    return found


def _within_budget(sites: Sequence[Site], goal: Goal, total: int) -> dict[Site, Rank | str]:
    found: dict[Site, Rank | str] = {}
    options, costs, lost = [], [], []
    sharing = [site for site in sites if _saves(site, goal)]
    for site in sites:
        if site not in sharing:
            found[site] = "its look-ups take no MACs"
    for site in sharing:
        every, losses = site.ladder
        places = [i for i, rank in enumerate(every) if why_larger(site, rank) is None]
        kept = [getattr(site.cost(every[i]), goal.kind) for i in places]
        options.append([every[i] for i in places])
        costs.append(np.array([*kept, getattr(site.own_cost, goal.kind)]))
        lost.append(np.append(losses[places], 0.0))
    others = total - sum(int(cost[-1]) for cost in costs)
    chosen = ranks.share(costs, lost, math.floor(goal.value * total) - others)
    for site, ladder, option in zip(sharing, options, chosen, strict=True):
        whole = option == len(ladder)
        found[site] = "whole: the budget is better spent on it" if whole else ladder[option]
    return found


def energy_words(site: Site, kept: float) -> str:
    """How much of a layer's energy is kept, in words."""
    on_data = " on the data" if site.moment else ""
    share = f"{kept:.1%}" if kept < 0.9995 else f"{kept:.4%}"
    return f"{share} of its energy{on_data}"
