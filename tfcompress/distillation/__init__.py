"""Knowledge distillation: losses between teachers and students, and models that fit by them."""

from tfcompress.distillation.distiller import Distillation, Distiller, born_again
from tfcompress.distillation.initialization import Initialization, init_from_teacher
from tfcompress.distillation.layer_losses import (
    AttentionTransfer,
    Contrastive,
    Features,
    Relational,
)
from tfcompress.distillation.losses import DistillationLoss, Regression, SoftLabels
from tfcompress.distillation.mutual import MutualDistiller
from tfcompress.distillation.self_distiller import SelfDistiller

__all__ = [
    "AttentionTransfer",
    "Contrastive",
    "Distillation",
    "DistillationLoss",
    "Distiller",
    "Features",
    "Initialization",
    "MutualDistiller",
    "Regression",
    "Relational",
    "SelfDistiller",
    "SoftLabels",
    "born_again",
    "init_from_teacher",
]
