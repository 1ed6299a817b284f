"""The models that are measured, and everything that contestants read of them, made when it is missing.

The demo model is real; the other two have random weights, which changes no time and no memory, in Stable Diffusion
1.5's shapes and in half of its channels. Everybody runs the same weights.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from benchmarks.contestants.base import Cannot
from benchmarks.peers import python_of

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "emoji" / "model"
BUNDLES: Mapping[str, tuple[str, ...]] = {  # folder -> how the model is exported into it
    "bundle": ("--target", "torch"),
    "int8": ("--quantize", "int8"),
    "int4": ("--quantize", "int4"),
}
PARTS = ("unet", "text_encoder", "vae_decoder")  # of whole images
PLAIN: Mapping[str, str] = {"onnxruntime": "model.onnx", "openvino": "openvino.onnx"}  # library -> file, as exported
TOKENS = 77  # of the random models' texts


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: of its folder and in result files.
        title: as tables call it.
        parameters: of the UNet.
        latents: sides of the latents that steps are timed at.
        picture: side of the latents of a whole image.
        unet: settings of a UNet with random weights; none for the demo model.
        counted: steps per turn that count, so that a turn is no blink.
    """

    name: str
    title: str
    parameters: int
    latents: tuple[int, ...]
    picture: int
    unet: Mapping[str, Any] = field(default_factory=dict)
    counted: int = 1

    def at(self, latents: tuple[int, ...]) -> "Model":
        """The same at other latents; none for its own."""
        return replace(self, latents=latents or self.latents)

    def described(self, work: Path, bundle: str = "bundle") -> dict[str, Any]:
        """What workers are told: paths, one of the bundles, and the sizes that inputs need."""
        place = Places(self, work)
        unet, text, vae = (_settings(place.model / part / "config.json") for part in ("unet", "text_encoder", "vae"))
        return {
            "name": self.name,
            "model": str(place.model),
            "bundle": str(place.folder / bundle),
            "plain": {library: dict(zip(PARTS, map(str, place.plain(library)), strict=True)) for library in PLAIN},
            "openvino": str(place.openvino),
            "older": str(place.older),
            "channels": unet.get("in_channels", 4),
            "tokens": text["max_position_embeddings"],
            "context": unet["cross_attention_dim"],
            "scale": 2 ** (len(vae["block_out_channels"]) - 1),
        }


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("emoji", "demo model", 6_600_000, (16,), 16, counted=5),
        Model(
            "quarter", "a quarter of SD 1.5's size", 215_000_000, (32, 64), 64,
            {"sample_size": 64, "cross_attention_dim": 768, "block_out_channels": (160, 320, 640, 640)},
        ),
        Model("sd15", "SD 1.5's size", 860_000_000, (32, 64), 64, {"sample_size": 64, "cross_attention_dim": 768}),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where everything of a model lies; each is made once."""

    kind: Model
    work: Path

    @property
    def folder(self) -> Path:
        return self.work / self.kind.name

    @property
    def model(self) -> Path:
        return self.folder / "model" if self.kind.unet else DEMO

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def openvino(self) -> Path:
        return self.folder / "openvino"

    @property
    def older(self) -> Path:
        return self.folder / "older"

    def plain(self, library: str) -> list[Path]:
        """Graphs without LoRA inputs of PARTS, as they are written for a library; the VAE's, which has no slots, is the
        bundle's own."""
        *slotted, vae = PARTS
        return [*(self.folder / "plain" / part / PLAIN[library] for part in slotted), self.bundle / vae / "model.onnx"]

    def prepare(self, need: str) -> None:
        """Make what is missing: `model`, one of BUNDLES, `plain`, `openvino` or `older`."""
        bundles = {name: partial(self._export, name, settings) for name, settings in BUNDLES.items()}
        others = {"model": self._model, "plain": self._plain, "openvino": self._openvino, "older": self._older}
        (bundles | others)[need]()

    def _model(self) -> None:
        if self.model.is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        made = self.folder / "model.partial"
        _run(sys.executable, "-m", "benchmarks.random_model", json.dumps(dict(self.kind.unet)), str(made))
        shutil.copytree(DEMO / "tokenizer", made / "tokenizer", dirs_exist_ok=True)
        tokenizer = made / "tokenizer" / "tokenizer_config.json"
        tokenizer.write_text(json.dumps(_settings(tokenizer) | {"model_max_length": TOKENS}), encoding="utf-8")
        shutil.copyfile(DEMO / "model_index.json", made / "model_index.json")
        made.rename(self.model)

    def _export(self, name: str, settings: tuple[str, ...]) -> None:
        target = self.folder / name
        if not target.is_dir():
            self._model()
            self.folder.mkdir(parents=True, exist_ok=True)
            _run(sys.executable, "-m", "lora_edge", "export", str(self.model), str(target), *settings, "--json")

    def _plain(self) -> None:
        self.prepare("bundle")
        paths = [self.plain(library) for library in PLAIN]
        for component, *written in zip(PARTS, *paths, strict=True):
            if not all(path.is_file() for path in written):
                settings = (self.model, component, self.bundle, written[0].parent)
                _run(sys.executable, "-m", "benchmarks.plain", *map(str, settings))

    def _older(self) -> None:
        """The same checkpoint with the text encoder's names as transformers 4 wrote them, which stable-diffusion.cpp
        knows a model by.
        """
        if self.older.is_dir():
            return
        self._model()
        made = self.folder / "older.partial"
        (made / "text_encoder").mkdir(parents=True, exist_ok=True)
        tensors = load_file(self.model / "text_encoder" / "model.safetensors")
        named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
        save_file(named, made / "text_encoder" / "model.safetensors")
        for part in ("unet", "vae"):
            (made / part).symlink_to((self.model / part).resolve())
        made.rename(self.older)

    def _openvino(self) -> None:
        """As optimum-intel's guide says, weights in float16."""
        if not self.openvino.is_dir():
            tool = python_of("optimum").with_name("optimum-cli")
            if not tool.is_file():
                raise Cannot("the environment 'optimum', which converts models, is not installed (make bench-peers)")
            self._model()
            self.folder.mkdir(parents=True, exist_ok=True)
            made = self.folder / "openvino.partial"
            task = ("--task", "stable-diffusion", "--weight-format", "fp16")
            _run(str(tool), "export", "openvino", "--model", str(self.model), *task, str(made))
            made.rename(self.openvino)


def _settings(path: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return made


def _run(*command: str) -> None:
    """Run a command in the repository; what it prints is shown only when it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the models that benchmarks run.")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--needs", default="model,bundle,plain,openvino")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    for name in arguments.models.split(","):
        for need in arguments.needs.split(","):
            try:
                Places(MODELS[name], arguments.work).prepare(need)
            except Cannot as reason:
                print(f"{name}, {need}: {reason}")


if __name__ == "__main__":
    main()
