"""The target files and what loads them."""

import copy
import json
import pickle
import pkgutil
import shutil
from pathlib import Path

import jsonschema
import pytest

from tfcompress.targets.targets import list_targets, load_target
from tfcompress.tools.accept import TOOLS

TARGETS = Path(__file__).parents[2] / "tflite_targets"
NAMES = """edge_tpu ethos_u55 ethos_u65 ethos_u85 mediapipe microcontroller mobile_cpu mobile_gpu
web""".split()


def test_list_targets_names_every_file_but_the_schema():
    assert list_targets() == NAMES
    assert {path.stem for path in TARGETS.glob("*.json")} == {*NAMES, "schema"}


@pytest.mark.parametrize("name", NAMES)
def test_target_file_fits_the_schema(name):
    schema = json.loads((TARGETS / "schema.json").read_text())
    values = json.loads((TARGETS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(values)
    assert values["name"] == name
    assert values["precision"] in values["precisions"]
    load_target(name)


def test_edge_tpu_values():
    target = load_target("edge_tpu")
    assert target.weights.bits == 8
    assert target["weights"]["granularity"]["dense"] == "per-tensor"
    assert target.io_dtypes == ("int8", "uint8")
    assert target.shapes.inner_dims == 3
    assert target.memory.sram_bytes == 8 * 1024 * 1024


def test_target_is_read_only_and_can_be_copied():
    target = load_target("ethos_u55")
    with pytest.raises(AttributeError):
        target.precision = "int4"
    with pytest.raises(TypeError):
        target["precision"] = "int4"
    assert copy.deepcopy(target) == pickle.loads(pickle.dumps(target)) == target


def test_misspelt_target_names_the_close_match():
    with pytest.raises(ValueError, match=r"'edgetpu'.*microcontroller.*Did you mean 'edge_tpu'\?"):
        load_target("edgetpu")


@pytest.mark.parametrize("name", ["Edge_TPU", "EDGE_TPU", "Edgetpu"])
def test_large_letters_do_not_hide_the_close_match(name):
    with pytest.raises(ValueError, match=r"Did you mean 'edge_tpu'\?"):
        load_target(name)


def test_what_is_no_name_at_all():
    for wrong in (None, 3, ["edge_tpu"]):
        with pytest.raises(TypeError, match=r"target: received .*expected a name or the path"):
            load_target(wrong)


def test_mends_serve_python_and_the_command_line():
    options = ("precision", "io_dtype", "batch_size", "dense")
    for target in map(load_target, NAMES):
        mends = [*target.mends.values(), *target.replacements.values()]
        mends += [limit.mend for limit in target.limits.values() if "mend" in limit]
        for mend in mends:
            for name in options:
                if f"{name}=" in mend:
                    assert f"--{name.replace('_', '-')} " in mend, mend


def test_accept_takes_the_options_of_a_target():
    for target in map(load_target, NAMES):
        if target.accept is None:
            assert not target.accept_options
            continue
        tool = pkgutil.resolve_name(TOOLS[target.accept])
        for key, value in target.accept_options.items():
            tool.options[key](value)


def test_targets_command_groups_what_it_shows(capsys):
    from tfcompress.cli.devices import targets

    targets("ethos_u65")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ethos_u65: Arm Ethos-U65"
    assert "accept_options: accelerator ethos-u65-256" in lines
    assert not any(line.startswith(("metadata", "inputs", "memory: sram")) for line in lines)
    rules = load_target("ethos_u65").rules
    first = rules[0]
    assert f"  - {first.text} ({first.source}, {first.date})" in lines
    assert len(lines) - lines.index("rules:") == len(rules) + 1
    targets("ethos_u65", json=True)
    assert json.loads(capsys.readouterr().out)["memory"]["sram_bytes"] is None


def test_misspelt_key_names_the_close_match():
    with pytest.raises(AttributeError, match=r"'wieghts'.*Did you mean 'weights'\?"):
        load_target("edge_tpu").wieghts  # noqa: B018


def test_target_from_a_file_of_ones_own(tmp_path):
    path = tmp_path / "board.json"
    shutil.copy(TARGETS / "microcontroller.json", path)
    assert load_target(path) == load_target(str(path)) == load_target("microcontroller")


def test_missing_target_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no target file .*board\.json"):
        load_target(tmp_path / "board.json")


def without_precision(values):
    del values["precision"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_precision, r"lacks the key 'precision'"),
        (lambda values: values.update(precison="int8"), r"key 'precison'.*mean 'precision'\?"),
        (lambda values: values.update(items=1), r"unknown key 'items'"),
        (lambda values: values.update(precision="int7"), r"precision must be one of .*'int7'"),
        (lambda values: values["weights"].update(bits="8"), r"weights: bits must be .*'8'"),
        (lambda values: values["shapes"].update(batch=True), r"batch must be integer.*True"),
        (lambda values: values.update(io_dtypes=["int9"]), r"io_dtypes\[0\] must be one of .*int9"),
        (lambda values: values.update(memory=None), r"memory must be object; received None"),
        (lambda values: values.update(name=["x"] * 999), r"string; received \(('x', ){15}'x',$"),
        (lambda values: values.update(precision="int4"), r"precisions, int8; received 'int4'"),
    ],
)
def test_target_file_that_does_not_fit_the_schema(tmp_path, spoil, message):
    values = json.loads((TARGETS / "edge_tpu.json").read_text())
    spoil(values)
    path = tmp_path / "board.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_target(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"3"])
def test_target_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "board.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"board\.json (is not valid JSON|must be object)"):
        load_target(path)


def test_schema_lists_what_the_code_knows():
    from tfcompress.targets.measures import MEASURES
    from tfcompress.targets.targets import COMPARISONS

    schema = json.loads((TARGETS / "schema.json").read_text())
    limit = schema["properties"]["limits"]["additionalProperties"]
    assert limit["properties"]["value"]["enum"] == list(MEASURES)
    assert set(COMPARISONS) < set(limit["properties"])
    assert limit["properties"]["when"]["properties"]["value"]["enum"] == list(MEASURES)


def test_readme_names_every_key_and_every_measurement():
    from tfcompress.targets.measures import MEASURES

    schema = json.loads((TARGETS / "schema.json").read_text())
    text = (TARGETS / "README.md").read_text()
    missing = [name for name in (*schema["properties"], *MEASURES) if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_has_its_source_and_is_used(name):
    target = load_target(name)
    for limit in target.limits.values():
        assert any(rule.id == limit.rule and rule.source and rule.date for rule in target.rules)
    used = {*target.common_limits, *(n for e in target.operators.values() for n in e.limits)}
    assert used == set(target.limits)


def test_tools_that_have_the_last_word_are_there():
    names = {target.accept for target in map(load_target, NAMES)} - {None}
    assert names == {"vela", "tflm", "litertjs", "mediapipe"}
    assert names <= TOOLS.keys()


def board(tmp_path, **values):
    """A file that builds upon ethos_u55."""
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"extends": "ethos_u55", "name": "board", **values}))
    return path


def test_board_extends_a_target(tmp_path):
    rule = {"id": "board", "text": "256 KiB", "source": "data sheet", "date": "2026-11"}
    memory = {"sram_bytes": 262144, "rule": "board"}
    target = load_target(board(tmp_path, memory=memory, rules=[rule]))
    base = load_target("ethos_u55")
    assert target.name == "board"
    assert target.memory.sram_bytes == 262144
    assert target.memory.flash_bytes is None
    assert target.operators == base.operators
    assert [r.id for r in target.rules] == ["board", *(r.id for r in base.rules)]


def test_board_of_the_readme_loads(tmp_path):
    text = (TARGETS / "README.md").read_text()
    path = tmp_path / "my_board.json"
    path.write_text(text.partition("```json\n")[2].partition("```")[0])
    target, base = load_target(path), load_target("ethos_u55")
    # A list replaces the base's, so the example names those again.
    assert target.operators.CONV_2D.limits == (*base.operators.CONV_2D.limits, "small_kernels")
    assert target.operators.ADD == base.operators.ADD
    assert target.limits.small_kernels.max == 3


LIMIT = {"value": "batch", "max": 1, "status": "limit", "text": "a batch of 1", "rule": "operators"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extends": "ethos_u5"}, r"extends must name a target; received 'ethos_u5'.*mean 'eth"),
        ({"extends": 3}, r"extends must name a target; received 3"),
        ({"memory": {"sram_bytes": 0}}, r"memory: sram_bytes must be at least 1; received 0"),
        ({"name": "My Board"}, r"name must match .*; received 'My Board'"),
        ({"title": ""}, r"title must not be empty"),
        ({"precisions": []}, r"precisions must hold something"),
        ({"io_dtypes": ["int8", "int8"]}, r"io_dtypes must not hold anything twice"),
        ({"operators": {"CONV2D": LIMIT}}, r"operators has an unknown key 'CONV2D'.*'CONV_2D'"),
        ({"operators": {"ADD": {"limits": ["nope"]}}}, r"ADD: limits names 'nope'"),
        (
            {"limits": {"b": {**LIMIT, "value": "bach"}}},
            r"limits: b: value must be one of .*'batch'",
        ),
        ({"limits": {"b": {**LIMIT, "min": 1}}}, r"b must have exactly one of .*\['min', 'max'\]"),
        (
            {"limits": {"b": {**LIMIT, "when": {"value": "batch"}}}},
            r"b: when must have exactly one",
        ),
        ({"limits": {"b": {**LIMIT, "status": "bad"}}}, r"b: status names 'bad'"),
        ({"limits": {"b": {**LIMIT, "rule": "bad"}}}, r"b: rule names 'bad'.*expected one of"),
        ({"limits": {"b": {**LIMIT, "max": "1"}}}, r"b: max must be integer or number"),
        ({"memory": {"rule": "bad"}}, r"memory: rule names 'bad'"),
        ({"operators_rule": "bad"}, r"operators_rule names 'bad'"),
        ({"common_limits": ["bad"]}, r"common_limits names 'bad'"),
        (
            {"rules": [{"id": "io", "text": "x", "source": "x", "date": "2026-11"}]},
            r"id 'io' twice",
        ),
        ({"rules": [{"id": "x", "text": "x", "source": "x", "date": "2026"}]}, r"date must match"),
        ({"rules": 3}, r"rules must be array; received 3"),
        ({"rules": [3]}, r"rules\[0\] must be object; received 3"),
        ({"limits": 3}, r"limits must be object; received 3"),
    ],
)
def test_malformed_board(tmp_path, values, message):
    with pytest.raises(ValueError, match=r"board\.json.*" + message):
        load_target(board(tmp_path, **values))
