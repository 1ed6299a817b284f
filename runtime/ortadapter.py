"""Writing `.onnx_adapter` files; lora_edge/ortadapter.py says what is in them and reads them."""

from pathlib import Path

from lora_edge.adapter import Adapter
from lora_edge.bundle import Bundle
from lora_edge.errors import RequestError
from lora_edge.ortadapter import SUFFIX, model_version, parameters
from lora_edge.runtime.session import export_onnx_adapter
from lora_edge.slots import ABI_VERSION


def write_onnx_adapters(adapter: Adapter, bundle: Bundle, stem: str | Path, force: bool = False) -> list[Path]:
    """Write an adapter for a bundle as ONNX Runtime takes it, one file per component that it changes.

    Args:
        adapter: fitted to the bundle.
        bundle: the one that the files will be used with.
        stem: `folder/ink` makes `folder/ink.unet.onnx_adapter` and so on.
        force: replace files that are already there.

    Returns:
        The paths. Each file appears when it is whole.

    Raises:
        RequestError: no such folder, a file is already there, or it cannot be written.
        AdapterMismatch: the adapter was fitted to another bundle, or has what this form cannot hold.
        AdapterValueError: numbers that are not finite.
    """
    stem = Path(stem)
    if not stem.parent.is_dir():
        raise RequestError(f"the folder {stem.parent} for the files does not exist")
    held = parameters(adapter, bundle)
    paths = {component: stem.with_name(f"{stem.name}.{component}{SUFFIX}") for component in held}
    for path in paths.values():
        if path.is_dir() or (path.exists() and not force):
            raise RequestError(f"{path} exists already; choose another name, or --force to replace a file")
    for component, path in paths.items():
        partial = path.with_name(path.name + ".partial")
        try:
            export_onnx_adapter(partial, held[component], ABI_VERSION, model_version(bundle))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return list(paths.values())
