"""MLPerf Tiny v1: DS-CNN, keywords from MFCCs 49x10."""

from tfcompress.bench.models import ds_cnn as build  # noqa: F401
