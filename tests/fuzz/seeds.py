"""Small valid files of every kind, naming, dtype and form: what the hostile ones are made from."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_edge.adapter import Adapter
from lora_edge.bundle import Bundle
from lora_edge.embeddingfile import read_embeddings
from lora_edge.opening import open_adapter
from lora_edge.ortadapter import model_version, parameters
from lora_edge.pack import write_pack
from lora_edge.runtime.session import export_onnx_adapter
from lora_edge.slots import ABI_VERSION, SlotTable
from lora_edge.tensorfile import TensorFile

from ..kinds_graph.catalogue import EXAMPLES
from ..kinds_graph.example import Example
from ..kinds_graph.naming import NAMINGS, NORMS, SLOTS, Layers, Naming
from .draft import Array, Draft, draft
from .world import TABLES, WIDTH

DTYPES = ("F32", "F16", "BF16", "F64", "F16", "F8_E4M3", "F32", "F8_E5M2")
LAYERS = 3  # of each component that a file changes

Load = Callable[[Path, Bundle, bool], Any]


def load_adapter(path: Path, bundle: Bundle, strict: bool) -> Adapter:
    """As the engine does."""
    return open_adapter(path, bundle, strict=strict, max_bytes=MAX_BYTES)


def load_words(path: Path, bundle: Bundle, strict: bool) -> Any:
    """As a folder of embeddings does."""
    return read_embeddings(path)


MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Seed:
    """A valid file.

    Attributes:
        name: what is in it.
        form: "file", "folder", "pack", "ort" or "words".
        draft: taken apart; None where the file is no safetensors.
        blob: the file as it is.
        load: how it is read.
        tables: the layers that it is read for.
    """

    name: str
    form: str
    draft: Draft | None
    blob: bytes
    load: Load = load_adapter
    tables: Sequence[SlotTable] = TABLES


def seeds(bundle: Bundle, folder: Path) -> list[Seed]:
    """All of them; the folder is for packs and the like, which are written by their own writers."""
    files = [_seed(name, made) for name, made in _files(bundle)]
    return [*files, *_written(files, bundle, folder), *(_seed(*words, load_words) for words in _words())]


def _seed(name: str, made: Draft, load: Load = load_adapter) -> Seed:
    form = "words" if load is load_words else "file" if made.settings is None else "folder"
    return Seed(name, form, made, made.dump(), load)


def _files(bundle: Bundle) -> Iterator[tuple[str, Draft]]:
    count = 0
    for example in EXAMPLES.values():
        for name, naming in NAMINGS.items():
            if naming.fits(example.name):
                count += 1
                dtype = DTYPES[count % len(DTYPES)]
                made = _example(example, naming, dtype, bundle, count)
                if made.entries:
                    yield f"{example.name}, {name}, {dtype}", made
    yield from _others()


def _held(every: Layers) -> Layers:
    known = {table.component: {*table.by_name, *table.norms} for table in TABLES}
    return {component: tuple(path for path in paths if path in known[component]) for component, paths in every.items()}


def _example(example: Example, naming: Naming, dtype: str, bundle: Bundle, turn: int) -> Draft:
    made = Draft(metadata=dict(example.metadata) or None)
    if naming is NAMINGS["peft"]:
        made.settings = json.dumps(PEFT)
    for component, paths in naming.layers(_held(NORMS if example.norms else SLOTS)).items():
        if made.settings is not None and made.entries:
            break  # a folder of PEFT is of one component
        for path in (paths * 2)[turn % len(paths) :][:LAYERS]:
            for leaf, array in _tensors(example, path, _weight(bundle, component, path), naming):
                key = naming.key(component, path, leaf)
                if key not in dict(made.entries):
                    made.add(key, "I64" if leaf == "on_input" or array.dtype.kind == "i" else dtype, array)
    return made


PEFT: Mapping[str, Any] = {"peft_type": "LORA", "r": None, "lora_alpha": 4, "target_modules": ["to_q"], "bias": "none"}


def _weight(bundle: Bundle, component: str, path: str) -> Array:
    table = bundle.component(component).table
    return bundle.weight(component, path) if path in table.by_name else np.ones(table.norms[path])


def _tensors(example: Example, path: str, weight: Array, naming: Naming) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(zlib.crc32(f"{example.name} {path}".encode()))
    made = example.make(np.asarray(weight, np.float64), rng)
    for leaf, array in made.items():
        if naming.alpha or leaf != "alpha" or "lora_down.weight" not in made:
            yield leaf, array


def _others() -> Iterator[tuple[str, Draft]]:
    """What the catalogue of kinds has not."""
    rng = np.random.default_rng(1)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    flat = f"lora_unet_{name.replace('.', '_')}"
    wide = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"
    down, up = ("F16", rng.standard_normal((2, 8))), ("F16", rng.standard_normal((8, 2)))
    pair = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
    peft = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    told = json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 3}})
    yield "header settings", draft(peft, {"lora_adapter_metadata": told, "format": "pt"})
    yield "bias of up", draft({**peft, f"unet.{name}.lora_B.bias": ("F16", rng.standard_normal(8))})
    yield "scale", draft({**pair, f"{flat}.scale": ("F32", np.array(0.5)), f"{flat}.alpha": ("F32", np.array(1))})
    yield "dense", draft({**pair, f"{flat}.bias": ("F32", rng.standard_normal((8, 8)))})
    sparse = {"bias_indices": ("I64", np.array([[1, 2, 7], [0, 5, 7]])), "bias_size": ("I64", np.array([8, 8]))}
    sparse["bias_values"] = ("F32", rng.standard_normal(3))
    yield "sparse", draft({**pair, **{f"{flat}.{leaf}": tensor for leaf, tensor in sparse.items()}})
    scales = {f"base_model.model.{name}.ia3_l": ("F32", rng.standard_normal((8, 1)))}
    yield "ia3: peft", draft(scales, None, json.dumps({"peft_type": "IA3", "feedforward_modules": ["ff.net.2"]}))
    for word in ("emb_params", "string_to_param.*", "clip_l"):
        bundled = {f"bundle_emb.cat.{word}": ("F32", rng.standard_normal((3, WIDTH)))}
        yield f"bundled: {word}", draft({**pair, **bundled})
    thumbs = {"ss_tag_frequency": json.dumps({"a": {"b": 3}}), "ss_output_name": "ink", "ss_v2": "True"}
    both = {f"{wide}.lora_down.weight": ("F32", rng.standard_normal((4, 8)))}
    both[f"{wide}.lora_up.weight"] = ("F32", rng.standard_normal((64, 4)))
    yield "metadata", draft({**pair, **both}, thumbs)


def _words() -> Iterator[tuple[str, Draft]]:
    rng = np.random.default_rng(2)
    vectors = ("F32", rng.standard_normal((2, WIDTH)))
    yield "words: one", draft({"emb_params": vectors})
    yield "words: any name", draft({"<cat>": ("F16", rng.standard_normal(WIDTH))})
    yield "words: several", draft({"<cat>": vectors, "<dog>": ("BF16", rng.standard_normal((1, WIDTH)))})
    yield "words: SDXL", draft({"clip_l": vectors, "clip_g": ("F32", rng.standard_normal((2, 2 * WIDTH)))})
    yield "words: unpickled", draft({"string_to_param.*": vectors, "string_to_token.*": ("I64", np.array(265))})


def _written(files: list[Seed], bundle: Bundle, folder: Path) -> Iterator[Seed]:
    """Some of the files as packs and as ONNX Runtime's own."""
    for index, seed in enumerate(files[::5]):
        path = folder / f"{index}.safetensors"
        path.write_bytes(seed.blob)
        if seed.form == "folder":
            continue
        adapter = load_adapter(path, bundle, True)
        packed = write_pack(adapter, bundle, folder / f"{index}.pack.safetensors", "fp16" if index % 2 else "fp32")
        yield Seed(f"pack of {seed.name}", "pack", opened(packed), packed.read_bytes())
        if not adapter.embeddings:
            for component, tensors in list(parameters(adapter, bundle).items())[:1]:
                ort = folder / f"{index}.{component}.onnx_adapter"
                export_onnx_adapter(ort, tensors, ABI_VERSION, model_version(bundle))
                yield Seed(f"onnx_adapter of {seed.name}", "ort", None, ort.read_bytes())


def opened(path: Path) -> Draft:
    """A file of somebody else's, taken apart."""
    file = TensorFile.open(path)
    made = Draft(metadata=dict(file.metadata), data=bytearray(path.read_bytes()[file.header.data_start :]))
    for name, entry in file.header.entries.items():
        offsets = [entry.start, entry.end]
        made.entries.append((name, {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}))
    return made
