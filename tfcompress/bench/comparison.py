"""What results of the benchmark say of tfcompress beside its peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tfcompress.bench.methods.run import OURS
from tfcompress.bench.summaries import FLOAT, Mean, Summary, mean_of

# As good as the float model: at most half a point below.
EQUAL = 0.005
EVEN, NOBODY = "even", "nobody"

# What is no difference: less than 0.05 points, half a percent of the size, and 5% of times, as
# equal files that take microseconds, and equal trainings, differ by nearly that.
_LEAST = {"quality": 0.0005, "zipped": 0.005}
_LEAST_OF_TIMES = 0.05

# Of one seed, which does not tell how much others scatter.
_LEAST_OF_ONE = {"quality": EQUAL}

# So many standard errors of the seeds' mean are no difference, either.
_ERRORS = 2.0
_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class Difference:
    """Ours beside a peer's, seed by seed.

    Attributes:
        value: quality: ours minus the peer's; other figures: ours divided by the peer's.
        winner: "tfcompress", the peer, or "even": two standard errors over the seeds, or less than
            what equal methods differ by.
    """

    value: Mean
    winner: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """One method of ours beside a peer's of the same family, on one task.

    Attributes:
        task, family, title: of both.
        ours, peer: names of the methods.
        who: the peer.
        quality, zipped, ratio: what differs; None where it is not known.
        step: the same of the CPU time of a training step.
    """

    task: str
    family: str
    title: str
    ours: str
    peer: str
    who: str
    quality: Difference | None
    zipped: Difference | None
    ratio: Difference | None
    step: Difference | None


@dataclasses.dataclass(frozen=True)
class Contest:
    """Our best beside the best of all peers, in one respect, on one task.

    Attributes:
        task: on which.
        what: in which respect.
        figure: that is compared.
        ours, peer: names of the methods; None where there is none.
        who: the peer.
        our_value, peer_value: of the figure.
        winner: "tfcompress", the peer, "even", or "nobody" where neither has a file that is good
            enough, or they have no seed in common.
    """

    task: str
    what: str
    figure: str
    ours: str | None
    peer: str | None
    who: str | None
    our_value: Mean | None
    peer_value: Mean | None
    winner: str


def difference(ours: Summary, peer: Summary, figure: str) -> Difference | None:
    """Compares a figure on the seeds that both have.

    Returns a `Difference`; None if they have no seed in common.
    """
    mine, theirs = (each.values.get(figure, {}) for each in (ours, peer))
    seeds = [seed for seed in mine if seed in theirs]
    if figure == "quality":
        value = mean_of(mine[seed] - theirs[seed] for seed in seeds)
        better = value.mean if value else 0.0
    else:
        value = mean_of(mine[seed] / theirs[seed] for seed in seeds if theirs[seed])
        better = 1 - value.mean if value else 0.0
    if value is None:
        return None
    least = _LEAST.get(figure, _LEAST_OF_TIMES)
    if value.count == 1:
        least = _LEAST_OF_ONE.get(figure, least)
    if abs(better) <= max(_ERRORS * value.std / value.count**0.5, least) + _SLACK:
        return Difference(value, EVEN)
    return Difference(value, OURS if better > 0 else peer.who)


def pairs(summaries: Sequence[Summary]) -> list[Pair]:
    """Ours beside each peer in every family that both are in."""
    return [
        Pair(
            ours.task,
            ours.family,
            ours.title,
            ours.method,
            peer.method,
            peer.who,
            difference(ours, peer, "quality"),
            difference(ours, peer, "zipped"),
            difference(ours, peer, "ratio"),
            difference(ours, peer, "keras_step_cpu_ratio"),
        )
        for ours in summaries
        for peer in summaries
        if (ours.task, ours.family) == (peer.task, peer.family)
        and ours.who == OURS != peer.who
        and "quality" in ours.values
        and "quality" in peer.values
    ]


def contests(summaries: Sequence[Summary]) -> list[Contest]:
    """Ours beside the best peer: see `Contest`.

    Of all files whose quality is at least that of float32 minus half a point: the smallest (zipped)
    and the fastest (beside float32; where the processor has AMX, also without it). Then the best
    file of a peer with integer weights, and our best one that is not larger (half a percent counts
    as equal). Last, what a step of QAT costs: to a plain step of Keras 3, and of the same kit.
    There is no contest where only one side has run.
    """
    found = []
    for task in dict.fromkeys(each.task for each in summaries):
        here = [each for each in summaries if each.task == task]
        found += [contest for contest in _contests(task, here) if contest is not None]
    return found


def _contests(task: str, here: list[Summary]) -> list[Contest | None]:
    # Where ours fails on a seed it is no best; of a peer the fault may be the benchmark's.
    sound = [each for each in here if not each.errors or each.who != OURS]
    small = [each for each in sound if each.family != FLOAT and "quality" in each.values]
    plain = next((each for each in here if each.family == FLOAT), None)
    equal = [each for each in small if plain and _is_equal(each, plain)]
    qat = [each for each in small if each.family == "qat_int8"]

    def least(what: str, figure: str, ran: list[Summary], fit: list[Summary]) -> Contest | None:
        if not all(_sides(ran, figure)):
            return None
        return _contest(task, what, figure, *_sides(fit, figure))

    return [
        least("size at equal quality", "zipped", small, equal),
        least("latency at equal quality", "ratio", small, equal),
        least("latency without AMX", "no_amx_ratio", small, equal),
        _quality_at_size(task, small),
        least("QAT step, to Keras's plain one", "keras_step_cpu_ratio", qat, qat),
        least("QAT step, to its own plain one", "step_cpu_ratio", qat, qat),
    ]


def _is_equal(one: Summary, plain: Summary) -> bool:
    found = difference(one, plain, "quality")
    return found is not None and found.value.mean >= -EQUAL - _SLACK


def _sides(candidates: list[Summary], figure: str) -> tuple[Summary | None, Summary | None]:
    """Who has the least of a figure: of ours, and of the peers'."""
    mine = [each for each in candidates if each.who == OURS]
    theirs = [each for each in candidates if each.who != OURS]
    return _best(mine, figure, min), _best(theirs, figure, min)


def _best(candidates: list[Summary], figure: str, choose: Callable[..., Summary]) -> Summary | None:
    known = [each for each in candidates if each.mean(figure) is not None]
    return choose(known, key=lambda each: _value(each, figure)) if known else None


def _value(one: Summary, figure: str) -> float:
    found = one.mean(figure)
    return float("nan") if found is None else found.mean


def _quality_at_size(task: str, small: list[Summary]) -> Contest | None:
    # Float files are as good as float32 whoever writes them, which tells nothing.
    sized = [each for each in small if each.family != "float16" and each.mean("zipped") is not None]
    # Of equally good ones the smaller.
    sized.sort(key=lambda each: _value(each, "zipped"))
    peer = _best([each for each in sized if each.who != OURS], "quality", max)
    if peer is None or not any(each.who == OURS for each in sized):
        return None
    limit = _value(peer, "zipped") * (1 + _LEAST["zipped"]) + _SLACK
    mine = [each for each in sized if each.who == OURS and _value(each, "zipped") <= limit]
    return _contest(task, "quality at equal size", "quality", _best(mine, "quality", max), peer)


def _contest(
    task: str, what: str, figure: str, ours: Summary | None, peer: Summary | None
) -> Contest:
    found = difference(ours, peer, figure) if ours and peer else None
    if found:
        winner = found.winner
    elif ours and not peer:
        winner = OURS
    else:
        winner = peer.who if peer and not ours else NOBODY
    return Contest(
        task,
        what,
        figure,
        ours.method if ours else None,
        peer.method if peer else None,
        peer.who if peer else None,
        ours.mean(figure) if ours else None,
        peer.mean(figure) if peer else None,
        winner,
    )
