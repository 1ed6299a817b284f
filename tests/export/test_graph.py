"""The exported ONNX graph: its ports and operators, and onnxruntime's own adapter files.

What it computes is compared with torch in tests/runtime/test_conformance.py, with that of all backends.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lora_edge.bundle import Bundle

from ..tiny import Twin, twins

Feeds = dict[str, np.ndarray]


class Case(Twin):
    """A component and its session."""

    def __init__(self, path: Path, twin: Twin) -> None:
        super().__init__(twin.table, twin.module, twin.inputs)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.path = path
        self.session = onnxruntime.InferenceSession(str(path), options)

    def run(self, feeds: Feeds) -> np.ndarray:
        result: np.ndarray = self.session.run(None, self.plain() | feeds)[0]
        return result


@pytest.fixture(scope="module")
def cases(tiny_model: Path, tiny_bundle: Path) -> Callable[[str], Case]:
    bundle = Bundle.open(tiny_bundle)
    made = {name: Case(bundle.component(name).graph, twin) for name, twin in twins(bundle, tiny_model).items()}
    return made.__getitem__


@pytest.fixture(params=["unet", "text_encoder"])
def case(cases: Callable[[str], Case], request: pytest.FixtureRequest) -> Case:
    return cases(request.param)


def test_the_contract_as_onnxruntime_sees_it(case: Case) -> None:
    plain = [port.name for port in case.session.get_inputs()]
    assert plain == list(case.inputs)
    optional = {port.name: port for port in case.session.get_overridable_initializers()}
    assert optional["lora.scales"].type == "tensor(float)"
    assert optional["lora.ranks"].type == "tensor(int64)"
    assert optional["lora.ranks"].shape == [len(case.table)]
    for slot in case.table:
        shapes = {leaf: optional[f"lora.{slot.name}.{leaf}"].shape for leaf in ("down", "up", "bias")}
        assert shapes["down"][0] == slot.patch
        assert shapes["up"][1] == slot.out_features
        assert shapes["bias"] == [slot.out_features]
        assert isinstance(shapes["down"][1], str)
    for norm in case.table.norms:
        assert f"{norm}.weight" in optional


def test_every_linear_and_conv_is_a_slot(case: Case) -> None:
    layers = [
        name for name, layer in case.module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert [slot.name.removeprefix(case.prefix) for slot in case.table] == layers


def test_fused_operators_and_no_trace_of_the_machine(case: Case) -> None:
    model = onnx.load(str(case.path), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert "Attention" in operators and "Softmax" not in operators
    assert {opset.version for opset in model.opset_import if opset.domain == ""} == {23}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in case.path.read_bytes()


def test_the_adapter_file_of_onnxruntime_gives_the_same(case: Case, tmp_path: Path) -> None:
    """ORT's own adapters go by input names, which ours are: fed or activated, the result is the same."""
    feeds: Feeds = {}
    for slot in case.table:
        feeds[f"lora.{slot.name}.down"], feeds[f"lora.{slot.name}.up"] = case.pair(slot, 4)
    feeds["lora.ranks"] = np.full(len(case.table), 4)
    feeds["lora.scales"] = np.full((1, 4 * len(case.table)), 0.7, np.float32)
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()})
    path = tmp_path / "style.onnx_adapter"
    file.export_adapter(str(path))
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    assert np.array_equal(case.session.run(None, case.plain(), options)[0], case.run(feeds))
