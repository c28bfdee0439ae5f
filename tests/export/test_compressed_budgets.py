"""Which weights are in codes: what flash and RAM decide, what is refused."""

import dataclasses

import numpy as np
import pytest
from coded_files import chain, coded

from tfcompress.cli.app import main
from tfcompress.export.microcontroller import compressed_weights
from tfcompress.export.microcontroller.compressed_weights import compress_weights
from tfcompress.export.microcontroller.decoding import weights_of
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect
from tfcompress.tools import runtimes
from tfcompress.tools.accept import accept
from tfcompress.tools.environments import python_environment_is_ready

TFLM = runtimes.TFLM_LIBRARY
SIZES = {"dense0": 64 * 32, "dense1": 32 * 96, "dense2": 96 * 16}


class Answers:
    """Stands for TFLite Micro: 100 bytes of arena, and 1 more for each decoded byte at once."""

    def __init__(self, monkeypatch, same=True):
        self.same, self.asked = same, []
        monkeypatch.setattr(compressed_weights, "measure_arena", self.arena)
        monkeypatch.setattr(runtimes, "tflm_outputs", self.outputs)

    def arena(self, data, where):
        sizes = [layer.decoded_bytes for layer in inspect(data).layer_bytes]
        return 100 + max(sizes), "by hand"

    def outputs(self, data, inputs):
        self.asked.append(inputs)
        return [[np.zeros(3) if self.same else np.full(3, len(self.asked))] for _ in inputs]


def compressed(data, **options):
    def name_of(tensor):
        return tensor.split("/")[1] if "/" in tensor else ""

    return compress_weights(flatbuffer.read(data), name_of=name_of, **options)


needs_tflm = pytest.mark.skipif(
    not python_environment_is_ready(TFLM.name, TFLM.packages),
    reason="TFLite Micro has no environment here yet",
)


def assert_same_bits(data, made):
    width = flatbuffer.read(data).subgraphs[0].tensors[0].shape[1]
    random = np.random.default_rng(5)
    given = [[random.integers(-128, 128, (1, width)).astype(np.int8)] for _ in range(2)]
    ours, theirs = (runtimes.tflm_outputs(content, given) for content in (data, made))
    assert np.array_equal(ours, theirs)
    assert len(set(np.ravel(ours))) > 10


@needs_tflm
def test_tflite_micro_gives_the_same_bits():
    _, made, told = compressed(chain())
    assert_same_bits(chain(), made)
    assert told.compared == 8
    assert told.file_bytes == len(made) < told.plain_bytes
    # The largest weight is decoded into the arena.
    assert told.arena >= told.plain_arena + SIZES["dense1"]


@pytest.mark.slow
def test_tflite_micro_gives_the_same_bits_in_parts():
    data = chain((256, 96, 96, 16))
    _, made, told = compressed(data, ram=20_000)
    assert_same_bits(data, made)
    assert {w.layer: w.decoded for w in told.weights if w.layer.startswith("dense0")} == {
        "dense0/0": 12_288,
        "dense0/1": 12_288,
    }
    assert told.plain_arena + 12_288 <= told.arena <= 20_000


@pytest.mark.slow
def test_tflite_micro_gives_what_litert_gives_with_plain_weights(tmp_path):
    _, made, told = compressed(chain())
    path = tmp_path / "coded.tflite"
    path.write_bytes(made)
    (found,) = accept(path, ["tflm"]).results
    assert found.status == "passed"
    assert found.figures["arena bytes"] == told.arena


def test_other_tools_are_told_to_be_given_plain_weights(tmp_path):
    path = tmp_path / "coded.tflite"
    path.write_bytes(coded(chain()))
    (found,) = accept(path, ["vela"]).results
    assert (found.status, found.figures) == ("failed", {})
    assert "TFLite Micro alone decodes. Convert again without compressed_weights" in found.reason


def test_verify_refuses_weights_in_codes_before_the_model_is_read(tmp_path, capsys):
    path, model, data = (tmp_path / name for name in ("coded.tflite", "m.keras", "x.npy"))
    path.write_bytes(coded(chain()))
    model.write_bytes(b"no model")
    np.save(data, np.zeros((1, 64), np.float32))
    assert main(["verify", str(model), str(path), "--data", str(data)]) == 2
    assert "TFLite Micro alone decodes" in capsys.readouterr().err


def test_without_budgets_every_weight_that_helps_is_coded(monkeypatch):
    answers = Answers(monkeypatch)
    _, data, told = compressed(chain())
    assert {w.layer: w.decoded for w in told.weights} == SIZES
    assert all(w.bytes <= w.decoded * 3 / 8 + 16 + 5 for w in told.weights)
    assert told.plain == {}
    assert (told.arena, told.plain_arena) == (100 + SIZES["dense1"], 100)
    assert len(answers.asked) == 2  # of the plain file, and of this one
    assert len(answers.asked[0]) == told.compared == 8
    assert sum(layer.decoded_bytes for layer in inspect(data).layer_bytes) == sum(SIZES.values())


def test_dense_layers_are_in_parts_where_there_is_little_ram(monkeypatch):
    Answers(monkeypatch)
    _, data, told = compressed(chain(), ram=99 + SIZES["dense1"])
    assert {w.layer: w.decoded for w in told.weights} == {
        **{"dense0/0": 1024, "dense0/1": 1024, "dense1/0": 1536, "dense1/1": 1536},
        "dense2": 1536,
    }
    assert told.arena == 100 + 1536
    assert [op.name for op in inspect(data).operators].count("CONCATENATION") == 2


def test_weights_stay_plain_where_there_is_no_ram_at_all(monkeypatch):
    Answers(monkeypatch)
    _, _, told = compressed(chain(), ram=120)
    assert told.weights == ()
    assert told.plain["dense1"] == "decoded it takes 3,072 bytes of RAM"
    with pytest.raises(ValueError, match=r"ram: received 99 bytes; the arena takes 100 .*ram=100"):
        compressed(chain(), ram=99)


def test_flash_codes_no_more_than_it_takes(monkeypatch):
    Answers(monkeypatch)
    _, least, _ = compressed(chain())
    _, most, told = compressed(chain(), flash=len(chain()))
    assert told.weights == ()
    assert not any(layer.code for layer in inspect(most).layer_bytes)
    assert len(most) < len(chain())
    # Huffman's code, which is the smallest, takes most time.
    _, _, told = compressed(chain(), flash=len(most) - 1)
    assert [(w.layer, w.code) for w in told.weights] == [("dense1", "table of 3 bits")]
    assert told.plain["dense0"] == "the file keeps within flash as it is"
    _, data, told = compressed(chain(), flash=len(least) + 300)
    codes = {w.layer: w.code for w in told.weights}
    assert codes == {"dense1": "Huffman", **dict.fromkeys(["dense0", "dense2"], "table of 3 bits")}
    assert len(least) < len(data) <= len(least) + 300
    message = f"flash: received 300 bytes; the nearest is {len(least):,}, with an arena of 3,172"
    with pytest.raises(ValueError, match=message):
        compressed(chain(), flash=300)


def test_models_that_were_pruned_are_given_another_mend():
    found = weights_of(flatbuffer.read(chain()))
    assert "such as [Prune(0.7), Cluster(16)" in compressed_weights._mend(found)
    kept = np.random.default_rng(0).random(64 * 96) < 0.3
    found = [
        dataclasses.replace(w, values=w.values * kept[: w.values.size].reshape(w.values.shape))
        for w in found
    ]
    assert "such as [Prune(0.9), Cluster(4)" in compressed_weights._mend(found)


def test_flash_that_ram_keeps_from_being_met_tells_both(monkeypatch):
    Answers(monkeypatch)
    _, least, _ = compressed(chain())
    with pytest.raises(ValueError, match="RAM to decode that is short: ram=3172") as error:
        compressed(chain(), flash=len(least), ram=3000)
    assert str(error.value).endswith(f"ram=3172 gives {len(least):,} bytes.")
    # Which is true.
    _, data, _ = compressed(chain(), flash=len(least), ram=3172)
    assert len(data) == len(least)


def test_outputs_that_differ_are_refused(monkeypatch):
    Answers(monkeypatch, same=False)
    with pytest.raises(ValueError, match="gives another output 0 for input 0"):
        compressed(chain())


def test_too_many_values_are_told_by_layer(monkeypatch):
    Answers(monkeypatch)
    wrong = r"no weight has so few values .* 'dense1' \(254 values in 3,072 weights\), 'dense0' .*"
    with pytest.raises(ValueError, match=wrong + r"\[Cluster\(16\), Quantize\(\)\]"):
        compressed(chain(kinds=254))


def test_a_code_that_makes_the_whole_file_larger_is_not_taken(monkeypatch):
    Answers(monkeypatch)
    monkeypatch.setattr("tfcompress.export.microcontroller.decoding.OVERHEAD", 0)
    data = chain((8, 8, 8), kinds=4)
    _, made, told = compressed(data, flash=10_000)
    assert told.weights == ()
    with pytest.raises(
        ValueError, match="no weight has so few values that a code of it is smaller"
    ):
        compressed(data)
    assert len(made) < len(data)
