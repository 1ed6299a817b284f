"""The engine: a bundle opened once, adapters as inputs of every request."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import version
from lora_edge.arrays import Array
from lora_edge.bundle import Bundle, Check
from lora_edge.opening import open_adapter
from lora_edge.runtime.backends import Backend, Wishes, choose
from lora_edge.runtime.components import Components
from lora_edge.runtime.generate import OnStep, Painter
from lora_edge.runtime.image import label
from lora_edge.runtime.memory import peak_bytes, physical_bytes
from lora_edge.runtime.pairs import Adapters, Pair, checked_pairs
from lora_edge.runtime.request import make_request
from lora_edge.runtime.resolve import Resolver
from lora_edge.runtime.shelf import Shelf
from lora_edge.runtime.size import Size
from lora_edge.runtime.swap import Swap
from lora_edge.runtime.textcache import TextCache
from lora_edge.runtime.tiles import Tiling, Wish

log = logging.getLogger("lora_edge")

ADAPTERS = 1 << 30  # bytes of adapters kept ready


class Engine:
    """Makes images, and runs single components, from one bundle. Open it with `Engine.open`.

    One engine serves one request at a time; open several for several threads.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        lora_dir: Path | None,
        embeddings_dir: Path | None,
        adapter_bytes: int,
        largest_adapter: int | None,
        tiling: Tiling | None = None,
        map_packs: bool = False,
    ) -> None:
        self.bundle = bundle
        self._backend = backend
        self._components = Components(bundle, backend)
        self._read = partial(open_adapter, max_bytes=largest_adapter, map_packs=map_packs)
        self._swap = Swap(bundle, backend.layout)
        self._shelf: Shelf[Adapter] = Shelf(adapter_bytes, lambda adapter: adapter.nbytes)
        self._resolver = Resolver(bundle, self.load_adapter, lora_dir, embeddings_dir)
        self._texts, self._tiling = TextCache(), tiling
        self._runs: list[str] = []

    @cached_property
    def _painter(self) -> Painter:
        unet, vae = self.bundle.component("unet").config, self.bundle.component("vae_decoder").config
        self.bundle.component("text_encoder")
        scheduler = self.bundle.read_json("scheduler/scheduler_config.json")
        channels = int(unet["in_channels"])
        size = Size.of(unet, vae, self._backend.latent)
        tiling = self._tiling if size.fixed is None else None  # graphs of one size have no tiles
        return Painter(self.bundle, self._components, self._swap, size, channels, vae, scheduler, self._texts, tiling)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        backend: str = "auto",
        lora_dir: str | Path | None = None,
        embeddings_dir: str | Path | None = None,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 0,
        precision: str | None = None,
        adapter_bytes: int = ADAPTERS,
        held_bytes: int | None = None,
        largest_adapter: int | None = None,
        map_packs: bool = False,
        fit_rank: bool = False,
        arena: str = "shared",
        slots: str = "auto",
        vae_tile: Wish = "auto",
        check: Check = "size",
    ) -> "Engine":
        """Open a bundle.

        Args:
            bundle: a folder that `lora-edge export` wrote.
            backend: "auto" or a name in `runtime.backends.BACKENDS`.
            lora_dir: where tags in prompts look adapters up; `generate` can name another.
            embeddings_dir: a folder of embeddings (textual inversion); prompts call them by their names.
            providers: onnxruntime's execution providers by name, best first; None runs on the CPU. Of the backend
                coreml: one of its compute units (ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE); of torch: mps, cuda or
                cpu, the first of them that is here where None is said.
            threads: of one run; 0 takes one per physical core.
            precision: to compute in, "fp32", "fp16" or "bf16", where the backend has a choice; None for its own.
            adapter_bytes: adapters kept ready, the least recently used put back first.
            held_bytes: graphs hold what they computed of the adapters in use for the next step, weights with their
                update above all; within so many bytes they hold it for adapters used before too, so that a change back
                to them finds it made. At Stable Diffusion 1.5's size a style takes 0.2 GB, in bf16 0.1. None is a
                sixteenth of the machine's memory; 0 holds the last style's alone.
            largest_adapter: bytes that one adapter may take, full-rank kinds being large; None is a quarter of the
                machine's memory.
            map_packs: use float32 packs where they lie in their files, which must then stay as they are for as long as
                the engine lives, and whose numbers are taken on trust. They open without being read, take no memory of
                their own, and processes share them. Other files are read as ever.
            fit_rank: on backends whose graphs have a fixed rank, cut adapters with more lanes by SVD in place of
                refusing them; what that loses is reported.
            arena: who keeps the memory of onnxruntime's intermediate results: "shared", all engines of the process
                together, "own", each graph, or "none".
            slots: what the UNet's graph takes: "linear" (low-rank updates of Linear and 1x1 layers), "lowrank" (of
                every layer), "all" (gains, biases and norms too). Narrower ones are faster; "auto" begins with the
                narrowest and changes over when an adapter is loaded that needs more.
            vae_tile: how large images are decoded: "auto" in tiles of 64 latents beyond 96 x 96, a number in tiles of
                that many, "off" at once, which takes memory by the square. See `runtime.tiles`.
            check: "size" compares the sizes of files with the manifest, "full" their hashes too.

        Raises:
            BundleError: no bundle, another version, or a damaged one.
            BackendUnavailable: the backend or a provider is not installed.
            ComponentMissing: the bundle has no graphs for the backend.
            RequestError: `vae_tile`, `arena` or `slots` is something else.
        """
        tiling = Tiling.of(vae_tile)
        opened = Bundle.open(bundle, check)
        memory = physical_bytes()
        room = (memory or 0) // 16 if held_bytes is None else held_bytes
        chosen = choose(backend, opened, Wishes(providers, threads, fit_rank, precision, arena, slots, room))
        log.info("backend %s (%s): %s", chosen.name, ", ".join(chosen.providers), chosen.why)
        folders = [None if folder is None else Path(folder) for folder in (lora_dir, embeddings_dir)]
        largest = memory // 4 if largest_adapter is None and memory else largest_adapter
        return cls(opened, chosen, folders[0], folders[1], adapter_bytes, largest, tiling, map_packs)

    @property
    def info(self) -> dict[str, Any]:
        """Backend and why, providers, sessions opened, slots, memory in bytes; of the last request, the batches it ran
        in (`runs`) and the bytes that its last change of adapters or multipliers moved (`bytes_copied`). `texts` counts
        the chunks of prompts that were at hand (`hits`) and those that the text encoder had to read (`misses`).

        Of memory, `held` is what graphs computed of styles and prompts, with the adapters they were made of; the peak
        is that of the whole process, None where the system does not tell.
        """
        files = self.bundle.manifest["files"]
        return {
            "backend": self._backend.name,
            "why": self._backend.why,
            "providers": list(self._backend.providers),
            **self._backend.facts,
            "bundle": self.bundle.name,
            "sessions_opened": self._components.opened,
            "bytes_copied": self._swap.copied,
            "runs": list(self._runs),
            "slots": {table.component: len(table) for table in self.bundle.tables},
            "graphs": self._components.scopes,
            "adapters_resident": len(self._shelf),
            "texts": self._texts.info,
            "memory": {
                "weights": sum(entry["size"] for path, entry in files.items() if self._backend.weights in path),
                "adapters": self._shelf.nbytes,
                "held": self._components.held,
                "peak": peak_bytes(),
            },
        }

    def load_adapter(self, path: str | Path, component: str | None = None, strict: bool = True) -> Adapter:
        """Read an adapter, or take it from the shelf if it was read before and has not changed since.

        Args:
            path: a safetensors file, a folder as PEFT or diffusers saves it, or a pack.
            component: the only component to change; needed where the file's names fit several.
            strict: refuse a file of which any tensor would go unused; else see `Adapter.report`.

        Raises:
            AdapterTooLarge: a full-rank kind that would take more than `largest_adapter`.
            RankTooLarge: more lanes than the backend's graphs have.
            AdapterError: missing, damaged, not finite, made for another base, or beyond what the backend's graphs take.
        """
        path = Path(path).absolute()
        key = (path, version(path), component, strict)

        def read() -> Adapter:
            found = self._read(path, self.bundle, component, strict)
            adapter = self._backend.layout.fit(found, strict)
            self._components.serve(adapter)
            for warning in adapter.report.warnings:
                log.warning("%s: %s", adapter.name, warning)
            return adapter

        return self._shelf.take(key, read)

    def run(self, component: str, inputs: Mapping[str, Any], adapters: Sequence[Pair] = ()) -> dict[str, Array]:
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

    def feeds(self, component: str, adapters: Sequence[Pair]) -> dict[str, Array]:
        """The graph inputs that `run` adds for these adapters: all that a swap of styles changes.

        Raises:
            ComponentMissing: the bundle has none of that name.
            RequestError: multipliers that do not fit.
        """
        return self._swap.feeds(component, adapters)

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] | None = None,
        steps: int = 20,
        guidance: float = 4.0,
        sampler: str = "euler",
        width: int | None = None,
        height: int | None = None,
        batch: int = 1,
        adapters: Adapters = (),
        lora_dir: str | Path | None = None,
        on_step: OnStep | None = None,
        clip_skip: int = 1,
        **schedule: Any,
    ) -> list[Image.Image]:
        """Make images. Prompts, seeds and adapters may be given image by image; they run as one batch all the same.

        Args:
            prompt: in the language of `lora_edge.prompt`, with tags such as `<lora:ink:0.8>`; one, or one per image.
            negative_prompt: without tags; one, or one per image.
            seed: of the first image, the next ones have the seeds that follow, or one per image; None draws one.
            steps: noise levels to go down.
            guidance: weight of classifier-free guidance; 1 or less is none.
            sampler: a name in `runtime.samplers.SAMPLERS`, or what other programs call it.
            width, height: pixels; None is what the model was made for.
            batch: images.
            adapters: with multipliers, beside those of the tags; or a list of them for every image.
            lora_dir: where tags look adapters up; None is the folder that the engine was opened with.
            on_step: called with a `Progress` after each step; returning False cancels.
            clip_skip: which layer of the text encoder is read, counted from the last, 1.
            schedule: settings in place of the bundle's scheduler config, such as `timestep_spacing="trailing"`.

        Returns:
            One RGB image each; `image.info["parameters"]` tells how it was made, as AUTOMATIC1111 writes it. Images
            whose adapters cannot share a batch (gains, biases or norms that differ) are made in several, which the
            log and `Engine.info["runs"]` say.

        Raises:
            LoraEdgeError: everything is checked before the first step.
        """
        painter = self._painter
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
            clip_skip=clip_skip,
            settings=schedule,
        )
        pairs = checked_pairs(adapters, request.rows)
        request = self._resolver.resolve(request, pairs, Path(lora_dir) if lora_dir is not None else None)
        made: dict[int, Image.Image] = {}
        batches = request.batches(self._backend.layout.alone)
        self._runs = [f"images {', '.join(str(image + 1) for image in part.images)}" for part in batches]
        if len(batches) > 1:
            log.warning("%s: made apart are %s", self._backend.layout.apart, "; ".join(self._runs))
        for part in batches:
            made.update(zip(part.images, painter.paint(part, on_step), strict=True))
        return [label(made[image], request.parameters(image, self.bundle.name)) for image in range(request.rows)]
