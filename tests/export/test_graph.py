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
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from lora_edge.bundle import Bundle
from lora_edge.slots import Slot, SlotTable

Feeds = dict[str, np.ndarray]


class Case:
    """One component: its session, its torch twin, and inputs of three rows."""

    def __init__(self, bundle: Bundle, component: str, module: torch.nn.Module, inputs: dict[str, Tensor]) -> None:
        self.table: SlotTable = bundle.component(component).table
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.path = bundle.component(component).graph
        self.session = onnxruntime.InferenceSession(str(self.path), options)
        self.module = module
        self.inputs = inputs
        self.prefix = "" if component == "unet" else "text_model."
        self.random = np.random.default_rng(7)

    def run(self, feeds: Feeds, rows: int = 1) -> np.ndarray:
        plain = {name: tensor[:rows].numpy() for name, tensor in self.inputs.items()}
        result: np.ndarray = self.session.run(None, plain | feeds)[0]
        return result

    def parameter(self, name: str) -> Tensor:
        return self.module.get_parameter(name.removeprefix(self.prefix))

    def normal(self, *shape: int, scale: float) -> np.ndarray:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def pair(self, slot: Slot, rank: int, size: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """down and up whose product has `size` times the spread of the weight."""
        spread = float(self.parameter(f"{slot.name}.weight").detach().std())
        up = self.normal(rank, slot.out_features, scale=size * spread * (slot.patch / max(rank, 1)) ** 0.5)
        return self.normal(slot.patch, rank, scale=slot.patch**-0.5), up


@pytest.fixture(scope="module")
def cases(tiny_model: Path, tiny_bundle: Path) -> Callable[[str], Case]:
    torch.manual_seed(1)
    bundle = Bundle.open(tiny_bundle)
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet").eval()
    text = CLIPTextModel.from_pretrained(tiny_model / "text_encoder").eval()
    made = {
        "unet": Case(
            bundle,
            "unet",
            unet,
            {
                "sample": torch.randn(3, 4, 16, 24),
                "timestep": torch.tensor([1.0, 500.5, 981.0]),
                "encoder_hidden_states": torch.randn(3, 77, 64),
            },
        ),
        "text_encoder": Case(bundle, "text_encoder", text, {"input_ids": torch.randint(0, 514, (3, 77)).contiguous()}),
    }
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
    plain = {name: tensor[:1].numpy() for name, tensor in case.inputs.items()}
    assert np.array_equal(case.session.run(None, plain, options)[0], case.run(feeds))
