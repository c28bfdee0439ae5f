"""Techniques: what a recipe gives to layers."""

from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.codebook import Codebook
from tfcompress.techniques.prune import Prune
from tfcompress.techniques.quantize import Quantize
from tfcompress.techniques.regularize import GroupLasso, Regularize
from tfcompress.techniques.technique import Technique

__all__ = ["Cluster", "Codebook", "GroupLasso", "Prune", "Quantize", "Regularize", "Technique"]

# By their names in recipes, in the order in which a layer takes them, after Regularize.
TECHNIQUES: dict[str, type[Technique]] = {
    cls.__name__.lower(): cls for cls in (Prune, Cluster, Codebook, Quantize)
}
