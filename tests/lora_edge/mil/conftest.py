"""A small network with an adapter's inputs, converted by coremltools to packages of every precision, once a run."""

import json
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_edge.bundle import describe_files
from lora_edge.jsonfile import read_object
from lora_edge.mil.package import Package

if find_spec("coremltools"):
    import coremltools as ct
else:  # it is an extra, and what it writes cannot be stood in for
    collect_ignore_glob = ["test_*.py"]

RANK = 4
PORTS = {
    "sample": (2, 4, 8, 8),
    "timestep": (2,),
    "block_down": (16, RANK),
    "block_up": (RANK, 16),
    "lora_scale": (RANK,),
}
DEFAULTS = {"block_down": 0.0, "block_up": 0.0, "lora_scale": 1.0}


class Block(torch.nn.Module):
    """What a UNet is made of, once each: sinusoids, convs, group norm, attention, gated feed-forward, up and down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = torch.nn.Conv2d(4, 16, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 16)
        self.down = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.layer_norm = torch.nn.LayerNorm(16)
        self.query = torch.nn.Linear(16, 16, bias=False)
        self.gate = torch.nn.Linear(16, 64)
        self.out = torch.nn.Linear(32, 16)
        self.conv_out = torch.nn.Conv2d(16, 4, 1)
        self.time = torch.nn.Linear(16, 16)
        self.out.weight.data *= 8  # so that the attention, and what an adapter does to it, is seen in the output

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        angles = timestep[:, None] * torch.tensor([0.5**power for power in range(8)])[None]
        time = self.time(torch.cat([torch.sin(angles), torch.cos(angles)], -1))
        x = torch.nn.functional.silu(self.norm(self.conv_in(sample) + time[:, :, None, None]))
        x = self.down(x)
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.layer_norm(tokens)
        query = self.query(normed) + ((normed @ down) * scale) @ up
        heads = [part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (query, normed, tokens)]
        seen = torch.nn.functional.scaled_dot_product_attention(*heads)
        value, gate = self.gate(seen.transpose(1, 2).flatten(2)).chunk(2, -1)
        tokens = tokens + self.out(value * torch.nn.functional.gelu(gate))
        x = tokens.transpose(1, 2).unflatten(2, (4, 4))
        return self.conv_out(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.fixture(scope="session")
def block() -> Block:
    return Block().eval()


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray[Any, Any]]:
    noise = np.random.default_rng(0)
    made = {name: noise.standard_normal(shape).astype(np.float32) for name, shape in PORTS.items()}
    return made | {"timestep": np.array([1.0, 7.0], np.float32)}


@pytest.fixture(scope="session")
def convert(block: Block, feeds: dict[str, Any]) -> Callable[..., Any]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        inputs = tuple(torch.from_numpy(feeds[name]) for name in PORTS)
        program = torch.export.export(block, inputs).run_decompositions({})

    def run(half: bool, system: str = "iOS17") -> Any:
        dtype = np.float16 if half else np.float32
        types = {
            name: {"dtype": np.float32 if name == "timestep" else dtype, "shape": shape}
            for name, shape in PORTS.items()
        }
        for name, value in DEFAULTS.items():
            types[name]["default_value"] = np.full(PORTS[name], value, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ct.convert(
                program,
                inputs=[ct.TensorType(name=name, **told) for name, told in types.items()],
                outputs=[ct.TensorType(name="noise_pred", dtype=np.float32)],
                minimum_deployment_target=getattr(ct.target, system),
                compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                skip_model_load=True,
            )

    return run


@pytest.fixture(scope="session")
def packages(convert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ "fp32", "fp16", "iOS18" (fused attention) and "palettized"; tests must not write into them."""
    folder = tmp_path_factory.mktemp("packages")
    whole, half = convert(half=False), convert(half=True)
    config = ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=64)
    models = {
        "fp32": whole,
        "fp16": half,
        "iOS18": convert(half=True, system="iOS18"),
        "palettized": ct.optimize.coreml.palettize_weights(
            half, ct.optimize.coreml.OptimizationConfig(global_config=config)
        ),
    }
    for name, model in models.items():
        model.save(str(folder / f"{name}.mlpackage"))
    return {name: folder / f"{name}.mlpackage" for name in models}


def describe(folder: Path, names: list[str]) -> dict[str, Any]:
    """The manifest of a folder of packages, as an export writes it."""
    opened = {name: Package.open(folder / name) for name in names}
    ports = {
        name: {
            "inputs": [port.to_json(key) for key, port in package.inputs.items()],
            "outputs": [port.to_json(key) for key, port in package.outputs.items()],
        }
        for name, package in opened.items()
    }
    slot = {"down": "block_down", "up": "block_up", "down_shape": [16, RANK], "up_shape": [RANK, 16]}
    component = {"packages": names, "ports": ports, "slots": {"block": slot}, "scale": "lora_scale"}
    digests = {name: package.digests() for name, package in opened.items()}
    files = describe_files(folder)
    return {"format": 1, "abi": 1, "components": {"unet": component}, "digests": digests, "files": files}


@pytest.fixture()
def saved(packages: dict[str, Path], tmp_path: Path) -> Path:
    """A coreml folder of its own, with the fp16 package as Unet.mlpackage and a manifest."""
    folder = tmp_path / "coreml"
    shutil.copytree(packages["fp16"], folder / "Unet.mlpackage")
    (folder / "vocab.json").write_text("{}", encoding="utf-8")
    manifest = describe(folder, ["Unet.mlpackage"])
    (folder / "lora_edge_coreml.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert read_object(folder / "lora_edge_coreml.json", ValueError) == manifest  # type: ignore[type-var]
    return folder
