"""Results of a benchmark that never ran: what the report is tried with."""

import json
import math

import numpy as np

from tfcompress.bench.methods import METHODS
from tfcompress.bench.methods.run import OURS, TFMOT
from tfcompress.bench.tasks import TASKS as KNOWN

# name -> quality of float32, bytes of its file, milliseconds, layers
TASKS = {
    "digits": (0.98, 52_000, 0.02, 6),
    "glyphs": (0.87, 320_000, 1.1, 14),
    "keywords": (0.93, 98_000, 0.55, 12),
    "wake_word": (0.95, 192_000, 0.1, 9),
    "wake_vision": (0.91, 850_000, 0.9, 28),
    "anomaly": (0.86, 1_070_000, 0.12, 10),
}
# family -> fraction of the bytes, of these zipped, of the latency; points lost
_FAMILIES = {
    "float32": (1.0, 0.93, 1.0, 0.0),
    "tuned": (0.30, 0.85, 0.45, 0.2),
    "float16": (0.51, 0.90, 1.02, 0.0),
    "dynamic": (0.28, 0.87, 0.62, 0.1),
    "ptq_int8": (0.30, 0.85, 0.45, 0.6),
    "ptq_best_int8": (0.30, 0.85, 0.45, 0.4),
    "ptq_tensor_int8": (0.29, 0.85, 0.45, 0.9),
    "ptq_tensor_best_int8": (0.29, 0.85, 0.45, 0.5),
    "qat_int8": (0.30, 0.85, 0.45, 0.1),
    "stream_ptq": (0.35, 0.85, 0.05, 0.2),
    "stream_qat": (0.35, 0.85, 0.05, 0.1),
    "prune50_int8": (0.30, 0.60, 0.45, 0.3),
    "prune80_int8": (0.30, 0.35, 0.45, 1.2),
    "prune90_int8": (0.30, 0.30, 0.45, 2.0),
    "prune80_distill_int8": (0.30, 0.35, 0.45, 0.6),
    "cluster16_int8": (0.30, 0.42, 0.45, 0.7),
    "cluster32_int8": (0.30, 0.53, 0.45, 0.3),
    "pcqat_int8": (0.30, 0.25, 0.45, 2.2),
    "pcqat_distill_int8": (0.30, 0.25, 0.45, 1.1),
    "codebook4_int8": (0.30, 0.25, 0.45, 0.8),
    "ternary_int8": (0.30, 0.20, 0.45, 1.4),
    "apot4_int8": (0.30, 0.42, 0.45, 0.3),
    "distill_int8": (0.30, 0.85, 0.45, -0.3),
    "channels50_int8": (0.17, 0.84, 0.27, 1.4),
    "channels50_distill_int8": (0.17, 0.84, 0.27, 0.9),
    "svd_int8": (0.22, 0.85, 0.40, 1.6),
    "svd_distill_int8": (0.22, 0.85, 0.40, 0.8),
    "ptq_nearest_int4": (0.19, 0.88, 0.52, 25.0),
    "ptq_int4": (0.19, 0.88, 0.52, 1.0),
    "ptq_best_int4": (0.19, 0.88, 0.52, 0.6),
    "mixed": (0.22, 0.88, 0.5, 0.5),
    "qat_int4": (0.19, 0.86, 0.52, 0.8),
    "qat_learned_int4": (0.19, 0.86, 0.2, 0.8),
    "prune65_learned_int4": (0.18, 0.58, 0.5, 0.4),
    "prune75_learned_int4": (0.18, 0.46, 0.5, 0.5),
    "prune80_learned_int4": (0.18, 0.40, 0.5, 0.7),
    "prune90_learned_int4": (0.18, 0.35, 0.5, 0.9),
    "qat_learned_int3": (0.16, 0.86, 0.5, 0.8),
    "qat_learned_int2_dense": (0.18, 0.86, 0.6, 0.8),
}
MACHINE = {
    "kind": "machine",
    "id": "0f3a9c1e",
    "cpu": "Some Processor 9000 @ 2.90GHz",
    "cores": 2,
    "memory_gb": 7.8,
    "amx": True,
    "system": "Debian GNU/Linux 12 (bookworm), x86_64",
    "python": "3.11.2",
    "versions": {"tfcompress": "0.1.0", "tensorflow": "2.21.0", "keras": "3.15.1"},
    "started": "2026-01-05T09:30:00+00:00",
}


def make_rows(tasks=tuple(TASKS), methods=tuple(METHODS), seeds=(0, 1, 2)):
    """Lines of results, the same at each call."""
    random = np.random.default_rng(0)
    rows = [MACHINE]
    for task in tasks:
        for seed in seeds:
            made = [METHODS[name] for name in methods if METHODS[name].suits(KNOWN[task])]
            runs = [_run(task, method, seed, random) for method in made]
            rows += runs
            rows += [_latency(row, random) for row in runs]
            if seed == seeds[0]:
                rows += [_layers(row, random) for row in runs]
                rows += [_vela(row) for row in runs]
    return json.loads(json.dumps(rows))


def write_rows(path, rows):
    """The rows as `tfcompress bench` writes them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _run(task, method, seed, random):
    quality, size, _, _ = TASKS[task]
    share, packed, _, lost = _FAMILIES[method.family]
    lost = lost + 0.4 * (method.who != OURS) + random.normal(0, 0.15)
    size = int(size * share * (1.04 if method.who == TFMOT else 1) + 900)
    trained = not method.family.startswith(("float", "dynamic", "ptq", "mixed", "stream_ptq"))
    plain = 40 * random.uniform(0.95, 1.05)
    ratio = random.normal(1.45 if method.who == OURS else 1.7, 0.05) if trained else None
    return {
        "kind": "run",
        "task": task,
        "seed": seed,
        "method": method.name,
        "who": method.who,
        "family": method.family,
        "title": method.title,
        "form": "full",
        "machine": MACHINE["id"],
        "data": {"source": "generated", "digest": "5e1f" * 16},
        "tuning": {"steps": 300, "batch": 32, "rate": 0.001},
        "status": "ok",
        "error": None,
        "quality_keras": quality - (lost - 0.05) / 100,
        "quality": quality - lost / 100 + random.normal(0, 0.002),
        "measure": KNOWN[task].measure,
        "bytes": size,
        "zipped": int(size * packed * random.uniform(0.995, 1.005)),
        "params": int(size / share / 4.2),
        "macs": int(size * 12),
        "convert_s": float(random.uniform(0.5, 2.5)),
        "steps": 300 if trained else None,
        "step_cpu_ms": plain * ratio if ratio else None,
        "plain_step_cpu_ms": plain if ratio else None,
        "step_cpu_ratio": ratio,
        "peak_mb": float(random.uniform(150, 900)),
        "seconds": float(random.uniform(5, 40)),
    }


def _vela(run):
    size = run["bytes"]
    found = {"cycles": 8 * size, "sram_kib": size / 4096, "flash_kib": size / 1024, "cpu_ops": 0}
    whole = _FAMILIES[run["family"]][0] < 0.31 and run["family"] != "dynamic"
    return {**about(run, "vela"), "vela": found if whole else None}


def about(run, kind):
    """What a line of another kind says of the run that it belongs to."""
    kept = ("task", "seed", "method", "form", "machine")
    return {**{key: run[key] for key in kept}, "kind": kind}


def _latency(run, random):
    factor = _FAMILIES[run["family"]][2] * random.normal(1, 0.015)
    ms = TASKS[run["task"]][2] * factor
    found = {"ms": ms, "ratio": factor}
    return {
        **about(run, "latency"),
        **found,
        "threads": {"count": 2, "ms": 0.7 * ms, "ratio": factor},
        "no_amx": {"ms": 1.2 * ms, "ratio": 1.1 * factor},
    }


def _layers(run, random):
    count = TASKS[run["task"]][3]
    family = run["family"]
    bits = 32 if family == "float32" else 16 if family == "float16" else 8
    sparsity = 0.8 if "80" in family or "pcq" in family else 0.5 if "prune" in family else 0.0
    layers = []
    for i in range(count):
        size = 64 * (i + 2) ** 2 // 2
        high = 2.5 * math.sqrt(2 / (9 * (i + 1)))
        values = np.clip(random.normal(0, high / 2.5, size), -high, high)
        values[random.random(size) < sparsity] = 0
        if "cluster" in family or "pcq" in family:
            values = np.round(values / high * 8) * high / 8
        counts = np.histogram(values, 51, (-high, high))[0].tolist()
        layers.append(
            {
                "name": f"block_{i}_{'depthwise' if i % 2 else 'pointwise'}",
                "op": "DEPTHWISE_CONV_2D" if i % 2 else "CONV_2D",
                "bytes": size * bits // 8,
                "params": size,
                "sparsity": sparsity,
                "unique": len(np.unique(np.round(values, 2))),
                "bits": bits,
                "sqnr_db": 200.0 if bits == 32 else float(42 - i + random.normal()),
                "range": None if bits > 8 else [-0.3 * (i % 3), float(random.uniform(1, 6))],
                "histogram": {"edges": [-high, high], "counts": counts},
            }
        )
    blank = dict.fromkeys(("sparsity", "unique", "bits", "sqnr_db", "range", "histogram"))
    layers.append({"name": "softmax", "op": "SOFTMAX", "bytes": 0, "params": 0, **blank})
    return {**about(run, "layers"), "layers": layers}
