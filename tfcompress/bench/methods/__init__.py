"""The methods of the benchmark: ours and those of peers."""

from __future__ import annotations

from collections.abc import Iterator

from tfcompress.bench.methods import ours, peers
from tfcompress.bench.methods.run import AEQ, CONVERTER, OURS, TFMOT, Make, Method

# What the names of their methods end with -> who.
_PEERS = {"converter": CONVERTER, "tfmot": TFMOT, "aeq": AEQ}
_PEERS |= {f"aeq_{algorithm}": AEQ for algorithm in ("mse", "octav")}


def _family(
    name: str, title: str, make: Make, *, family: str = "", short: bool = False, **theirs: Make
) -> Iterator[Method]:
    """Our method of a name, and those of peers that do the same."""
    yield Method(name, title, OURS, make, family or name, short)
    for end, their_make in theirs.items():
        yield Method(f"{name}_{end}", title, _PEERS[end], their_make, family or name, short)


_ALL = (
    *_family("float32", "float32", ours.float32, short=True),
    *_family("tuned_ptq_int8", "trained on, then PTQ int8", ours.tuned_ptq_int8, family="tuned"),
    *_family("float16", "float16 weights", ours.float16, converter=peers.float16),
    *_family(
        "dynamic_int8",
        "dynamic int8",
        ours.dynamic_int8,
        family="dynamic",
        converter=peers.dynamic_int8,
    ),
    *_family(
        "ptq_int8",
        "PTQ int8",
        ours.ptq("int8"),
        short=True,
        converter=peers.ptq_int8,
        aeq=peers.aeq(8),
    ),
    *_family(
        "ptq_best_int8",
        "PTQ int8, tuned",
        ours.ptq("int8", tune="best"),
        aeq_mse=peers.aeq(8, "MSE"),
    ),
    *_family("ptq_tensor_int8", "PTQ int8, one scale a tensor", ours.ptq("int8", **ours.TENSOR)),
    *_family(
        "ptq_tensor_best_int8",
        "PTQ int8, one scale a tensor, tuned",
        ours.ptq("int8", tune="best", **ours.TENSOR),
    ),
    *_family("qat_int8", "QAT int8", ours.qat_int8, short=True, tfmot=peers.qat_int8),
    Method(
        "stream_ptq_int8",
        "streaming, PTQ int8",
        OURS,
        ours.stream_ptq_int8,
        "stream_ptq",
        streams=True,
    ),
    Method(
        "stream_qat_int8",
        "streaming, QAT int8",
        OURS,
        ours.stream_qat_int8,
        "stream_qat",
        streams=True,
    ),
    *_family("prune50_int8", "50% zeros, int8", ours.prune_int8(0.5), tfmot=peers.prune_int8(0.5)),
    *_family(
        "prune80_int8",
        "80% zeros, int8",
        ours.prune_int8(0.8),
        short=True,
        tfmot=peers.prune_int8(0.8),
    ),
    *_family(
        "prune80_distill_int8", "80% zeros, distilled, int8", ours.prune_int8(0.8, distilled=True)
    ),
    *_family("prune90_int8", "90% zeros, int8", ours.prune_int8(0.9), tfmot=peers.prune_int8(0.9)),
    *_family(
        "cluster16_int8", "16 values, int8", ours.cluster_int8(16), tfmot=peers.cluster_int8(16)
    ),
    *_family(
        "cluster32_int8", "32 values, int8", ours.cluster_int8(32), tfmot=peers.cluster_int8(32)
    ),
    *_family(
        "pcqat_int8",
        "80% zeros, 16 values, int8",
        ours.pcqat_int8(0.8, 16),
        tfmot=peers.pcqat_int8(0.8, 16),
    ),
    *_family(
        "pcqat_distill_int8",
        "80% zeros, 16 values, distilled, int8",
        ours.pcqat_int8(0.8, 16, distilled=True),
    ),
    *_family("codebook4_int8", "4 given values, distilled, int8", ours.codebook_int8("4")),
    *_family(
        "ternary_int8",
        "-1, 0 and 1, distilled, int8",
        ours.codebook_int8("ternary", symmetric=True),
    ),
    *_family(
        "apot4_int8",
        "sums of two powers of two of 4 bits, distilled, int8",
        ours.codebook_int8("additive_power_of_two", bits=4),
    ),
    *_family("distill_int8", "distilled QAT int8", ours.distill_int8),
    *_family("channels50_int8", "half of the MACs, int8", ours.channels_int8(0.5), short=True),
    *_family(
        "channels50_distill_int8",
        "half of the MACs, distilled, int8",
        ours.channels_int8(0.5, distilled=True),
    ),
    *_family("svd_int8", "low rank, int8", ours.svd_int8(0.5)),
    *_family("svd_distill_int8", "low rank, distilled, int8", ours.svd_int8(0.5, distilled=True)),
    *_family(
        "ptq_nearest_int4",
        "PTQ, int4 weights rounded to nearest",
        ours.ptq("int4", tune="none"),
        aeq=peers.aeq(4),
    ),
    # Its GPTQ, for Dense, writes files with int4 weights that LiteRT refuses.
    *_family(
        "ptq_int4",
        "PTQ, int4 weights",
        ours.ptq("int4"),
        aeq_mse=peers.aeq(4, "MSE"),
        aeq_octav=peers.aeq(4, "OCTAV"),
    ),
    *_family("ptq_best_int4", "PTQ, int4 weights, tuned", ours.ptq("int4", tune="best")),
    *_family("mixed", "precision by layer, a quarter smaller than int8", ours.mixed),
    *_family("qat_int4", "QAT, int4 weights", ours.qat_int4),
    *_family("qat_learned_int4", "QAT, int4 weights, learned steps", ours.qat_learned_int4),
    *_family(
        "prune65_learned_int4",
        "65% zeros, int4 weights, learned steps",
        ours.prune_learned_int4(0.65),
    ),
    *_family(
        "prune75_learned_int4",
        "75% zeros, int4 weights, learned steps",
        ours.prune_learned_int4(0.75),
    ),
    *_family(
        "prune80_learned_int4",
        "80% zeros, int4 weights, learned steps",
        ours.prune_learned_int4(0.8),
    ),
    *_family(
        "prune90_learned_int4",
        "90% zeros, int4 weights, learned steps",
        ours.prune_learned_int4(0.9),
    ),
    *_family(
        "qat_learned_int3",
        "QAT, 3-bit weights, learned steps",
        ours.qat_learned_int3,
    ),
    *_family(
        "qat_learned_int2_dense",
        "QAT, int2 weights of Dense, else int4, learned steps",
        ours.qat_learned_int2_dense,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
__all__ = ["METHODS", "Method"]
