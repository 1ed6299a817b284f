"""Programs that are not decomposed before they become ONNX compute what torch computes."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lora_edge.export.direct import direct
from lora_edge.export.trace import translated


class Plain(nn.Module):
    """Every operator that is taken away or changed, beside some that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.drop(self.layer(x)).chunk(2, dim=-1)
        return (a.to(torch.float64) + b.contiguous().to(torch.float64)).to("cpu", torch.float32).transpose(0, 1)


class InPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).add_(1.0) * 2


class Composite(Plain):
    """square has no ONNX in torch's exporter unless it is decomposed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square()


def ran(model: ir.Model, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (made,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return np.asarray(made)


def program(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})


@pytest.mark.parametrize("kind", [Plain, InPlace, Composite])
def test_it_computes_what_torch_computes(kind: type[Plain]) -> None:
    module, x = kind(), torch.randn(3, 4)
    captured = program(module, x)
    before = captured.graph_module.code
    made = ran(translated(captured), x)
    assert np.abs(made - module(x).detach().numpy()).max() < 1e-6
    assert captured.graph_module.code == before, "others go on with the program"


def test_only_what_must_be_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = []

    def noted(self: torch.export.ExportedProgram, table: object = None) -> torch.export.ExportedProgram:
        decomposed.append(self)
        return real(self, table)

    real = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", noted)
    for kind, times in ((Plain, 0), (InPlace, 1), (Composite, 1)):
        captured = program(kind(), torch.randn(3, 4))
        assert (direct(captured) is None) == (kind is InPlace)
        decomposed.clear()
        translated(captured)
        assert len(decomposed) == times, kind
