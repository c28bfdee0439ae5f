"""Which layer gets how much sparsity, so that together they have the one that is wanted."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from tfcompress.errors import check, fraction_meant
from tfcompress.schedules import Schedule, constant
from tfcompress.surgery.hull import Points, lower_hull

# Slopes that differ by less are the same: their layers share what is left.
_SAME = 1e-9


def allocate(
    sizes: Mapping[str, int],
    drops: Mapping[str, Mapping[float, float]],
    sparsity: float,
    max_sparsity: float,
) -> dict[str, float]:
    """The sparsity of each layer for which the sum of the predicted drops is least.

    The loss of a model grows, to first order, by the sum of what each layer adds; the largest drop
    would be the wrong measure, as it lets small layers lose as much as large ones for nothing.
    Drops are interpolated between the measured sparsities, made to grow, and replaced by their
    lower convex hull. On it the least sum is where the next weight would cost the same in every
    layer (equal slopes), and is found by taking the cheapest piece first. It is exact where drops
    are convex; elsewhere one layer may lie between two corners of its hull.

    Returns {layer: sparsity}; equally cheap layers get equal shares.
    """
    mend = fraction_meant(sparsity, "0.5 to 0.9 is usual.")
    check(0 < sparsity < 1, "sparsity", "in (0, 1)", sparsity, mend)
    check(0 < max_sparsity < 1, "max_sparsity", "in (0, 1)", max_sparsity)
    hulls = {name: lower_hull(_curve(drops[name], max_sparsity)) for name in sizes}
    total = sum(sizes.values())
    most = sum(sizes[name] * hull[-1][0] for name, hull in hulls.items()) / total
    if sparsity > most + 1e-9:
        raise ValueError(
            f"an overall sparsity of {sparsity:g} is out of reach: the layers that were scanned "
            f"reach {most:.4g} with max_sparsity={max_sparsity:g} and no more than what was "
            "measured of each. Scan higher sparsities or more layers, or want less."
        )
    pieces = sorted(
        ((d1 - d0) / ((s1 - s0) * sizes[name]), name, (s1 - s0) * sizes[name])
        for name, hull in hulls.items()
        for (s0, d0), (s1, d1) in itertools.pairwise(hull)
    )
    left, found = sparsity * total, dict.fromkeys(sizes, 0.0)
    while pieces and left > 0:
        slope = pieces[0][0]
        same = [piece for piece in pieces if piece[0] <= slope * (1 + _SAME)]
        pieces = pieces[len(same) :]
        fraction = min(1.0, left / sum(weights for _, _, weights in same))
        for _, name, weights in same:
            found[name] += fraction * weights / sizes[name]
            left -= fraction * weights
    return {name: round(share, 6) for name, share in found.items()}


def _curve(drops: Mapping[float, float], max_sparsity: float) -> Points:
    """(sparsity, drop) from (0, 0) to the largest sparsity that counts; drops never fall."""
    points = [(0.0, 0.0)]
    for sparsity, drop in sorted(drops.items()):
        s0, d0 = points[-1]
        if not math.isfinite(drop) or s0 >= max_sparsity:
            break
        if sparsity <= s0:
            continue
        reached = min(sparsity, max_sparsity)
        rise = max(drop - d0, 0.0) * (reached - s0) / (sparsity - s0)
        points.append((reached, d0 + rise))
    return points


def scaled(schedule: Schedule | None, final: float) -> Schedule:
    """A schedule stretched so that it ends with another value."""
    if schedule is None:
        return constant(final)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "schedule must be one of tfcompress.schedules, such as polynomial(0.0, 0.8, end=2000), "
            f"or None; received {schedule!r}."
        )
    check(schedule.final > 0, "the final value of schedule", "more than 0", schedule.final)
    factor = final / schedule.final
    points = tuple((step, value * factor) for step, value in schedule.points)
    return dataclasses.replace(
        schedule, initial=schedule.initial * factor, final=final, points=points
    )
