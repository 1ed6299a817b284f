"""Files that diffusers writes of PEFT adapters, through the graph, against the weights that PEFT merges."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from .bench import Bench, Changes
from .test_peft_folders import ATTENTION, BOUND, LAYERS, MULTIPLIERS, changes, randomize

WRAPPER = "base_model.model."
State = dict[str, Tensor]
Config = Callable[[], LoraConfig]

PLAIN: dict[str, Config] = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=3, target_modules=LAYERS),
    "dora": lambda: LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=LAYERS),
}
SCALED: dict[str, Config] = {
    "lora": lambda: LoraConfig(r=4, lora_alpha=2, target_modules=LAYERS),
    "patterns": lambda: LoraConfig(
        r=4, lora_alpha=6, target_modules=ATTENTION, rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 3, "q_proj": 1}
    ),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=LAYERS),
}


def save_with_settings(states: dict[str, State], configs: dict[str, LoraConfig], file: Path) -> None:
    """`save_lora_weights`, with the settings in the header, as newer training scripts do."""
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=states["text_encoder"],
        weight_name=file.name,
        unet_lora_adapter_metadata=configs["unet"].to_dict(),
        text_encoder_lora_adapter_metadata=configs["text_encoder"].to_dict(),
    )


def save_converted(states: dict[str, State], configs: dict[str, LoraConfig], file: Path) -> None:
    """`convert_state_dict_to_diffusers`, which renames attention layers alone: one file in two namings."""
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers=convert_state_dict_to_diffusers(states["unet"]),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(states["text_encoder"]),
        weight_name=file.name,
    )


def save_kohya(states: dict[str, State], configs: dict[str, LoraConfig], file: Path) -> None:
    """`convert_state_dict_to_kohya`, which names DoRA magnitudes in a way of its own."""
    named = {f"{component}.{key}": tensor for component, state in states.items() for key, tensor in state.items()}
    made = convert_state_dict_to_kohya(named)
    save_file({key: tensor.contiguous().clone() for key, tensor in made.items()}, file)


CASES = [
    pytest.param(save, config, id=f"{save.__name__}-{name}")
    for save, configs in ((save_with_settings, SCALED), (save_converted, PLAIN), (save_kohya, PLAIN))
    for name, config in configs.items()
]


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # of the other component
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(("save", "config"), CASES)
def test_a_file_gives_what_peft_merges(bench: Bench, tmp_path: Path, save: Any, config: Config) -> None:
    states: dict[str, State] = {}
    configs: dict[str, LoraConfig] = {}
    merged: Changes = {}
    for component, twin in bench.twins.items():
        wrapped = get_peft_model(copy.deepcopy(twin.plain), config())
        randomize(wrapped)
        state = get_peft_model_state_dict(wrapped)
        states[component] = {key.removeprefix(WRAPPER): tensor.clone() for key, tensor in state.items()}
        configs[component] = wrapped.peft_config["default"]
        merged |= changes(twin.plain, wrapped.merge_and_unload(), component)
    file = tmp_path / "style.safetensors"
    save(states, configs, file)
    adapter = bench.engine.load_adapter(file)
    assert set(adapter.components) == {"unet", "text_encoder"} and not adapter.report.unused
    for component in bench.twins:
        for multiplier in MULTIPLIERS:
            wanted = bench.merged(component, [(merged, multiplier)])
            assert bench.ratio(component, [(adapter, multiplier)], wanted) <= BOUND
