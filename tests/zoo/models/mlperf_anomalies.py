"""MLPerf Tiny v1: the autoencoder of 640 mel bands."""

from tfcompress.bench.models import autoencoder as build  # noqa: F401
