"""Packages one after the other, and what Core ML itself is asked."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lora_edge.arrays import Array
from lora_edge.errors import BackendUnavailable, BundleDamaged, GraphFailed, RequestError
from lora_edge.runtime.coreml import machine
from lora_edge.runtime.coreml.graph import PackagedGraph
from lora_edge.runtime.coreml.manifest import Packaged, Port, Stage

F32, F16 = np.dtype(np.float32), np.dtype(np.float16)


def ports(*named: Port) -> dict[str, Port]:
    return {port.name: port for port in named}


CHUNKS = Packaged(
    (
        Stage(
            Path("UnetChunk1.mlpackage"),
            ports(
                Port("sample", (2, 1, 2, 2), F16),
                Port("timestep", (2,), F32),
                Port("encoder_hidden_states", (2, 3, 1, 4), F16),
                Port("lora_scale", (2,), F16, True),
            ),
            ports(Port("between", (2, 1, 2, 2), F16)),
        ),
        Stage(
            Path("UnetChunk2.mlpackage"),
            ports(
                Port("between", (2, 1, 2, 2), F16),
                Port("timestep", (2,), F32),
                Port("lora_scale", (2,), F16, True),
            ),
            ports(Port("noise_pred", (2, 1, 2, 2), F32)),
        ),
    ),
    {},
    "lora_scale",
)


class Chunk:
    """Doubles the sample, and then adds the timestep and the multiplier."""

    def __init__(self, path: Path) -> None:
        self.first = path.name == "UnetChunk1.mlpackage"

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert all(array.flags.c_contiguous for array in feeds.values())
        if self.first:
            assert feeds["encoder_hidden_states"].shape == (2, 3, 1, 4)
            return {"between": feeds["sample"] * np.float16(2)}
        assert feeds.keys() <= {"between", "timestep", "lora_scale"}
        added = feeds["timestep"] + feeds.get("lora_scale", np.zeros(1))[0]
        return {"noise_pred": feeds["between"].astype(np.float32) + added[:, None, None, None]}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_chunks_run_one_after_the_other(rows: int) -> None:
    graph = PackagedGraph("unet", CHUNKS, Chunk)
    assert graph.inputs["encoder_hidden_states"].shape == ("rows", "tokens", 3)
    assert list(graph.optional) == ["lora_scale"] and graph.outputs == ("out_sample",)
    sample = np.arange(rows * 4, dtype=np.float32).reshape(rows, 1, 2, 2)
    steps = np.arange(rows, dtype=np.float32)
    feeds = {"sample": sample, "timestep": steps, "encoder_hidden_states": np.zeros((rows, 4, 3))}
    made = graph.run({**feeds, "lora_scale": np.array([0.5, 0], np.float16)})
    np.testing.assert_array_equal(made["out_sample"], 2 * sample + steps[:, None, None, None] + 0.5)
    assert made["out_sample"].dtype == np.float32
    with pytest.raises(RequestError, match=r"no input lora\.tokens \(embeddings are among what they lack\)"):
        graph.run({**feeds, "lora.tokens": np.zeros((1, 3))})
    with pytest.raises(RequestError, match="different numbers of rows: sample 7"):
        graph.run({**feeds, "sample": np.zeros((7, 1, 2, 2)), "timestep": np.zeros(5)})


def test_packages_with_other_inputs_are_refused() -> None:
    stage = CHUNKS.stages[0]
    strange = Packaged((Stage(stage.path, stage.inputs | ports(Port("time_ids", (2, 6), F32)), {}),), {}, None)
    with pytest.raises(BundleDamaged, match=r"UnetChunk1\.mlpackage takes .* they differ in time_ids"):
        PackagedGraph("unet", strange, Chunk)


class Model:
    """coremltools' MLModel, as much of it as is used."""

    made: list["Model"] = []

    def __init__(self, path: str, compute_units: str) -> None:
        if not Path(path).is_dir():
            raise OSError("no such package")
        self.path, self.units = path, compute_units
        Model.made.append(self)

    def predict(self, data: dict[str, Any]) -> dict[str, Any]:
        if "sample" not in data:
            raise RuntimeError("Error: sample is required\nmore")
        return {"noise_pred": [[data.pop("sample")]]}


def test_core_ml_is_asked_through_coremltools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    fake: Any = SimpleNamespace(
        models=SimpleNamespace(MLModel=Model), ComputeUnit={unit: f"unit {unit}" for unit in machine.UNITS}
    )
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    runner = machine.MachinePackage(tmp_path, machine.check_units(["CPU_AND_NE"]))
    assert (Model.made[-1].path, Model.made[-1].units) == (str(tmp_path), "unit CPU_AND_NE")
    feeds = {"sample": np.ones(2)}
    assert runner.run(feeds)["noise_pred"].shape == (1, 1, 2) and "sample" in feeds
    with pytest.raises(GraphFailed, match="Core ML refused the inputs: Error: sample is required$"):
        runner.run({})
    with pytest.raises(BundleDamaged, match="Core ML cannot load .*no such package"):
        machine.MachinePackage(tmp_path / "gone", "ALL")
    with pytest.raises(BackendUnavailable, match="coreml runs on one of ALL, CPU_ONLY, .*, and not on CUDA"):
        machine.check_units(["CUDA"])
    assert machine.check_units(None) == "ALL"
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(BackendUnavailable, match=r"needs coremltools: pip install 'lora-edge\[coreml\]'"):
        machine.tools()
