"""Knowledge distillation: losses between teachers and students, and models that fit by them."""

from tfcompress.distillation.distiller import Distiller
from tfcompress.distillation.feature_losses import AttentionTransfer, Features
from tfcompress.distillation.generations import born_again
from tfcompress.distillation.initialization import Initialization, init_from_teacher
from tfcompress.distillation.losses import DistillationLoss, Regression, SoftLabels
from tfcompress.distillation.mutual import MutualDistiller
from tfcompress.distillation.sample_losses import Contrastive, Relational
from tfcompress.distillation.self_distiller import SelfDistiller
from tfcompress.distillation.settings import Distillation

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
