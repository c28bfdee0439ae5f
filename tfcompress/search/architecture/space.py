"""ArchitectureSpace: the smaller architectures that a user's own network holds."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import check, expected_one_of, is_whole
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph
from tfcompress.results import Change, change_lines
from tfcompress.search.architecture.blocks import stages_of, without
from tfcompress.search.architecture.kernels import (
    kernel_sizes,
    resized_inside,
    with_kernel_sizes,
)
from tfcompress.search.choices import Chooser
from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import ChannelGroup, Structure
from tfcompress.surgery.pruning.ranking import Scores, competing, kept_channels
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.scores import score_groups
from tfcompress.surgery.separable import to_separable

DIMENSIONS = ("depth", "width", "kernel", "separable", "resolution")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
RESOLUTIONS = (0.5, 0.75, 1.0)
# How many models without some blocks are held.
_HELD = 8


@dataclasses.dataclass(frozen=True)
class Shallow:
    """A model without some blocks, and which of its channels can go."""

    structure: Structure
    groups: Mapping[str, ChannelGroup]
    scores: Scores


class ArchitectureSpace:
    """Networks that are made of a user's own by leaving out, with the weights that are left.

    What can be chosen, as far as the network allows it:

    "depth:<layer>"      how many of the blocks that end with this layer and follow it stay, of
                         those that give the shape that they read: residual blocks, and convolutions
                         as many channels and places wide. The first ones stay.
    "width:<group>"      how many channels a group has, see `tfcompress.prune_channels`; the most
                         important ones stay.
    "kernel:<layer>"     the size of a convolution's kernel, cut from the middle.
    "separable:<layer>"  whether a convolution is a depthwise and a pointwise one, see
                         `tfcompress.to_separable`.
    "resolution"         the height to which the input is resized first, of networks whose weights
                         fit any, as those that end with global pooling.

    It is a function `space(choose) -> keras.Model`, as is any that `search_architecture` takes.
    Elastic depth, width, kernel and resolution are those of Cai et al. 2020 (Once-for-All,
    arXiv:1908.09791).

    Attributes:
        model: a flat copy of the user's.
        kept: what cannot be chosen, and why.
        stages: the blocks that can be left out.
        kernels: {name of a convolution: (sizes of its kernel, whether it can be split)}.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        dimensions: Iterable[str] = DIMENSIONS,
        widths: Sequence[float] = WIDTHS,
        resolutions: Sequence[float] = RESOLUTIONS,
        round_to: int = 4,
        score: Any = "l2",
        data: Any = None,
    ):
        self.dimensions = _checked(dimensions)
        for name, shares in (("widths", widths), ("resolutions", resolutions)):
            fits = len(shares) > 0 and all(0 < share <= 1 for share in shares)
            check(fits, name, "fractions in (0, 1]", shares, "1.0 is the model's own.")
        check(is_whole(round_to), "round_to", "a whole number, 1 or more", round_to)
        self.model, self.kept = opened(model), list[Change]()
        self._widths, self._round_to = sorted(set(widths)), int(round_to)
        self._score, self._data = score, data
        self._held: collections.OrderedDict[tuple[int, ...], Shallow] = collections.OrderedDict()
        graph = Graph.of(self.model)
        self.stages = stages_of(graph) if "depth" in self.dimensions else []
        self.kernels = self._kernel_sizes(graph)
        self._heights = self._resolutions(sorted(set(resolutions)))
        self._tell_kept(graph)

    @classmethod
    def of(cls, model: keras.Model, **settings: Any) -> ArchitectureSpace:
        """The space of a model.

        Args:
            model: any built Keras 3 model that `flatten` takes, best a trained one; it is left
                untouched.
            **settings: dimensions: which of "depth", "width", "kernel", "separable", "resolution"
                may be chosen (all); widths: fractions of channels (0.25, 0.5, 0.75, 1.0);
                resolutions: fractions of the height and width of the input (0.5, 0.75, 1.0);
                round_to: numbers of channels are multiples of it, or all (4); score, data: how
                important channels are, as of `tfcompress.prune_channels` ("l2").

        Returns:
            An `ArchitectureSpace`; `print` it to see what can be chosen, and what not and why.

        Raises:
            TypeError: the model is not a Keras 3 model.
            ValueError: the model is not built or is wrapped by `compress`, a setting is out of its
                range, or there is nothing to choose.

        Example:
            >>> space = ArchitectureSpace.of(model)  # doctest: +SKIP
            >>> small = space(of_picks(dict.fromkeys(space.choices(), 0)))  # doctest: +SKIP
        """
        space = cls(model, **settings)
        if not space.choices():
            raise ValueError(
                f"model '{model.name}' must have something to choose; it has not: "
                f"{'; '.join(change_lines((), space.kept[:4]))}. Pass a function "
                "build(choose) -> keras.Model instead."
            )
        return space

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """{name: options} of what is asked for where the largest option is taken everywhere."""
        found: dict[str, tuple[Any, ...]] = {}

        def choose(name: str, options: Sequence[Any]) -> Any:
            found[name] = tuple(options)
            return options[0] if name.startswith("separable:") else options[-1]

        self._plan(choose)
        return found

    def __call__(self, choose: Chooser) -> keras.Model:
        """A new model, not compiled, of what is chosen.

        Args:
            choose: `choose(name, options) -> option`, as `of_trial` and `of_picks` give it.

        Returns:
            A flat Functional `keras.Model` with weights of its own, cut from the user's.
        """
        shallow, sizes, kernels, separable, height = self._plan(choose)
        model = resized(shallow.structure, kept_channels(shallow.scores, sizes))
        if kernels:
            model = with_kernel_sizes(model, kernels)
        if separable:
            model = to_separable(model, lambda layer: layer.name in separable)
        if height is not None:
            whole = self.model.inputs[0].shape
            model = resized_inside(model, height, round(whole[2] * height / whole[1]))
        return model

    def _plan(self, choose: Chooser):
        """What is chosen: (model without blocks, sizes of groups, kernels, separable, height)."""
        kept = tuple(
            choose(f"depth:{stage[0].end}", tuple(range(len(stage) + 1))) for stage in self.stages
        )
        shallow = self.shallow(kept)
        sizes = {}
        for name, group in shallow.groups.items():
            counts = _counts(group.size, self._widths, self._round_to)
            if len(counts) > 1:
                sizes[name] = choose(f"width:{name}", counts)
        kernels, separable = {}, set()
        for node in shallow.structure.graph.nodes:
            if node.name in self.kernels and node.name not in kernels:
                options, splits = self.kernels[node.name]
                size = options[-1]
                if len(options) > 1:
                    size = choose(f"kernel:{node.name}", options)
                kernels[node.name] = size
                if splits and size > 1 and choose(f"separable:{node.name}", (False, True)):
                    separable.add(node.name)
        changed = {
            name: size for name, size in kernels.items() if size != self.kernels[name][0][-1]
        }
        height = choose("resolution", self._heights) if len(self._heights) > 1 else None
        own = self.model.inputs[0].shape[1] if height is not None else None
        return shallow, sizes, changed, separable, None if height == own else height

    def shallow(self, kept: tuple[int, ...]) -> Shallow:
        """The model with so many blocks of each stage."""
        if kept not in self._held:
            gone = [
                block for stage, n in zip(self.stages, kept, strict=True) for block in stage[n:]
            ]
            structure = Structure(without(self.model, gone) if gone else flatten(self.model))
            scores: Scores = {}
            if "width" in self.dimensions and structure.prunable():
                scores = competing(structure, score_groups(structure, self._score, self._data))
            groups = {name: structure.groups[name] for name in scores}
            self._held[kept] = Shallow(structure, groups, scores)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return self._held[kept]

    def _kernel_sizes(self, graph: Graph) -> dict[str, tuple[tuple[int, ...], bool]]:
        """{name of a convolution: (its sizes, whether it can be split)}."""
        splits = set[str]()
        if "separable" in self.dimensions:
            report = to_separable(self.model).surgery_report
            splits = {change.layer for change in report.changes}
            self.kept += [Change(f"separable:{row.layer}", row.detail) for row in report.kept]
        found = {}
        for node in graph.nodes:
            sizes = kernel_sizes(node.operation) if "kernel" in self.dimensions else ()
            if sizes or node.name in splits:
                own = max(node.operation.kernel_size)
                found[node.name] = sizes or (own,), node.name in splits
        return found

    def _resolutions(self, shares: Sequence[float]) -> tuple[int, ...]:
        """The heights to which the input can be resized."""
        if "resolution" not in self.dimensions:
            return ()
        reason = _fixed_resolution(self.model, min(shares))
        if reason is not None:
            self.kept.append(Change("resolution", reason))
            return ()
        height = self.model.inputs[0].shape[1]
        return tuple(sorted({max(1, round(height * share)) for share in shares}))

    def _tell_kept(self, graph: Graph) -> None:
        if "depth" in self.dimensions and not self.stages:
            self.kept.append(Change("depth", "no block gives the shape that it reads"))
        if "width" in self.dimensions:
            whole = self.shallow(tuple(len(stage) for stage in self.stages))
            for name, group in whole.structure.groups.items():
                if group.kept is not None:
                    self.kept.append(Change(f"width:{name}", group.kept))
        if "kernel" in self.dimensions and not any(
            len(sizes) > 1 for sizes, _ in self.kernels.values()
        ):
            self.kept.append(
                Change("kernel", "no convolution has an odd kernel and 'same' padding")
            )

    def __str__(self) -> str:
        rows = [Change(name, ", ".join(map(str, x))) for name, x in self.choices().items()]
        return "\n".join(change_lines(rows, self.kept))


def _checked(dimensions: Iterable[str]) -> tuple[str, ...]:
    names = (dimensions,) if isinstance(dimensions, str) else tuple(dimensions)
    for name in names:
        if name not in DIMENSIONS:
            raise ValueError(
                f"unknown dimension {name!r}; {expected_one_of(str(name), DIMENSIONS)}"
            )
    return names


def _counts(size: int, shares: Sequence[float], round_to: int) -> tuple[int, ...]:
    """Numbers of channels: multiples of a number, or all."""
    found = {min(size, max(1, round(size * share / round_to)) * round_to) for share in shares}
    return tuple(sorted(found))


def _fixed_resolution(model: keras.Model, share: float) -> str | None:
    """Why a model takes no smaller input; None if it does."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return "the model has not one input of images"
    _, height, width, channels = model.inputs[0].shape
    if None in (height, width, channels):
        return "the size of the images is left open"
    if any(getattr(layer, "data_format", "") == "channels_first" for layer in model.layers):
        return "channels come first"
    twin = flatten(model)
    try:
        small = resized_inside(twin, max(1, round(height * share)), max(1, round(width * share)))
    except Exception:  # whatever a layer says of a shape that it does not take
        return "its weights fit its own resolution alone"
    same = [tuple(t.shape) for t in small.outputs] == [tuple(t.shape) for t in model.outputs]
    return None if same else "its outputs have the resolution of its input"
