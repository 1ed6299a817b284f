"""Settings of PEFT that change the result: those that are read are compared in test_adapterfile, these are refused."""

import json
from typing import Any

import numpy as np
import pytest

from lora_edge.adapterfile import read_adapter
from lora_edge.errors import AdapterFileDamaged, AdapterMismatch, AdapterValueError, UnknownKind
from lora_edge.slots import SlotTable

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"peft_type": "VERA"}, UnknownKind, "PEFT kind 'VERA'; lora-edge reads LORA, LOHA, LOKR, IA3"),
        ({"use_dora": True}, AdapterMismatch, "has no lora_magnitude_vector, which .* promises"),
        ({"fan_in_fan_out": True}, UnknownKind, "sets fan_in_fan_out"),
        ({"lora_bias": True}, AdapterMismatch, "has no up_bias, which .* promises"),
        ({"bias": "lora_only"}, UnknownKind, "sets bias to 'lora_only'"),
        ({"modules_to_save": ["conv_in"]}, UnknownKind, "sets modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, UnknownKind, "changes the base"),
        ({"r": 3}, AdapterMismatch, "has rank 2 where .* says 3"),
        ({"rank_pattern": {"to_q": 5}}, AdapterMismatch, "has rank 2 where .* says 5"),
        ({"lora_alpha": "8"}, AdapterFileDamaged, "gives lora_alpha as '8'"),
        ({"lora_alpha": float("nan")}, AdapterValueError, "gives lora_alpha as nan"),
        ({"lora_alpha": 10**400}, AdapterValueError, "gives lora_alpha as 1"),
        ({"alpha_pattern": [1]}, AdapterFileDamaged, "something else than a map"),
        ({"alpha_pattern": {"(": 1}}, AdapterFileDamaged, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 1}}, AdapterFileDamaged, "at most one of"),
    ],
)
@pytest.mark.parametrize("place", ["config", "header"])
def test_peft_settings_that_are_refused(
    settings: dict[str, Any],
    error: type[Exception],
    sentence: str,
    place: str,
    save: Any,
    lora: Any,
    unet_table: SlotTable,
) -> None:
    tensors = lora(unet_table, "unet.", TO_Q)
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | settings
    if place == "header":
        header = json.dumps({f"unet.{key}": value for key, value in whole.items()})
        path = save(tensors, metadata={"lora_adapter_metadata": header})
    else:
        path = save(tensors, "ink/adapter_model.safetensors").parent
        (path / "adapter_config.json").write_text(json.dumps(whole))
    with pytest.raises(error, match=sentence):
        read_adapter(path).fit([unet_table])


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_object(text: str, save: Any, lora: Any, unet_table: SlotTable) -> None:
    folder = save(lora(unet_table, "base_model.model.", TO_Q), "ink/adapter_model.safetensors").parent
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterFileDamaged, match="is not JSON|is not a JSON object"):
        read_adapter(folder)


def test_a_files_own_alpha_wins_over_settings(save: Any, lora: Any, unet_table: SlotTable) -> None:
    header = json.dumps({"unet.r": 2, "unet.lora_alpha": 100, "text_encoder.r": 1})
    tensors = lora(unet_table, "base_model.model.", TO_Q) | {f"base_model.model.{TO_Q}.alpha": np.float32(3)}
    adapter = read_adapter(save(tensors, metadata={"lora_adapter_metadata": header})).fit([unet_table])
    assert adapter.components["unet"].slots[TO_Q][0].scale == 1.5
