"""Packs as files: what is written, and every refusal of what is read."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_edge import errors
from lora_edge.adapter import Adapter, Report
from lora_edge.bundle import Bundle
from lora_edge.embedding import Embedding
from lora_edge.forms import Bias, ComponentForms, Gain, LowRank, NormDelta
from lora_edge.opening import open_adapter
from lora_edge.pack import KEY, is_pack, prefixes, read_pack, write_pack
from lora_edge.slots import Slot, SlotTable

SLOT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
NORM = "text_model.final_layer_norm"

About = dict[str, Any]
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def low_rank(slot: Slot, rank: int, scale: float) -> LowRank:
    rng = np.random.default_rng(rank)
    down = rng.standard_normal((slot.patch, rank), np.float32)
    return LowRank(down, rng.standard_normal((rank, slot.out_features), np.float32), scale)


@pytest.fixture(scope="module")
def ink(bundle: Bundle) -> Adapter:
    """One slot with two scales and a gain; a slot with a bias and a norm of the text encoder; a word."""
    slot, norm = bundle.component("unet").table.by_name[SLOT], NormDelta(np.ones(64, np.float32))
    gain, bias = Gain("out", np.full(32, 3, np.float32)), Bias(np.full(128, 0.5, np.float32))
    parts = {
        "unet": ComponentForms({SLOT: (low_rank(slot, 2, 0.5), low_rank(slot, 3, 0.25), gain)}),
        "text_encoder": ComponentForms({TEXT: (bias,)}, {NORM: norm}),
    }
    words = (Embedding("my.word", {"text_encoder": np.eye(2, 64, dtype=np.float32)}),)
    return Adapter(
        "ink", ("lora", "full"), parts, {"ss_output_name": "ink", "modelspec.title": "Ink"}, Report(), None, words
    )


@pytest.fixture
def packed(ink: Adapter, bundle: Bundle, tmp_path: Path) -> Path:
    return write_pack(ink, bundle, tmp_path / "ink.pack.safetensors")


@pytest.fixture
def edited(packed: Path) -> Callable[[Callable[[Tensors, About], Any]], Path]:
    """Change the tensors and the description of a pack, with the reference reader and writer."""

    def edit(change: Callable[[Tensors, About], Any]) -> Path:
        with safe_open(packed, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
        about = json.loads(metadata[KEY])
        change(tensors, about)
        save_file(tensors, packed, {**metadata, KEY: json.dumps(about)})
        return packed

    return edit


def test_what_a_pack_holds(packed: Path, bundle: Bundle, ink: Adapter) -> None:
    with safe_open(packed, "np") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {name: (array.dtype.name, array.shape) for name, array in held.items()} == {
        f"lora.{SLOT}.down": ("float16", (32, 5)),
        f"lora.{SLOT}.up": ("float16", (5, 32)),
        f"lora.{SLOT}.gain_out": ("float32", (32,)),
        f"lora.{TEXT}.bias": ("float32", (128,)),
        f"{NORM}.weight": ("float32", (64,)),
        "tokens.text_encoder.my.word": ("float32", (2, 64)),
    }
    assert np.array_equal(held[f"{NORM}.weight"], bundle.component("text_encoder").norms()[f"{NORM}.weight"] + 1)
    assert is_pack(metadata) and metadata["ss_output_name"] == "ink" and metadata["modelspec.title"] == "Ink"
    slots = [{"name": SLOT, "rank": 5, "scales": [[2, 0.5], [3, 0.25]]}]
    assert json.loads(metadata[KEY]) == {
        "format": 1,
        "abi": 1,
        "bundle": {"fingerprint": bundle.fingerprint, "family": bundle.manifest["family"], "name": "tiny"},
        "adapter": {"name": "ink", "kinds": ["lora", "full"]},
        "dtype": "fp16",
        "components": {"unet": {"prefix": "", "slots": slots}, "text_encoder": {"prefix": "", "slots": []}},
    }


def test_what_is_read_is_what_was_written(packed: Path, bundle: Bundle, ink: Adapter) -> None:
    read = read_pack(packed, bundle)
    assert (read.name, read.kinds, read.metadata, read.path) == ("ink", ink.kinds, ink.metadata, packed)
    assert set(read.report.applied) and not read.report.unused and set(read.components) == set(ink.components)
    first, second, gain = read.components["unet"].slots[SLOT]
    for form, original in zip((first, second), ink.components["unet"].slots[SLOT][:2], strict=True):
        assert isinstance(form, LowRank) and isinstance(original, LowRank) and form.scale == original.scale
        assert np.array_equal(form.down, original.down.astype(np.float16))
        assert form.down.dtype == np.float32 and form.down.flags.c_contiguous and form.up.flags.c_contiguous
    assert isinstance(gain, Gain) and gain.axis == "out" and (gain.values == 3).all()
    norm = read.components["text_encoder"].norms[NORM]
    assert norm.bias is None and norm.weight is not None and np.allclose(norm.weight, 1)
    [word] = read.embeddings
    assert word.name == "my.word" and np.array_equal(word.vectors["text_encoder"], np.eye(2, 64))


def test_one_component_of_several(packed: Path, bundle: Bundle) -> None:
    with pytest.raises(
        errors.AdapterMismatch, match="changes text_encoder and unet and not unet alone; load it without"
    ):
        read_pack(packed, bundle, "unet")
    with pytest.raises(errors.ComponentMissing, match="no 'vae' that takes adapters; it has text_encoder, unet"):
        read_pack(packed, bundle, "vae")
    part = open_adapter(packed, bundle, "unet", strict=False)
    assert set(part.components) == {"unet"} and set(part.report.unused) == {f"lora.{TEXT}.bias", f"{NORM}.weight"}
    assert set(part.report.applied) & set(part.report.unused) == set()


def test_memory_is_told_before_it_is_taken(packed: Path, bundle: Bundle) -> None:
    with pytest.raises(errors.AdapterTooLarge, match="would take 0.0 MB in 5 lanes in memory, and 0.0 MB are allowed"):
        open_adapter(packed, bundle, max_bytes=100)
    assert open_adapter(packed, bundle, max_bytes=10_000)


def test_layers_of_the_same_name_are_told_apart_by_the_later_component() -> None:
    """SDXL's two text encoders; the rule looks at the bundle alone."""
    one, two, other = (Slot("text_model.a", 2, 2), Slot("text_model.b", 2, 2), Slot("down.a", 2, 2))
    tables = [SlotTable("unet", (other,)), SlotTable("text_encoder", (one,)), SlotTable("text_encoder_2", (one, two))]
    assert prefixes(tables) == {"unet": "", "text_encoder": "", "text_encoder_2": "text_encoder_2/"}


def test_two_text_encoders_share_a_pack(bundle: Bundle, tmp_path: Path) -> None:
    encoder = bundle.component("text_encoder")
    second = replace(encoder, name="text_encoder_2", table=replace(encoder.table, component="text_encoder_2"))
    both = replace(bundle, components={**bundle.components, "text_encoder_2": second})
    slot = encoder.table.by_name[TEXT]
    parts = {
        name: ComponentForms({TEXT: (low_rank(slot, rank, 1.0),)}, {NORM: NormDelta(None, np.ones(64, np.float32))})
        for rank, name in enumerate(("text_encoder", "text_encoder_2"), 1)
    }
    words = (Embedding("w", {name: np.ones((1, 64), np.float32) for name in parts}),)
    path = write_pack(Adapter("x", (), parts, {}, Report(), None, words), both, tmp_path / "x.safetensors", "fp32")
    with safe_open(path, "np") as file:
        assert f"lora.{TEXT}.down" in file.keys() and f"text_encoder_2/lora.{TEXT}.down" in file.keys()  # noqa: SIM118
    read = read_pack(path, both)
    for name, part in parts.items():
        [form], [original] = read.components[name].slots[TEXT], part.slots[TEXT]
        assert isinstance(form, LowRank) and isinstance(original, LowRank) and np.array_equal(form.up, original.up)
    assert set(read.embeddings[0].vectors) == set(parts)


def fails(change: Callable[[Tensors, About], Any], error: type[Exception], words: str, name: str) -> Any:
    return pytest.param(change, error, words, id=name)


DOWN, UP, GAIN = f"lora.{SLOT}.down", f"lora.{SLOT}.up", f"lora.{SLOT}.gain_out"
MISMATCH, DAMAGED, OTHER = errors.AdapterMismatch, errors.AdapterFileDamaged, errors.PackMismatch


def slots(about: About) -> list[Any]:
    found: list[Any] = about["components"]["unet"]["slots"]
    return found


REFUSALS = [
    fails(lambda t, a: a.update(format=2), OTHER, "with format 2; this version reads 1: pack the original", "format"),
    fails(lambda t, a: a.update(abi=7), OTHER, "was packed with abi 7; this version reads 1", "abi"),
    fails(lambda t, a: a["bundle"].update(fingerprint="f" * 64, name="sd15"), OTHER,
          r"packed for another bundle: for 'sd15' with the fingerprint 'f{12}', where 'tiny' has '[0-9a-f]{12}'; "
          r"pack the original again with `lora-edge pack`", "fingerprint"),
    fails(lambda t, a: a.pop("adapter"), DAMAGED, "itself wrongly in lora_edge_pack: 'adapter'", "no adapter"),
    fails(lambda t, a: a.update(components=[]), DAMAGED, "describes itself wrongly", "components"),
    fails(lambda t, a: slots(a).append(slots(a)[0]), DAMAGED, "a slot is listed twice", "twice"),
    fails(lambda t, a: slots(a)[0].update(rank=4), DAMAGED, "are not of its rank", "rank"),
    fails(lambda t, a: slots(a)[0].update(scales=[[5, float("nan")]]), DAMAGED, "no scale is nan", "nan scale"),
    fails(lambda t, a: slots(a)[0].update(scales=[[5, 10**400]]), DAMAGED, "no scale is 10{9}", "huge scale"),
    fails(lambda t, a: slots(a)[0].update(scales=[[5, True]]), DAMAGED, "no scale is True", "bool scale"),
    fails(lambda t, a: slots(a)[0].update(scales=[[0, 1.0], [5, 1.0]]), DAMAGED, "no number of lanes is 0", "no lanes"),
    fails(lambda t, a: slots(a)[0].update(scales=[[2**62, 1.0]], rank=2**62), MISMATCH,
          r"down' of shape \[32, 5\] where \[32, 4611686018427387904\] is needed", "rank bomb"),
    fails(lambda t, a: slots(a).clear(), MISMATCH, r"down' of shape \[32, 5\] where no lanes is needed", "no scales"),
    fails(lambda t, a: slots(a).insert(0, {"name": "conv_out", "rank": 1, "scales": [[1, 1]]}), MISMATCH,
          "lists the slots of unet in another order", "order"),
    fails(lambda t, a: slots(a)[0].update(name="nowhere"), MISMATCH, "a slot 'nowhere', which unet has not", "slot"),
    fails(lambda t, a: a["components"].update(vae_decoder={"prefix": "", "slots": []}), MISMATCH,
          "describes a component 'vae_decoder', which the bundle has not", "component"),
    fails(lambda t, a: a["components"]["unet"].update(prefix="unet/"), MISMATCH, "a component 'unet'", "prefix"),
    fails(lambda t, a: a["components"].pop("text_encoder"), MISMATCH, "no component that it describes", "undescribed"),
    fails(lambda t, a: t.pop(UP), MISMATCH, f"lacks {UP}", "no up"),
    fails(lambda t, a: t.update(strange=np.ones(1)), MISMATCH, "holds 'strange', which no component", "strange tensor"),
    fails(lambda t, a: t.update({"x" * 5000: np.ones(1)}), MISMATCH, "holds 'x{99}…, which no", "long name"),
    fails(lambda t, a: t.update({DOWN: t[DOWN].T.copy()}), MISMATCH, r"shape \[5, 32\] where \[32, 5\] is", "turned"),
    fails(lambda t, a: t.update({GAIN: t[GAIN][:7]}), MISMATCH, r"shape \[7\] where \[32\] or \[1\] is needed", "gain"),
    fails(lambda t, a: t.update({GAIN: t[GAIN].astype("f2")}), MISMATCH, "in F16 where F32 is needed", "gain dtype"),
    fails(lambda t, a: t.update({DOWN: t[DOWN].astype("i8")}), MISMATCH, "in I64 where F16 or F32 is", "down dtype"),
    fails(lambda t, a: t[UP].fill(np.nan), errors.AdapterValueError, f"not finite in '{UP}'", "nan"),
    fails(lambda t, a: t[UP].fill(np.inf), errors.AdapterValueError, f"not finite in '{UP}'", "inf"),
    fails(lambda t, a: t.update({"tokens.text_encoder.w": np.ones((1, 63), "f4")}), MISMATCH,
          r"holds the word 'tokens.text_encoder.w' of shape \[1, 63\] where \[n, 64\] is needed", "word"),
    fails(lambda t, a: t.update({"tokens.unet.w": np.ones((1, 64), "f4")}), MISMATCH,
          "the bundle has no text encoder of that name", "word of no encoder"),
    fails(lambda t, a: t.update({"tokens.text_encoder.w": np.ones((1, 64), "i8")}), MISMATCH, "in I64", "word dtype"),
    fails(lambda t, a: t.update({"tokens.text_encoder.w": np.full((1, 64), np.inf, "f4")}), errors.AdapterValueError,
          "not finite", "word value"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), REFUSALS)
def test_what_is_refused(
    edited: Callable[[Callable[[Tensors, About], Any]], Path],
    bundle: Bundle,
    change: Callable[[Tensors, About], Any],
    error: type[Exception],
    words: str,
) -> None:
    path = edited(change)
    with pytest.raises(error, match=words) as caught:
        read_pack(path, bundle)
    assert type(caught.value) is error and str(caught.value).startswith(str(path))


def test_what_is_no_pack(bundle: Bundle, tmp_path: Path) -> None:
    save_file({"a": np.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(errors.UnknownKind, match="is no pack; make one with `lora-edge pack`"):
        read_pack(tmp_path / "a.safetensors", bundle)
    for text in ("[" * 100_000, "[]", "{}", "7", '"x"', "nul", '{"format":1,"abi":1}', '{"format":[],"abi":1}'):
        save_file({"a": np.ones(1)}, tmp_path / "a.safetensors", {KEY: text})
        with pytest.raises((errors.AdapterFileDamaged, errors.PackMismatch)):
            open_adapter(tmp_path / "a.safetensors", bundle)


def only(name: str, *forms: Any, component: str = "unet", **more: Any) -> Adapter:
    return Adapter("x", (), {component: ComponentForms({name: forms})}, {}, Report(), **more)


def test_what_is_not_written(bundle: Bundle, ink: Adapter, tmp_path: Path) -> None:
    slot = bundle.component("unet").table.by_name[SLOT]
    good, path = low_rank(slot, 1, 1.0), tmp_path / "x.safetensors"

    def refused(adapter: Adapter, error: type[Exception], words: str, dtype: str = "fp16", to: Path = path) -> None:
        with pytest.raises(error, match=words):
            write_pack(adapter, bundle, to, dtype)
        assert not list(tmp_path.iterdir()), "nothing is left behind"

    beyond = only(SLOT, replace(good, up=good.up * 1e6))
    refused(beyond, errors.AdapterValueError, rf"float16 cannot hold '{UP}', whose largest number is \d.*--dtype fp32")
    below = only(SLOT, replace(good, up=good.up * 1e-6))
    refused(below, errors.AdapterValueError, f"float16 cannot hold '{UP}', whose largest number is .*e-0")
    broken = only(SLOT, replace(good, down=good.down * np.float32("nan")))
    refused(broken, errors.AdapterValueError, f"not finite in {DOWN}", "fp32")
    refused(only("nowhere", good), errors.AdapterMismatch, "has no layer nowhere; fit the adapter to it")
    refused(
        only("conv_in", good), errors.AdapterMismatch, r"holds 'lora.conv_in.down' of shape \[32, 1\] where \[36, 1\]"
    )
    refused(only(SLOT, good, component="te"), errors.ComponentMissing, "has no te")
    refused(ink, errors.RequestError, "no dtype 'fp8'; packs are written in fp16 or fp32", "fp8")
    refused(ink, errors.RequestError, "does not end in .safetensors", to=tmp_path / "x.pack")
    refused(ink, errors.RequestError, "does not exist", to=tmp_path / "deep" / "x.safetensors")
    wide = (Embedding("w", {"text_encoder": np.ones((1, 7), np.float32)}),)
    refused(only(SLOT, good, embeddings=wide), errors.AdapterMismatch, r"of shape \[1, 7\] where \[n, 64\] is needed")
    zeros = only(SLOT, replace(good, up=np.zeros_like(good.up)))
    assert read_pack(write_pack(zeros, bundle, path), bundle).components["unet"].slots[SLOT]


def test_a_file_that_is_there_stays_unless_told(packed: Path, bundle: Bundle, ink: Adapter) -> None:
    before = packed.read_bytes()
    with pytest.raises(errors.RequestError, match="exists already"):
        write_pack(ink, bundle, packed, "fp32")
    assert packed.read_bytes() == before
    write_pack(ink, bundle, packed, "fp32", force=True)
    assert packed.read_bytes() != before
    write_pack(replace(ink, metadata={**ink.metadata, "note": "\ud800"}), bundle, packed, force=True)
    assert read_pack(packed, bundle).metadata["note"] == "?"
    assert [path.name for path in packed.parent.iterdir()] == [packed.name]


def mutations(original: bytes, count: int) -> Iterator[bytes]:
    """Cut, flipped, overwritten and grown copies; most of them in the header, where the meaning is."""
    rng = random.Random(4)
    header = 8 + int.from_bytes(original[:8], "little")
    for _ in range(count):
        made = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(rng.choice((12, header, len(made))))
            match rng.randrange(4):
                case 0:
                    made[at] ^= 1 << rng.randrange(8)
                case 1:
                    made[at] = rng.choice(b'0123456789"[]{},:-. \x00\xff')
                case 2:
                    del made[at : at + rng.randint(1, 9)]
                case _:
                    made[at:at] = rng.choice((b"9", b"-", b"e9", b'"', b"null", b"[" * 20))
        yield bytes(made)


def test_no_mutation_escapes(packed: Path, bundle: Bundle, tmp_path: Path) -> None:
    path, read = tmp_path / "m.safetensors", 0
    for made in mutations(packed.read_bytes(), 800):
        path.write_bytes(made)
        try:
            adapter = read_pack(path, bundle)
        except errors.LoraEdgeError:
            continue
        read += 1
        for part in adapter.components.values():
            for form in (form for forms in part.slots.values() for form in forms):
                assert all(np.isfinite(array).all() for array in vars(form).values() if isinstance(array, np.ndarray))
    assert read > 20, "some change nothing that matters"
