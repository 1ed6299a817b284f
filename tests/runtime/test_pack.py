"""Packs, run: what comes out equals the adapter that was packed, also through ONNX Runtime's own adapter files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lora_edge import errors
from lora_edge.adapter import Adapter, Report
from lora_edge.bundle import Bundle
from lora_edge.forms import Bias, ComponentForms, Gain, LowRank, NormDelta
from lora_edge.opening import open_adapter
from lora_edge.ortadapter import model_version, read_onnx_adapter
from lora_edge.pack import read_pack, write_pack
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.ortadapter import write_onnx_adapters

RANDOM = np.random.default_rng(5)
Inputs = dict[str, dict[str, Any]]


def normal(*shape: int, scale: float = 1.0) -> Any:
    return (scale * RANDOM.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """Two rows for every component that takes adapters."""
    states = {"encoder_hidden_states": normal(2, 77, 64), "timestep": np.array([500])}
    return {
        "unet": {"sample": normal(2, 4, 16, 16), **states},
        "text_encoder": {"input_ids": RANDOM.integers(0, 500, (2, 77))},
    }


@pytest.fixture(scope="module")
def everything(bundle: Bundle) -> Adapter:
    """An adapter of every form there is, two forms of different scale on one slot, in two components."""
    parts = {}
    for component in ("unet", "text_encoder"):
        opened = bundle.component(component)
        slots: dict[str, tuple[Any, ...]] = {}
        for index, slot in enumerate(opened.table):
            lanes = [
                LowRank(normal(slot.patch, rank, scale=slot.patch**-0.5), normal(rank, slot.out_features), scale)
                for rank, scale in [(2, 0.3), (1, 1 / 7), (3, 1 / 7)][: 1 + index % 3]
            ]
            others = [Gain("out", 1 + normal(slot.out_features, scale=0.2)), Bias(normal(slot.out_features, scale=0.1))]
            over_inputs = Gain("in", 1 + normal(slot.in_features, scale=0.2))
            slots[slot.name] = (lanes, (*lanes, *others), (over_inputs,))[index % 3]
        norms = {
            name: NormDelta(normal(channels, scale=0.2), normal(channels) if index % 2 else None)
            for index, (name, channels) in enumerate(opened.table.norms.items())
        }
        parts[component] = ComponentForms({name: tuple(forms) for name, forms in slots.items()}, norms)
    return Adapter("everything", ("lora", "dora"), parts, {"ss_output_name": "everything"}, Report())


def load(engine: Engine, styles: Path, everything: Adapter, name: str) -> Adapter:
    return everything if name == "everything" else engine.load_adapter(styles / name)


def runs(engine: Engine, inputs: Inputs, *pairs: tuple[Adapter, Any]) -> dict[str, np.ndarray]:
    return {
        f"{component}.{name}": array
        for component in ("unet", "text_encoder")
        for name, array in engine.run(component, inputs[component], adapters=pairs).items()
    }


def effect(engine: Engine, inputs: Inputs, one: Adapter, other: Adapter, multiplier: float) -> float:
    """The largest difference between two adapters, relative to the largest that the first makes to the base."""
    base, first, second = runs(engine, inputs), runs(engine, inputs, (one, multiplier)), runs(
        engine, inputs, (other, multiplier)
    )  # fmt: skip
    return max(
        float(np.abs(second[name] - first[name]).max() / (np.abs(first[name] - base[name]).max() or np.inf))
        for name in base
    )


@pytest.mark.parametrize("name", ["ink.safetensors", "deep/glow.safetensors", "fog"])
@pytest.mark.parametrize("multiplier", [1.0, 0.7, -0.5])
def test_a_float32_pack_is_the_adapter_bit_for_bit(
    engine: Engine, bundle: Bundle, styles: Path, inputs: Inputs, tmp_path: Path, name: str, multiplier: float
) -> None:
    direct = engine.load_adapter(styles / name)
    path = write_pack(direct, bundle, tmp_path / f"{direct.name}.pack.safetensors", "fp32")
    packed = read_pack(path, bundle)
    assert packed.name == direct.name and packed.kinds == direct.kinds == ("lora",)
    first, second = runs(engine, inputs, (direct, multiplier)), runs(engine, inputs, (packed, multiplier))
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_an_engine_uses_packs_where_they_lie(
    tiny_bundle: Path, bundle: Bundle, engine: Engine, styles: Path, inputs: Inputs, tmp_path: Path, backend: str
) -> None:
    direct = engine.load_adapter(styles / "ink.safetensors")
    path = write_pack(direct, bundle, tmp_path / "ink.pack.safetensors", "fp32")
    mapping = Engine.open(tiny_bundle, backend, threads=1, precision="fp32", map_packs=True)
    reading = Engine.open(tiny_bundle, backend, threads=1, precision="fp32")
    first, second = (
        runs(one, inputs, (one.load_adapter(path), 1.0), (one.load_adapter(styles / "fog"), 0.5))
        for one in (mapping, reading)
    )
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_numbers_taken_on_trust_make_no_image(
    tiny_bundle: Path, bundle: Bundle, engine: Engine, styles: Path, tmp_path: Path
) -> None:
    path = write_pack(
        engine.load_adapter(styles / "ink.safetensors"), bundle, tmp_path / "ink.pack.safetensors", "fp32"
    )
    path.write_bytes(path.read_bytes()[:-4] + np.float32("nan").tobytes())
    with pytest.raises(errors.AdapterValueError, match="not finite"):
        engine.load_adapter(path)
    mapping = Engine.open(tiny_bundle, threads=1, map_packs=True)
    with pytest.raises(errors.GraphFailed, match="not finite"):
        mapping.generate("a cat", adapters=[(mapping.load_adapter(path), 1.0)], steps=1)


def test_every_form_survives(
    engine: Engine, bundle: Bundle, everything: Adapter, inputs: Inputs, tmp_path: Path
) -> None:
    packed = read_pack(write_pack(everything, bundle, tmp_path / "a.safetensors", "fp32"), bundle)
    first, second = runs(engine, inputs, (everything, 1.0)), runs(engine, inputs, (packed, 1.0))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    for multiplier in (0.7, -0.5):
        assert effect(engine, inputs, everything, packed, multiplier) < 1e-5
    assert packed.metadata == everything.metadata


@pytest.mark.parametrize("name", ["ink.safetensors", "deep/glow.safetensors", "everything"])
def test_float16_rounds_once(
    engine: Engine, bundle: Bundle, styles: Path, everything: Adapter, inputs: Inputs, tmp_path: Path, name: str
) -> None:
    direct = load(engine, styles, everything, name)
    full = write_pack(direct, bundle, tmp_path / "full.safetensors", "fp32")
    half = write_pack(direct, bundle, tmp_path / f"{direct.name}.pack.safetensors")
    packed = read_pack(half, bundle)
    assert half.stat().st_size < 0.7 * full.stat().st_size
    assert effect(engine, inputs, direct, packed, 1.0) < 3e-3
    before = half.read_bytes()
    assert write_pack(packed, bundle, half, force=True).read_bytes() == before, "what is rounded stays as it is"


@pytest.mark.parametrize("name", ["ink.safetensors", "deep/glow.safetensors", "fog", "everything"])
def test_onnxruntime_uses_its_own_form_without_us(
    engine: Engine, bundle: Bundle, styles: Path, everything: Adapter, inputs: Inputs, tmp_path: Path, name: str
) -> None:
    direct = load(engine, styles, everything, name)
    paths = write_onnx_adapters(direct, bundle, tmp_path / "style")
    assert [path.name for path in paths] == [f"style.{part}.onnx_adapter" for part in sorted(direct.components)]
    for path, component in zip(paths, sorted(direct.components), strict=True):
        held = onnxruntime.AdapterFormat.read_adapter(str(path))
        assert (held.get_adapter_version(), held.get_model_version()) == (1, model_version(bundle))
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        session = onnxruntime.InferenceSession(str(bundle.component(component).graph), options)
        lora, run = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        lora.Load(str(path))
        run.add_active_adapter(lora)
        types = {port.name: {"tensor(int64)": np.int64}.get(port.type, np.float32) for port in session.get_inputs()}
        plain = {key: np.asarray(array, types[key]) for key, array in inputs[component].items()}
        theirs = session.run(None, plain, run)
        fed = session.run(None, plain | engine.feeds(component, [(direct, 1.0)]))
        ours = engine.run(component, inputs[component], adapters=[(direct, 1.0)])
        for port, array, same in zip(session.get_outputs(), theirs, fed, strict=True):
            assert np.array_equal(array, same), port.name
            assert np.abs(array - ours[port.name]).max() <= 2e-5 * np.abs(array).max(), "halves round otherwise"

        back = read_onnx_adapter(path, bundle)
        assert (back.name, list(back.components)) == ("style", [component])
        again = engine.run(component, inputs[component], adapters=[(back, 1.0)])
        assert all(np.array_equal(again[key], ours[key]) for key in ours)


def test_one_opener_takes_every_form(
    engine: Engine, bundle: Bundle, styles: Path, inputs: Inputs, tmp_path: Path
) -> None:
    original = styles / "ink.safetensors"
    direct = open_adapter(original, bundle)
    assert set(open_adapter(styles / "fog", bundle).components) == {"unet"}
    (ort,) = write_onnx_adapters(open_adapter(styles / "fog", bundle), bundle, tmp_path / "fog")
    assert open_adapter(ort, bundle, "unet").name == "fog"
    packed = open_adapter(write_pack(direct, bundle, tmp_path / "renamed.safetensors", "fp32"), bundle)
    assert packed.name == "renamed", "what a prompt calls it"
    first, second = runs(engine, inputs, (direct, 0.3)), runs(engine, inputs, (packed, 0.3))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_gains_of_both_axes_on_one_slot(engine: Engine, bundle: Bundle, inputs: Inputs, tmp_path: Path) -> None:
    """The graph would multiply them; a pack holds the lanes that a mix makes of those over inputs."""
    slots = {slot.name: slot for slot in bundle.component("unet").table}
    both = {
        name: (
            Gain("in", 1 + normal(slot.in_features, scale=0.2)),
            Gain("out", 1 + normal(slot.out_features, scale=0.2)),
        )
        for name, slot in list(slots.items())[:9]
    }
    direct = Adapter("both", ("ia3",), {"unet": ComponentForms(both)}, {}, Report())
    packed = read_pack(write_pack(direct, bundle, tmp_path / "a.safetensors", "fp32"), bundle)
    for multiplier in (1.0, 0.7):
        first, second = runs(engine, inputs, (direct, multiplier)), runs(engine, inputs, (packed, multiplier))
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_images_of_packs(engine: Engine, bundle: Bundle, styles: Path, tmp_path: Path) -> None:
    def image(*pairs: tuple[Adapter, float], prompt: str = "a cat", **more: Any) -> np.ndarray:
        [made] = engine.generate(prompt, seed=1, steps=2, adapters=pairs, **more)
        return np.asarray(made)

    ink = engine.load_adapter(styles / "ink.safetensors")
    pack = write_pack(ink, bundle, tmp_path / "ink.pack.safetensors", "fp32")
    wanted = image((ink, 0.6))
    assert not np.array_equal(wanted, image())
    assert np.array_equal(wanted, image((engine.load_adapter(pack), 0.6)))
    assert np.array_equal(wanted, image(prompt="a cat <lora:ink:0.6>", lora_dir=tmp_path))
    halves = [engine.load_adapter(path) for path in write_onnx_adapters(ink, bundle, tmp_path / "ink")]
    assert np.array_equal(wanted, image(*((half, 0.6) for half in halves)))


def test_the_same_adapter_gives_the_same_bytes(bundle: Bundle, everything: Adapter, tmp_path: Path) -> None:
    def both(name: str, write: Callable[[Path], Any]) -> list[bytes]:
        for index in range(2):
            (tmp_path / f"{name}{index}").mkdir()
            write(tmp_path / f"{name}{index}")
        return [
            b"".join(path.read_bytes() for path in sorted((tmp_path / f"{name}{index}").iterdir())) for index in (0, 1)
        ]

    for writer in (
        lambda folder: write_pack(everything, bundle, folder / "a.safetensors"),
        lambda folder: write_onnx_adapters(everything, bundle, folder / "a"),
    ):
        one, other = both(writer.__code__.co_names[0], writer)
        assert one == other


def test_an_engine_mixes_packs_with_plain_adapters(
    engine: Engine, bundle: Bundle, styles: Path, everything: Adapter, inputs: Inputs, tmp_path: Path
) -> None:
    glow = engine.load_adapter(styles / "deep" / "glow.safetensors")
    packed = read_pack(write_pack(everything, bundle, tmp_path / "a.safetensors", "fp32"), bundle)
    first = runs(engine, inputs, (everything, 1.0), (glow, 0.4))
    second = runs(engine, inputs, (packed, 1.0), (glow, 0.4))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_the_description_suffices_for_another_program(bundle: Bundle, everything: Adapter, tmp_path: Path) -> None:
    """docs/packs.md, done by hand with the reference reader: the feeds are those of the mix."""
    from safetensors import safe_open

    from lora_edge.ports import feeds_of

    path = write_pack(everything, bundle, tmp_path / "a.safetensors", "fp32")
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["lora_edge_pack"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert file is not None and about["bundle"]["fingerprint"] == bundle.fingerprint
    manifest = json.loads((bundle.folder / "lora_edge.json").read_text(encoding="utf-8"))
    for component, forms in everything.components.items():
        part = about["components"][component]
        ranks = {slot["name"]: slot["rank"] for slot in part["slots"]}
        scales = [scale for slot in part["slots"] for lanes, scale in slot["scales"] for _ in range(lanes)]
        feeds = {
            "lora.scales": np.array([scales], np.float32),
            "lora.ranks": np.array([ranks.get(slot["name"], 0) for slot in manifest["components"][component]["slots"]]),
        }
        wanted = feeds_of(bundle, component, forms)
        feeds |= {name: tensors[part["prefix"] + name] for name in wanted if name not in feeds}
        assert feeds.keys() == wanted.keys()
        assert all(np.array_equal(feeds[name], wanted[name]) for name in wanted)
