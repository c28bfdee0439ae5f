"""The ten floors of the house: a room imports only rooms on lower floors, no files in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "tfcompress"
# From the top floor down; `tfcompress` itself is the door, which imports what it is asked for.
FLOORS = [
    {"cli"},
    {"bench", "pilot"},
    {"fine_tuning", "search"},
    {"recipe", "report"},
    {"surgery", "distillation", "legacy", "verification"},
    {"conversion", "compression", "channels"},
    {"export", "quantization", "post_training"},
    {"targets", "tools", "layers"},
    {"tflite", "techniques", "graph"},
    {"files", "errors", "results", "backend", "schedules", "dispatch", "kinds", "version"},
]
FLOOR = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
# Above all floors: what begins the command line, and what tells Keras and `dispatch` what there is.
ROOF = {"__main__", "registered"}
# A visitor whose methods take each other's types: a walk over the kinds of layers and operations.
VISITOR = {f"tfcompress.channels.{x}" for x in ("following", "layers", "operations", "shapes")}
# Run in the environments of other tools, by themselves.
ELSEWHERE = "tools/drivers"


def name_of(path):
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for path in sorted(HOUSE.rglob("*.py"))
    if not path.relative_to(HOUSE).as_posix().startswith(ELSEWHERE)
}


def imports_of(path):
    """Modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


IMPORTS = {name: set(imports_of(path)) - {name} for name, path in FILES.items()}
DOOR = "tfcompress"
INSIDE = FILES.keys() - {DOOR, *(f"{DOOR}.{name}" for name in ROOF)}


def test_every_room_has_a_floor():
    rooms = {name.split(".")[1] for name in FILES.keys() - {DOOR}}
    assert rooms - ROOF == FLOOR.keys()
    assert len(FLOORS) == 10


@pytest.mark.parametrize("name", sorted(INSIDE))
def test_a_room_imports_only_rooms_on_lower_floors(name):
    room = name.split(".")[1]
    others = {other for other in IMPORTS[name] - {DOOR} if other.split(".")[1] != room}
    assert {other for other in others if FLOOR[other.split(".")[1]] >= FLOOR[room]} == set()


def test_no_room_comes_in_by_the_door():
    entering = {name.split(".")[1] for name, found in IMPORTS.items() if DOOR in found}
    assert entering == set()


def test_no_files_import_each_other_in_a_circle():
    graph = {name: found - {DOOR} for name, found in IMPORTS.items() if name != DOOR}
    for name in VISITOR:
        graph[name] -= VISITOR
    TopologicalSorter(graph).prepare()  # raises a CycleError, which names them
