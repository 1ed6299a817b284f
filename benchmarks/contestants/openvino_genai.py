"""OpenVINO GenAI, dynamic adapters: declared when the model is compiled, then chosen by an `AdapterConfig`.

Its guide passes `adapters=` to the pipeline's constructor and to `generate`; the UNet of the pipeline has the same two
as `compile(adapters=)` and `set_adapters`, so that a single step can be timed. Layers that no declared adapter changes
are left out of the graph. It takes the final scale as `alpha` and does not read the file's.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
import openvino_genai

from benchmarks.contestants.base import PROMPT, Cannot, Contestant, serve


class OpenVinoGenai(Contestant):
    """The UNet alone for steps, the pipeline for whole images, each compiled when first used."""

    distributions: ClassVar[tuple[str, ...]] = ("openvino-genai", "openvino")

    def __init__(self, model: Mapping[str, Any], threads: int, settings: Mapping[str, Any], declared: str) -> None:
        super().__init__(model, threads, settings, declared)
        self._config = openvino_genai.AdapterConfig(openvino_genai.Adapter(declared), 1.0)
        self._options = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._active = openvino_genai.AdapterConfig()

    @cached_property
    def _unet(self) -> Any:
        unet = openvino_genai.UNet2DConditionModel(Path(self.model["openvino"]) / "unet")
        unet.compile("CPU", adapters=self._config, **self._options)
        unet.set_adapters(self._active)
        return unet

    def load(self, path: str) -> Any:
        return openvino_genai.Adapter(path)

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if any(not isinstance(multiplier, float) for _, multiplier in adapters):
            raise Cannot("one multiplier holds for the whole batch")
        self._active = openvino_genai.AdapterConfig()
        for adapter, multiplier in adapters:
            self._active.add(adapter, multiplier)
        if "_unet" in self.__dict__:  # else it takes them when it is compiled
            self._unet.set_adapters(self._active)

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        self._unet.set_hidden_states("encoder_hidden_states", openvino.Tensor(inputs["encoder_hidden_states"]))
        timestep = openvino.Tensor(inputs["timestep"].astype(np.int64))
        return np.array(self._unet.infer(openvino.Tensor(inputs["sample"]), timestep).data)

    def image(self, latents: int, steps: int) -> None:
        size = latents * self.model["scale"]
        pipe = openvino_genai.Text2ImagePipeline(self.model["openvino"], "CPU", adapters=self._config, **self._options)
        pipe.generate(
            PROMPT, width=size, height=size, num_inference_steps=steps, guidance_scale=4.0, adapters=self._active
        )


if __name__ == "__main__":
    serve(OpenVinoGenai)
