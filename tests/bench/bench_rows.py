"""Lines of results, written by hand."""

import json

from report_rows import MACHINE, about

from tfcompress.bench.methods.run import OURS


def run_row(method="qat_int8", *, task="digits", seed=0, form="full", digest="0", **more):
    named = {"kind": "run", "form": form, "task": task, "seed": seed, "method": method}
    described = {"who": "tfcompress", "family": method, "title": method, "status": "ok"}
    return {**named, **described, "machine": MACHINE["id"], "data": {"digest": digest}, **more}


def latency_row(run, ms):
    return {**about(run, "latency"), "ms": ms, "ratio": 1.0}


def layers_row(run):
    return {**about(run, "layers"), "layers": []}


def vela_row(run, figures):
    return {**about(run, "vela"), "vela": figures}


def write(path, *rows, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)


def seeds(method, quality, zipped, ratio=None, *, who=OURS, family=None, step=None, no_amx=None):
    """Lines of three seeds; a number stands for all of them."""
    rows = []
    for seed in range(3):
        values = {"quality": quality, "zipped": zipped, "step_cpu_ratio": step}
        values["keras_step_cpu_ratio"] = None if step is None else 2 * step
        values = {k: v[seed] if isinstance(v, list) else v for k, v in values.items()}
        row = run_row(method, seed=seed, **values)
        rows.append({**row, "who": who, "family": family or method})
        if ratio is not None:
            other = None if no_amx is None else {"ms": 1.0, "ratio": no_amx}
            rows.append({**latency_row(row, 1.0), "ratio": ratio, "no_amx": other})
    return rows
