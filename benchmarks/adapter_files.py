"""Random adapters, the same for everybody: one file in kohya's names, which all contestants read, and its packs."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lora_edge.bundle import Bundle
from lora_edge.opening import open_adapter
from lora_edge.pack import write_pack
from lora_edge.runtime.ortadapter import write_onnx_adapters
from lora_edge.slots import Slot

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
SIZE = 0.03  # of the numbers: a change of a tenth of the weights' own size, which no precision swallows
OUTSIDE = ("conv_in", "conv_out", "time_embedding")  # which LyCORIS' networks leave alone by default


@dataclass(frozen=True)
class Spec:
    """An adapter.

    Attributes:
        rank: of Linear layers and 1x1 convolutions.
        conv_rank: of larger convolutions; 0 is a LoRA on attention and feed-forward layers alone, else a LoCon on all
            layers within blocks.
        seed: of its numbers.
    """

    rank: int
    conv_rank: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        conv = f"-conv{self.conv_rank}" if self.conv_rank else ""
        return f"rank{self.rank}{conv}-{self.seed}"

    def rank_of(self, slot: Slot) -> int:
        """Lanes that it has on a slot."""
        if not self.conv_rank:
            return self.rank if slot.kernel is None and slot.name.endswith(LAYERS) else 0
        if slot.name.startswith(OUTSIDE):
            return 0
        return self.rank if slot.kernel in (None, (1, 1)) else self.conv_rank


Files = Mapping[str, str]


def write_adapter(spec: Spec, bundle: Bundle, folder: Path) -> Files:
    """Make an adapter's files if they are missing.

    Returns:
        Form -> path: `file` (kohya's names, fp16), `pack` (fp16), `pack32` (fp32), `onnx_adapter`.
    """
    folder = folder / bundle.fingerprint[:12] / spec.name  # packs are for one bundle
    files: dict[str, Path] = {
        "file": folder / f"{spec.name}.safetensors",
        "pack": folder / f"{spec.name}.pack.safetensors",
        "pack32": folder / f"{spec.name}-fp32.pack.safetensors",
        "onnx_adapter": folder / f"{spec.name}.unet.onnx_adapter",
    }
    if not all(path.is_file() for path in files.values()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file(_tensors(spec, bundle), files["file"])
        adapter = open_adapter(files["file"], bundle)
        write_pack(adapter, bundle, files["pack"])
        write_pack(adapter, bundle, files["pack32"], "fp32")
        write_onnx_adapters(adapter, bundle, folder / spec.name)
    return {form: str(path) for form, path in files.items()}


def fresh_copy(path: str, index: int) -> str:
    """A copy that nobody has seen, in the page cache since it has just been written.

    What is in its place from an earlier turn is replaced by another file, as its bytes may be mapped somewhere.
    """
    source = Path(path)
    target = source.parent / "copies" / f"{index}-{source.name}"
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    return str(target)


def _tensors(spec: Spec, bundle: Bundle) -> dict[str, np.ndarray]:
    random = np.random.default_rng(spec.seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape, np.float32) * SIZE).astype(np.float16)

    tensors = {}
    for slot in next(table for table in bundle.tables if table.component == "unet"):
        if rank := spec.rank_of(slot):
            name, kernel = "lora_unet_" + slot.name.replace(".", "_"), slot.kernel or ()
            tensors[f"{name}.lora_down.weight"] = normal(rank, slot.in_features, *kernel)
            tensors[f"{name}.lora_up.weight"] = normal(slot.out_features, rank, *(1 for _ in kernel))
            tensors[f"{name}.alpha"] = np.array(rank, np.float16)
    return tensors
