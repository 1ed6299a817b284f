"""The engine: a bundle opened once, adapters as inputs of every request."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter, version
from lora_edge.arrays import Array
from lora_edge.bundle import Bundle, Check
from lora_edge.errors import RequestError
from lora_edge.library import Library, short_hash
from lora_edge.runtime.backends import Backend, choose
from lora_edge.runtime.components import Components
from lora_edge.runtime.generate import OnStep, Painter
from lora_edge.runtime.image import label
from lora_edge.runtime.memory import peak_bytes
from lora_edge.runtime.request import Request, Size, checked_pairs, make_request
from lora_edge.runtime.shelf import Shelf
from lora_edge.runtime.swap import Strength, Swap
from lora_edge.runtime.tokenizer import Tokenizer

log = logging.getLogger("lora_edge")

ADAPTERS = 1 << 30  # bytes of adapters kept ready


class Engine:
    """Makes images, and runs single components, from one bundle. Open it with `Engine.open`.

    One engine serves one request at a time; open several for several threads.
    """

    def __init__(self, bundle: Bundle, backend: Backend, lora_dir: Path | None, adapter_bytes: int) -> None:
        self.bundle = bundle
        self._backend = backend
        self._components = Components(bundle, backend)
        self._lora_dir = lora_dir
        self._swap = Swap(bundle.components)
        self._shelf: Shelf[Adapter] = Shelf(adapter_bytes, lambda adapter: adapter.nbytes)
        self._libraries: dict[Path, Library] = {}
        self._painter: Painter | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        backend: str = "auto",
        lora_dir: str | Path | None = None,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 0,
        adapter_bytes: int = ADAPTERS,
        check: Check = "size",
    ) -> "Engine":
        """Open a bundle.

        Args:
            bundle: a folder that `lora-edge export` wrote.
            backend: "auto" or a name in `runtime.backends.BACKENDS`.
            lora_dir: where tags in prompts look adapters up; `generate` can name another.
            providers: onnxruntime's execution providers by name, best first; None runs on the CPU.
            threads: of one run; 0 takes one per physical core.
            adapter_bytes: adapters kept ready, the least recently used put back first.
            check: "size" compares the sizes of files with the manifest, "full" their hashes too.

        Raises:
            BundleError: no bundle, another version, or a damaged one.
            BackendUnavailable: the backend or a provider is not installed.
        """
        opened = Bundle.open(bundle, check)
        chosen = choose(backend, providers, threads)
        log.info("backend %s (%s): %s", chosen.name, ", ".join(chosen.providers), chosen.why)
        return cls(opened, chosen, Path(lora_dir) if lora_dir is not None else None, adapter_bytes)

    @property
    def info(self) -> dict[str, Any]:
        """Backend and why, providers, sessions opened, slots, memory in bytes.

        The peak of memory is that of the whole process; None where the system does not tell.
        """
        files = self.bundle.manifest["files"]
        return {
            "backend": self._backend.name,
            "why": self._backend.why,
            "providers": list(self._backend.providers),
            "bundle": self.bundle.name,
            "sessions_opened": self._components.opened,
            "slots": {table.component: len(table) for table in self.bundle.tables},
            "adapters_resident": len(self._shelf),
            "memory": {
                "weights": sum(entry["size"] for path, entry in files.items() if ".onnx" in path),
                "adapters": self._shelf.nbytes,
                "peak": peak_bytes(),
            },
        }

    def load_adapter(self, path: str | Path, component: str | None = None, strict: bool = True) -> Adapter:
        """Read an adapter, or take it from the shelf if it was read before and has not changed since.

        Args:
            path: a safetensors file, or a folder as PEFT or diffusers saves it.
            component: the only component to change; needed where the file's names fit several.
            strict: refuse a file of which any tensor would go unused; else see `Adapter.report`.

        Raises:
            AdapterError: missing, damaged, not finite, or made for another base.
        """
        path = Path(path).absolute()
        key = (path, version(path), component, strict)
        return self._shelf.take(key, lambda: read_adapter(path).fit(self.bundle.tables, component, strict))

    def run(
        self, component: str, inputs: Mapping[str, Any], adapters: Sequence[tuple[Adapter, Strength]] = ()
    ) -> dict[str, Array]:
        """Run one component once.

        Args:
            component: `unet`, `text_encoder`, `vae_decoder`, `vae_encoder`.
            inputs: arrays by the graph's input names.
            adapters: with multipliers: a number, a `Multiplier`, or one number per row.

        Returns:
            Every output by name.

        Raises:
            ComponentMissing: the bundle has none of that name.
            RequestError: inputs or multipliers that do not fit.
        """
        return self._components.run(component, inputs, self.feeds(component, adapters))

    def feeds(self, component: str, adapters: Sequence[tuple[Adapter, Strength]]) -> dict[str, Array]:
        """The graph inputs that `run` adds for these adapters: all that a swap of styles changes.

        Raises:
            ComponentMissing: the bundle has none of that name.
            RequestError: multipliers that do not fit.
        """
        self.bundle.component(component)
        return self._swap.feeds(component, checked_pairs(adapters))

    def generate(
        self,
        prompt: str,
        negative_prompt: str = "",
        seed: int | None = None,
        steps: int = 20,
        guidance: float = 4.0,
        sampler: str = "euler",
        width: int | None = None,
        height: int | None = None,
        batch: int = 1,
        adapters: Sequence[tuple[Adapter, Strength]] = (),
        lora_dir: str | Path | None = None,
        on_step: OnStep | None = None,
        **schedule: Any,
    ) -> list[Image.Image]:
        """Make images.

        Args:
            prompt: with tags such as `<lora:ink:0.8>`, or `<lora:ink:0.5:0.8>` for text encoder and UNet.
            negative_prompt: without tags.
            seed: of the first image, the next ones have the seeds that follow; None draws one.
            steps: noise levels to go down.
            guidance: weight of classifier-free guidance; 1 or less is none.
            sampler: a name in `runtime.samplers.SAMPLERS`, or what other programs call it.
            width, height: pixels; None is what the model was made for.
            batch: images.
            adapters: with multipliers, beside those of the tags.
            lora_dir: where tags look adapters up; None is the folder that the engine was opened with.
            on_step: called with a `Progress` after each step; returning False cancels.
            schedule: settings in place of the bundle's scheduler config, such as `timestep_spacing="trailing"`.

        Returns:
            `batch` RGB images; `image.info["parameters"]` tells how each was made, as AUTOMATIC1111 writes it.

        Raises:
            LoraEdgeError: everything is checked before the first step.
        """
        painter = self._painter = self._painter or self._make_painter()
        request = make_request(
            prompt,
            size=painter.size,
            scheduler=painter.scheduler,
            negative_prompt=negative_prompt,
            seed=seed,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            width=width,
            height=height,
            batch=batch,
            settings=schedule,
        )
        request = request.with_adapters([*self._resolve(request, lora_dir), *checked_pairs(adapters)])
        images = painter.paint(request, on_step)
        told = self._parameters(request)
        return [label(image, {**told, "seed": seed}) for image, seed in zip(images, request.seeds, strict=True)]

    def _resolve(self, request: Request, lora_dir: str | Path | None) -> list[tuple[Adapter, Strength]]:
        """The adapters that tags name; the whole prompt or nothing."""
        if not request.calls:
            return []
        folder = Path(lora_dir) if lora_dir is not None else self._lora_dir
        if folder is None:
            name = request.calls[0].name
            raise RequestError(f"the prompt names the adapter {name!r}, but no lora_dir says where adapters lie")
        library = self._libraries.setdefault(folder, Library(folder))
        return [(self.load_adapter(library.find(call.name)), call.multiplier) for call in request.calls]

    def _make_painter(self) -> Painter:
        unet, vae = self.bundle.component("unet").config, self.bundle.component("vae_decoder").config
        tokenizer = Tokenizer.open(self.bundle.folder / "tokenizer")
        self.bundle.component("text_encoder")
        scheduler = self.bundle.read_json("scheduler/scheduler_config.json")
        size = Size.of(unet, vae)
        return Painter(self._components, self._swap, tokenizer, size, int(unet["in_channels"]), vae, scheduler)

    def _parameters(self, request: Request) -> dict[str, Any]:
        """What the metadata of every image says of how it was made."""
        hashes = {adapter.name: short_hash(adapter.path) for adapter, _ in request.adapters if adapter.path is not None}
        return {
            "prompt": request.prompt,
            "negative_prompt": request.negative,
            "steps": request.plan.steps,
            "sampler": request.plan.title,
            "guidance": request.guidance,
            "width": request.width,
            "height": request.height,
            "model": self.bundle.name,
            "lora_hashes": hashes,
        }
