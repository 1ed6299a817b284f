"""Folders that PEFT wrote for small real models: every layer's weight and bias is the one that PEFT merges."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from lora_edge.adapterfile import read_adapter
from lora_edge.errors import BaseNeeded, UnknownKind
from lora_edge.forms import Bias, Gain, LowRank
from lora_edge.slots import SlotTable

UNET = ["to_q", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "downsamplers.0.conv"]
TEXT = ["q_proj", "fc1", "fc2"]
BOUND = 1e-4  # of the change
ROUNDING = 3e-7  # of the weight, float32 in PEFT's own sums

Make = Callable[[list[str]], Any]
CONFIGS: dict[str, tuple[str, Make]] = {
    "loha": ("loha", lambda targets: LoHaConfig(r=2, alpha=3, target_modules=targets, init_weights=False)),
    "loha tucker": (
        "loha",
        lambda targets: LoHaConfig(
            r=2, alpha=3, target_modules=targets, init_weights=False, use_effective_conv2d=True
        ),
    ),
    "loha patterns": (
        "loha",
        lambda targets: LoHaConfig(
            r=2,
            alpha=3,
            target_modules=targets,
            init_weights=False,
            rank_pattern={targets[0]: 3},
            alpha_pattern={targets[-1]: 7},
        ),
    ),
    "lokr": ("lokr", lambda targets: LoKrConfig(r=2, alpha=3, target_modules=targets, init_weights=False)),
    "lokr whole": ("lokr", lambda targets: LoKrConfig(r=64, alpha=3, target_modules=targets, init_weights=False)),
    "lokr both": (
        "lokr",
        lambda targets: LoKrConfig(
            r=1, alpha=3, target_modules=targets, init_weights=False, decompose_both=True, use_effective_conv2d=True
        ),
    ),
    "ia3": ("ia3", lambda targets: IA3Config(target_modules=targets, feedforward_modules=targets[::2])),
    "ia3 regex": ("ia3", lambda targets: IA3Config(target_modules=targets, feedforward_modules=rf".*{targets[-1]}")),
    "dora": (
        "lora+dora",
        lambda targets: LoraConfig(
            r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, use_dora=True
        ),
    ),
    "rsdora": (
        "lora+dora",
        lambda targets: LoraConfig(
            r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, use_dora=True, use_rslora=True
        ),
    ),
    "lora bias": (
        "lora+bias",
        lambda targets: LoraConfig(
            r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, lora_bias=True
        ),
    ),
}  # fmt: skip


@pytest.fixture
def unet(short_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    return short_unet


class Base:
    """The weights of a torch model by the names of slots."""

    def __init__(self, model: torch.nn.Module, table: SlotTable) -> None:
        state = {name: value.double().numpy() for name, value in model.state_dict().items()}
        texts = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
        self._state = state if table.component == "unet" else texts

    def weight(self, component: str, slot: str) -> Any:
        return self._state[f"{slot}.weight"].astype(np.float32)

    def bias(self, component: str, slot: str) -> Any:
        found = self._state.get(f"{slot}.bias")
        return None if found is None else found.astype(np.float32)


def written(model: torch.nn.Module, config: Any, folder: Path) -> torch.nn.Module:
    """A folder with random numbers in it, and the model that PEFT makes of them."""
    peft = get_peft_model(copy.deepcopy(model), config)
    torch.manual_seed(3)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            positive = "ia3_l" in name or "magnitude" in name
            noise = torch.rand_like(parameter) + 0.5 if positive else torch.randn_like(parameter)
            parameter.data = parameter.data * noise if "magnitude" in name else noise
    peft.save_pretrained(folder)
    return peft.merge_and_unload()


def changed(forms: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """W' and b' at multiplier 1, float64."""
    gain, added, moved = np.ones_like(weight), np.zeros_like(weight), np.zeros(len(weight))
    for form in forms:
        if isinstance(form, Gain):
            spread = [1] * weight.ndim
            spread[1 if form.axis == "in" else 0] = -1
            gain *= form.values.reshape(spread)
        elif isinstance(form, LowRank):
            added += form.scale * (form.down.astype(np.float64) @ form.up).T.reshape(weight.shape)
        elif isinstance(form, Bias):
            moved += form.delta
    return weight * gain + added, (0 if bias is None else bias) + moved


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_every_layer_is_the_one_that_peft_merges(
    name: str, component: str, unet: Any, text_encoder: Any, table_of: Callable[..., SlotTable], tmp_path: Path
) -> None:
    kind, make = CONFIGS[name]
    model, targets = (unet, UNET) if component == "unet" else (text_encoder, TEXT)
    targets = targets[1:] if name == "lora bias" else targets  # PEFT cannot merge a bias into a layer without one
    table = table_of(model, component)
    base, merged = Base(model, table), Base(written(model, make(targets), tmp_path / "ink"), table)
    file = read_adapter(tmp_path / "ink")
    adapter = file.fit([table], base=base)
    assert kind in adapter.kinds and not adapter.report.unused
    slots = adapter.components[component].slots
    assert len(slots) == sum(any(slot.name.endswith(target) for target in targets) for slot in table)
    for path, forms in slots.items():
        weight, bias = base.weight(component, path).astype(np.float64), base.bias(component, path)
        ours = changed(forms, weight, bias)
        theirs = merged.weight(component, path), merged.bias(component, path)
        for before, mine, wanted in zip((weight, bias), ours, theirs, strict=True):
            if wanted is not None:
                change = np.abs(wanted - before).max()
                assert np.abs(mine - wanted).max() <= BOUND * change + ROUNDING * np.abs(wanted).max(), path
        assert np.abs(theirs[0] - weight).max() > 0


def test_adapter_names_and_weight_kept(unet: Any, table_of: Callable[..., SlotTable], tmp_path: Path) -> None:
    """The same folder, its tensors named as in a state_dict."""
    table = table_of(unet)
    for name, leaf in (("loha", "hada_w1_a"), ("lokr", "lokr_w1"), ("ia3", "ia3_l"), ("dora", "lora_magnitude_vector")):
        written(unet, CONFIGS[name][1](UNET), tmp_path / name)
        wanted = read_adapter(tmp_path / name).fit([table], base=Base(unet, table))
        path = tmp_path / name / "adapter_model.safetensors"
        tensors = load_file(path)
        for ending in (".default", ".default.weight"):
            renamed = {key + ending if key.endswith(leaf) else key: value for key, value in tensors.items()}
            assert renamed.keys() != tensors.keys()
            save_file(renamed, path)
            adapter = read_adapter(tmp_path / name).fit([table], base=Base(unet, table))
            assert adapter.kinds == wanted.kinds and adapter.nbytes == wanted.nbytes


def test_what_needs_a_base_says_so(unet: Any, table_of: Callable[..., SlotTable], tmp_path: Path) -> None:
    for name in ("dora", "ia3"):
        written(unet, CONFIGS[name][1](UNET), tmp_path / name)
        with pytest.raises(BaseNeeded, match="modules cannot be used: .* open it with a bundle, or export the bundle"):
            read_adapter(tmp_path / name).fit([table_of(unet)])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda targets: OFTConfig(r=2, oft_block_size=0, target_modules=targets), "OFT"),
        (lambda targets: VeraConfig(r=2, target_modules=["to_q"]), "VERA"),
    ],
)
def test_kinds_that_are_refused_by_name(make: Make, kind: str, unet: Any, tmp_path: Path) -> None:
    get_peft_model(unet, make(["to_q"])).save_pretrained(tmp_path)
    with pytest.raises(UnknownKind, match=f"is of the PEFT kind '{kind}'; lora-edge reads LORA, LOHA, LOKR, IA3"):
        read_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == kind
