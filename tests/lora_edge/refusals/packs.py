"""What is wrong with packs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.errors import RequestError
from lora_edge.forms import Bias, ComponentForms, NormDelta
from lora_edge.pack import KEY, read_pack, write_pack
from lora_edge.ports import Ports, forms_of
from lora_edge.tensorfile import read_header

from .case import BLOCK, DAMAGED, MISMATCH, MISSING, PACK, UNKNOWN, VALUE, Case, Desk, of, pair

SLOT = f"{BLOCK}.attn1.to_q"
DOWN, UP, GAIN = f"lora.{SLOT}.down", f"lora.{SLOT}.up", f"lora.{SLOT}.gain_out"
AGAIN = "pack the original again with `lora-edge pack`"
MODULE = f"base_model.model.{SLOT}"

About = dict[str, Any]
Tensors = dict[str, Any]


def fitted(desk: Desk, more: Tensors | None = None) -> Adapter:
    file = desk.save(
        pair() | of("lora_te_text_model_final_layer_norm", {"w_norm": (16,)}) | (more or {}), name="o.safetensors"
    )
    return read_adapter(file).fit(desk.bundle.tables, base=desk.bundle)


def _packed(desk: Desk, change: Callable[[Tensors, About], Any], more: Tensors | None = None) -> Path:
    """A pack, changed and written again by the reference implementation."""
    path = write_pack(fitted(desk, more), desk.bundle, desk.folder / "p.safetensors", "fp32")
    tensors, about = load_file(path), json.loads(json.dumps(_about(path)))
    change(tensors, about)
    return desk.save(tensors, {KEY: about if isinstance(about, str) else json.dumps(about)})


def _about(path: Path) -> About:
    made: About = json.loads(read_header(path).metadata[KEY])
    return made


def _slots(about: About) -> list[Any]:
    found: list[Any] = about["components"]["unet"]["slots"]
    return found


def pack(
    name: str,
    change: Callable[[Tensors, About], Any],
    error: type,
    sentence: str,
    more: Tensors | None = None,
    **options: Any,
) -> Case:
    def act(desk: Desk) -> Any:
        return desk.open(_packed(desk, change, more), **options)

    return Case(name, act, error, rf"{{file}} {sentence}")


def wrong(name: str, change: Callable[[Tensors, About], Any], what: str) -> Case:
    return pack(name, change, DAMAGED, rf"describes itself wrongly in {KEY}: {what}; {AGAIN}")


def _nothing(tensors: Tensors, about: About) -> None:
    return None


def _write(change: Callable[[Adapter], Adapter], **options: Any) -> Callable[[Desk], Any]:
    return lambda desk: write_pack(change(fitted(desk)), desk.bundle, desk.folder / "p.safetensors", **options)


def _with(adapter: Adapter, forms: ComponentForms) -> Adapter:
    return replace(adapter, components={**adapter.components, "unet": forms})


def _input_of_nobody(desk: Desk) -> Any:
    """Past both readers, which have looked the names up before."""
    ports = Ports({"strange": (1,)}, lambda name: np.ones(1, np.float32), {})
    return forms_of(desk.bundle, "unet", ports)


WORD = {"bundle_emb.cat.emb_params": (2, 16)}

CASES = (
    pack(
        "another format",
        lambda t, a: a.update(format=9),
        PACK,
        f"was packed with format 9; this version reads 1: {AGAIN}",
    ),
    pack(
        "another contract", lambda t, a: a.update(abi=7), PACK, f"was packed with abi 7; this version reads 1: {AGAIN}"
    ),
    pack(
        "another bundle",
        lambda t, a: a["bundle"].update(fingerprint="ab" * 32),
        PACK,
        f"was packed for another bundle: for 'small' with the fingerprint 'abababababab', where "
        f"'small' has '5f5f5f5f5f5f'; {AGAIN}",
    ),
    Case(
        "no pack",
        lambda desk: read_pack(desk.save(pair()), desk.bundle),
        UNKNOWN,
        "{file} is no pack; make one with `lora-edge pack`",
    ),
    wrong("no format", lambda t, a: a.pop("format"), "'format'"),
    wrong("a slot twice", lambda t, a: _slots(a).append(_slots(a)[0]), "a slot is listed twice"),
    wrong("another rank", lambda t, a: _slots(a)[0].update(rank=3), f"the scales of '{SLOT}' are not of its rank"),
    wrong("no lanes", lambda t, a: _slots(a)[0].update(scales=[[0, 1.0]]), "no number of lanes is 0"),
    wrong("a scale of text", lambda t, a: _slots(a)[0].update(scales=[[2, "x"]]), "no scale is 'x'"),
    wrong("a name of a number", lambda t, a: a["adapter"].update(name=3), "no text is 3"),
    wrong("slots of text", lambda t, a: a["components"]["unet"].update(slots="x"), "no list is 'x'"),
    pack(
        "a component of nobody",
        lambda t, a: a["components"].update(vae={"prefix": "", "slots": []}),
        MISMATCH,
        f"describes a component 'vae', which the bundle has not; {AGAIN}",
    ),
    pack(
        "another order",
        lambda t, a: _slots(a).reverse(),
        MISMATCH,
        f"lists the slots of unet in another order than the bundle; {AGAIN}",
        of("lora_unet_conv_out", {"diff": (4, 8, 3, 3)}),
    ),
    pack(
        "a tensor of nobody",
        lambda t, a: t.update(strange=np.ones(1, np.float32)),
        MISMATCH,
        "holds 'strange', which no component that it describes has an input for",
    ),
    Case("an input of nobody", _input_of_nobody, MISMATCH, "holds 'strange', which unet has no input for"),
    pack(
        "a slot of nobody",
        lambda t, a: _slots(a)[0].update(name="nothing"),
        MISMATCH,
        "describes a slot 'nothing', which unet has not",
    ),
    pack(
        "lanes of an undescribed slot",
        lambda t, a: t.update({"lora.conv_in.down": np.ones((36, 2), np.float32)}),
        MISMATCH,
        r"holds 'lora\.conv_in\.down' of shape \[36, 2\] where no lanes is needed",
    ),
    pack(
        "another shape",
        lambda t, a: t.update({UP: np.ones((2, 9), np.float32)}),
        MISMATCH,
        rf"holds '{UP}' of shape \[2, 9\] where \[2, 8\] is needed",
    ),
    pack("a tensor missing", lambda t, a: t.pop(UP), MISMATCH, f"lacks {UP}"),
    pack(
        "another dtype",
        lambda t, a: t.update({UP: t[UP].astype(np.float64)}),
        MISMATCH,
        f"holds '{UP}' in F64 where F16 or F32 is needed",
    ),
    pack("a NaN", lambda t, a: t[UP].fill(np.nan), VALUE, f"holds numbers that are not finite in '{UP}'; {AGAIN}"),
    pack(
        "a word of another width",
        lambda t, a: t.update({"tokens.text_encoder.cat": np.ones((1, 9), np.float32)}),
        MISMATCH,
        r"holds the word 'tokens\.text_encoder\.cat' of shape \[1, 9\] where \[n, 16\] is needed",
        WORD,
    ),
    pack(
        "a word of no text encoder",
        lambda t, a: t.update({"tokens.vae.cat": np.ones((1, 9), np.float32)}),
        MISMATCH,
        r"holds the word 'tokens\.vae\.cat' of shape \[1, 9\] where the bundle has no text encoder of that name",
        WORD,
    ),
    pack(
        "one component of several",
        _nothing,
        MISMATCH,
        "changes text_encoder and unet and not unet alone; load it without component=",
        component="unet",
    ),
    Case(
        "a pack for another component",
        lambda desk: desk.open(_packed(desk, _nothing), component="vae"),
        MISSING,
        "the bundle has no 'vae' that takes adapters; it has unet, text_encoder",
    ),
    # writing
    Case(
        "another dtype to write",
        _write(lambda adapter: adapter, dtype="fp8"),
        RequestError,
        "there is no dtype 'fp8'; packs are written in fp16 or fp32",
    ),
    Case(
        "another bundle's adapter to write",
        _write(lambda adapter: _with(adapter, ComponentForms({}, {"gone": NormDelta(np.ones(8, np.float32))}))),
        MISMATCH,
        "the unet of {folder} has no layer gone; fit the adapter to it",
    ),
    Case(
        "an infinity to write",
        _write(lambda adapter: _with(adapter, ComponentForms({SLOT: (Bias(np.full(8, np.inf, np.float32)),)}))),
        VALUE,
        rf"the adapter has numbers that are not finite in lora\.{SLOT}\.bias",
    ),
    Case(
        "factors beyond float16",
        lambda desk: write_pack(
            fitted(desk, of("lora_unet_conv_out", {"diff": np.full((4, 8, 3, 3), 1e6, np.float32)})),
            desk.bundle,
            desk.folder / "p.safetensors",
        ),
        VALUE,
        r"float16 cannot hold 'lora\.conv_out\.(down|up)', whose largest number is 1e\+06; pack it with --dtype fp32",
    ),
)
