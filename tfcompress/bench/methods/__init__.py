"""The methods of the benchmark: ours and those of peers."""

from __future__ import annotations

from tfcompress.bench.methods import converters, ours, tfmot
from tfcompress.bench.methods.run import AEQ, CONVERTER, OURS, TFMOT, Make, Method


def _method(name: str, title: str, who: str, make: Make, family: str = "", short=False) -> Method:
    return Method(name, title, who, make, family or name, short)


_ALL = (
    _method("float32", "float32", OURS, ours.float32, short=True),
    _method("tuned_ptq_int8", "trained on, then PTQ int8", OURS, ours.tuned_ptq_int8, "tuned"),
    _method("float16", "float16 weights", OURS, ours.float16),
    _method("float16_converter", "float16 weights", CONVERTER, converters.float16, "float16"),
    _method("dynamic_int8", "dynamic int8", OURS, ours.dynamic_int8, "dynamic"),
    _method(
        "dynamic_int8_converter", "dynamic int8", CONVERTER, converters.dynamic_int8, "dynamic"
    ),
    _method("ptq_int8", "PTQ int8", OURS, ours.ptq_int8, short=True),
    _method("ptq_int8_converter", "PTQ int8", CONVERTER, converters.ptq_int8, "ptq_int8", True),
    _method("ptq_int8_aeq", "PTQ int8", AEQ, converters.aeq_int8, "ptq_int8", True),
    _method("qat_int8", "QAT int8", OURS, ours.qat_int8, short=True),
    _method("qat_int8_tfmot", "QAT int8", TFMOT, tfmot.qat_int8, "qat_int8", True),
    _method("prune50_int8", "50% zeros, int8", OURS, ours.prune_int8(0.5)),
    _method("prune50_int8_tfmot", "50% zeros, int8", TFMOT, tfmot.prune_int8(0.5), "prune50_int8"),
    _method("prune80_int8", "80% zeros, int8", OURS, ours.prune_int8(0.8), short=True),
    _method(
        "prune80_int8_tfmot", "80% zeros, int8", TFMOT, tfmot.prune_int8(0.8), "prune80_int8", True
    ),
    _method("cluster16_int8", "16 values, int8", OURS, ours.cluster_int8(16)),
    _method(
        "cluster16_int8_tfmot", "16 values, int8", TFMOT, tfmot.cluster_int8(16), "cluster16_int8"
    ),
    _method("cluster32_int8", "32 values, int8", OURS, ours.cluster_int8(32)),
    _method(
        "cluster32_int8_tfmot", "32 values, int8", TFMOT, tfmot.cluster_int8(32), "cluster32_int8"
    ),
    _method("pcqat_int8", "80% zeros, 16 values, int8", OURS, ours.pcqat_int8(0.8, 16)),
    _method(
        "pcqat_int8_tfmot",
        "80% zeros, 16 values, int8",
        TFMOT,
        tfmot.pcqat_int8(0.8, 16),
        "pcqat_int8",
    ),
    _method("distill_int8", "distilled QAT int8", OURS, ours.distill_int8),
    _method("channels50_int8", "half of the MACs, int8", OURS, ours.channels_int8(0.5), short=True),
    _method(
        "channels50_distill_int8",
        "half of the MACs, distilled, int8",
        OURS,
        ours.channels_int8(0.5, distilled=True),
    ),
    _method("svd_int8", "low rank, int8", OURS, ours.svd_int8(0.5)),
    _method("ptq_int4", "PTQ, int4 weights", OURS, ours.ptq_int4),
    _method("ptq_int4_aeq", "PTQ, int4 weights", AEQ, converters.aeq_int4, "ptq_int4"),
    _method("qat_int4", "QAT, int4 weights", OURS, ours.qat_int4),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
__all__ = ["METHODS", "Method"]
