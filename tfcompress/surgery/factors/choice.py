"""Which rank each layer gets, or why it stays as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.suggestions import did_you_mean, require_share
from tfcompress.surgery.factors import ranks
from tfcompress.surgery.factors.sites import Rank, Site
from tfcompress.surgery.factors.structured import BlockSite
from tfcompress.surgery.factors.tensors import TuckerSite
from tfcompress.surgery.report import Change
from tfcompress.techniques.technique import check

_DEFAULT_ENERGY = 0.95


@dataclasses.dataclass(frozen=True)
class Goal:
    """What ranks are to reach: `kind` is "rank", "energy", "macs" or "params"."""

    kind: str
    value: Any


def goal_of(method: str, rank, energy, macs, params) -> Goal:
    """The one goal that is given.

    Raises:
        TypeError, ValueError: several are, or it is out of range.
    """
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
    """The rank of each layer where the user says it.

    Raises:
        ValueError: a rank is above full rank, or a dict names a layer that has none.
    """
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
    if isinstance(site.layer, layers.Embedding):  # a look-up takes no MACs, its factors some
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
    return goal.kind == "params" or not isinstance(site.layer, layers.Embedding)


def choose(
    sites: Sequence[Site], goal: Goal, given: Mapping[Site, Rank], total: int, larger: bool
) -> dict[Site, Rank | str]:
    """A rank for each layer, or the reason why it stays.

    Args:
        sites: the layers.
        goal: what to reach.
        given: the ranks that the user gave.
        total: MACs or parameters of the whole model, for a budget.
        larger: whether layers may get larger.
    """
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
