"""The front door: beside the command line, the one place that joins the rooms, and only inside functions."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_edge.errors import ExportError

if TYPE_CHECKING:
    from lora_edge.bundle import Bundle

_WANTED = "exporting needs torch, diffusers and transformers: pip install 'lora-edge[export]'"


def export(
    source: str | Path,
    target: str | Path,
    *,
    overwrite: bool = False,
    listener: Any = None,
    coreml: Mapping[str, Any] | None = None,
    torch: bool = False,
    quantize: str | None = None,
    store: str = "fp32",
) -> "Bundle":
    """Export a checkpoint into a bundle.

    Args:
        source: a folder in diffusers layout, SD1 architecture of any size.
        target: the bundle to write; it appears when it is whole and verified against torch, or not at all.
        overwrite: replace a bundle that is already there.
        listener: an `export.build.Listener` that hears of the progress.
        coreml: add Core ML packages with these settings (`rank`, `os`, `precision`, `attention`, `palettize`, `chunks`,
            `conv_slots`; see `export.coreml.options.Options`); {} for the defaults, None for no packages.
        torch: add programs for the backend torch, a few MB each, over the same weights.
        quantize: "int8" or "int4": the weights of layers that take adapters, on disk and in memory; adapters on top of
            them stay float32. Image encoders and decoders are left as they are.
        store: "fp32", "fp16" or "bf16": the precision of large weights on disk; opened, they are float32.

    Raises:
        ExportError: a package of the [export] extra is missing, or see `export.build.build`.
    """
    try:
        from lora_edge.export.build import build
        from lora_edge.export.smaller import Smaller
    except ModuleNotFoundError as error:
        raise ExportError(f"{_WANTED} ({error})") from error
    from lora_edge.runtime.session import Session
    from lora_edge.runtime.torchprogram import open_program

    return build(
        source,
        target,
        partial(Session, arena="none"),  # verified once, in as little memory as it takes
        open_others=partial(Session, arena="none", brief=True),
        overwrite=overwrite,
        listener=listener,
        coreml=coreml,
        open_program=open_program if torch else None,
        smaller=Smaller(quantize, store),
    )
