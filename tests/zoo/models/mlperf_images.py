"""MLPerf Tiny v1: ResNet-8, images 32x32x3."""

from tfcompress.bench.models import resnet8 as build  # noqa: F401
