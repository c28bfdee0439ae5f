"""MLPerf Tiny v1: MobileNetV1 at width 0.25, a person or none in images 96x96x3."""

from tfcompress.bench.models import mobilenet_v1 as build  # noqa: F401
