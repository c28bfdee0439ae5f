"""Runs in an environment of its own, with PyTorch: the channel groups that Torch-Pruning finds.

Reads `graph.json` in the folder that it is given, builds the same model, writes `answer.json`:
the groups as lists of layers, and the MACs of what uniform pruning leaves for each ratio.
"""

import copy
import json
import sys
import time
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional


class Model(nn.Module):
    """A model of the nodes of a graph, computed in their order."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes
        made = {node["name"]: _module(node) for node in nodes}
        self.parts = nn.ModuleDict({name: part for name, part in made.items() if part is not None})

    def forward(self, x):
        values = {}
        for node in self.nodes:
            given = [values[name] for name in node["inputs"]]
            values[node["name"]] = _run(node, self.parts, given) if given else x
        return values[self.nodes[-1]["name"]]


def _module(node):
    kind = node["kind"]
    if kind in ("Conv2D", "DepthwiseConv2D"):
        into, out = node["in"], node["out"]
        groups = into if kind == "DepthwiseConv2D" else 1
        settings = {"stride": node["strides"], "groups": groups, "bias": node["bias"]}
        return nn.Conv2d(into, out, node["kernel"], **settings)
    if kind == "BatchNormalization":
        return nn.BatchNorm2d(node["in"])
    return nn.Linear(node["in"], node["out"]) if kind == "Dense" else None


def _run(node, parts, given):
    kind, x = node["kind"], given[0]
    if node["name"] in parts:
        top, bottom, left, right = node.get("padding", (0, 0, 0, 0))
        return parts[node["name"]](functional.pad(x, (left, right, top, bottom)))
    if kind == "ZeroPadding2D":
        top, bottom, left, right = node["padding"]
        return functional.pad(x, (left, right, top, bottom))
    if kind == "MaxPooling2D":
        return functional.max_pool2d(x, node["kernel"], node["strides"])
    if kind == "Add":
        return given[0] + given[1]
    if kind == "GlobalAveragePooling2D":
        return x.mean((2, 3))
    return functional.relu(x) if kind in ("ReLU", "Activation") else x


def macs_of(model, x):
    """Multiply-accumulates of convolutions and linear layers for one sample."""
    found = []

    def count(module, _, y):
        found.append(module.weight.numel() * (y.shape[2:].numel() if y.ndim == 4 else 1))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(found)


def groups_of(model, x, head):
    """For each group the layers whose channels it removes, and those that read them."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    names = {part: name for name, part in model.parts.items()}
    kinds = [nn.Conv2d, nn.Linear]
    found = []
    for group in graph.get_all_groups(ignored_layers=[head], root_module_types=kinds):
        made, read = set(), set()
        for dependency, _ in group:
            name = names.get(dependency.target.module)
            if name is not None:
                out = graph.is_out_channel_pruning_fn(dependency.handler)
                (made if out else read).add(name)
        found.append([sorted(made), sorted(read)])
    return found


def main(folder: Path) -> None:
    told = json.loads((folder / "graph.json").read_text())
    model = Model(told["nodes"]).eval()
    head = model.parts[told["nodes"][-1]["name"]]
    x = torch.randn(1, *told["shape"])
    answer = {"macs": macs_of(model, x), "groups": groups_of(model, x, head), "pruned": {}}
    for ratio in told["ratios"]:
        small = copy.deepcopy(model)
        start = time.process_time()
        pruner = tp.pruner.MagnitudePruner(
            small,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[small.parts[told["nodes"][-1]["name"]]],
        )
        pruner.step()
        answer["pruned"][str(ratio)] = {
            "macs": macs_of(small, x),
            "params": sum(p.numel() for p in small.parameters()),
            "seconds": time.process_time() - start,
        }
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
