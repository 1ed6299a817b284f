"""What fits nothing is refused at once and in one sentence, or reported."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge.adapter import Adapter
from lora_edge.adapterfile import read_adapter
from lora_edge.errors import (
    AdapterError,
    AdapterMismatch,
    AdapterValueError,
    AmbiguousKind,
    ComponentMissing,
    UnknownKind,
)
from lora_edge.slots import Slot, SlotTable

Delta = Callable[[Adapter, str, Slot], Any]

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_K2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV1 = "down_blocks.0.resnets.0.conv1"
PROJ_IN = "mid_block.attentions.0.proj_in"
FC1 = "text_model.encoder.layers.0.mlp.fc1"


def renamed(tensors: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name.replace(old, new): array for name, array in tensors.items()}


def test_all_misfits_are_in_one_refusal(save: Any, lora: Any, unet_table: SlotTable, text_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, TO_K2, CONV1, PROJ_IN, rank=2, alpha=1)
    tensors = renamed(tensors, "lora_unet_mid_block", "lora_unet_vid_block")
    tensors["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"] = np.zeros((8, 3, 1, 1), np.float32)
    tensors |= lora(text_table, "lora_te2", FC1)
    path = save(tensors)
    with pytest.raises(AdapterMismatch) as caught:
        read_adapter(path).fit([unet_table, text_table])
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: 3 of 5 modules cannot be used: ")
    assert "'lora_unet_vid_block_attentions_0_proj_in' names no layer of the bundle" in sentence
    assert "has up [8, 3, 1, 1] where the layer and its rank need [8, 2]" in sentence
    adapter = read_adapter(path).fit([unet_table, text_table], strict=False)
    assert set(adapter.components["unet"].slots) == {TO_Q, TO_K2} and set(adapter.components) == {"unet"}
    assert len(adapter.report.applied) == 6 and len(adapter.report.unused) == 8
    assert str(adapter.report) == "6 tensors applied, 8 unused"
    assert "names no layer" in adapter.report.unused["lora_unet_vid_block_attentions_0_proj_in.alpha"]


@pytest.mark.parametrize(("width", "family"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL")])
def test_the_file_of_another_base(width: int, family: str, save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_K2)
    key = next(name for name in tensors if "down.weight" in name)
    tensors[key] = np.zeros((2, width), np.float32)
    with pytest.raises(
        AdapterMismatch, match=rf"; made for {family}, this bundle is custom \(cross-attention width 12\)"
    ):
        read_adapter(save(tensors)).fit([unet_table], strict=False)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "SD3"),
        ("lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q", "SDXL"),
    ],
)
def test_the_file_of_another_architecture(name: str, family: str, save: Any, unet_table: SlotTable) -> None:
    tensors = {f"{name}.lora_{part}.weight": np.zeros((2, 2), np.float32) for part in ("up", "down")}
    with pytest.raises(AdapterMismatch, match=f"; made for {family}, this bundle is custom"):
        read_adapter(save(tensors)).fit([unet_table])


def test_an_alpha_of_0_is_off_and_said(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    adapter = read_adapter(save(lora(unet_table, "lora_unet", TO_Q, alpha=0))).fit([unet_table])
    assert not delta(adapter, "unet", unet_table.by_name[TO_Q]).any()
    assert adapter.report.warnings == (
        f"alpha is 0 in 1 modules, which therefore have no effect (first: {TO_Q} of unet)",
    )


@pytest.mark.parametrize("leaf", ["alpha", "lora_up.weight", "lora_down.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strict", [True, False])
def test_numbers_that_are_not_finite(
    leaf: str, value: float, strict: bool, save: Any, lora: Any, unet_table: SlotTable
) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, PROJ_IN, alpha=1)
    name = next(name for name in tensors if name.endswith(leaf))
    tensors[name] = np.full_like(tensors[name], value)
    with pytest.raises(AdapterValueError, match=f"not finite in '{name}'"):
        read_adapter(save(tensors)).fit([unet_table], strict=strict)


def test_a_float64_beyond_float32(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q)
    tensors = {name: np.full(array.shape, 1e200) for name, array in tensors.items()}
    with pytest.raises(AdapterValueError):
        read_adapter(save(tensors)).fit([unet_table])


def test_products_that_overflow_half_do_not(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    tensors = {
        name: np.full_like(array, 300, np.float16) for name, array in lora(unet_table, "lora_unet", TO_Q).items()
    }
    adapter = read_adapter(save(tensors)).fit([unet_table])
    np.testing.assert_array_equal(delta(adapter, "unet", unet_table.by_name[TO_Q]), 2 * 300.0**2)


@pytest.mark.parametrize("missing", ["lora_up.weight", "lora_down.weight"])
def test_half_a_pair(missing: str, save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = {name: array for name, array in lora(unet_table, "lora_unet", TO_Q).items() if not name.endswith(missing)}
    with pytest.raises(AdapterMismatch, match="1 of 1 modules cannot be used: .* but no"):
        read_adapter(save(tensors)).fit([unet_table])


def test_an_alpha_alone(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q) | {"lora_unet_mid_block_attentions_0_proj_in.alpha": np.float32(1)}
    with pytest.raises(UnknownKind, match="has alpha, which no known kind uses"):
        read_adapter(save(tensors)).fit([unet_table])


def test_a_file_of_another_kind(save: Any, unet_table: SlotTable) -> None:
    leaves = ("vera_lambda_b", "vera_lambda_d")
    path = save({f"lora_unet_{TO_Q.replace('.', '_')}.{leaf}": np.zeros((2, 2), np.float32) for leaf in leaves})
    assert read_adapter(path).summary()["unread_modules"] == [f"lora_unet_{TO_Q.replace('.', '_')}"]
    for strict in (True, False):
        with pytest.raises(UnknownKind, match="VeRA, which lora-edge does not read"):
            read_adapter(path).fit([unet_table], strict=strict)


def test_an_ambiguous_kind_is_refused_as_such(
    save: Any, lora: Any, unet_table: SlotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(leaves: Any, shapes: Any) -> Any:
        raise AmbiguousKind("has the leaves of lora and of other")

    monkeypatch.setattr("lora_edge.planning.claim", both)
    with pytest.raises(AmbiguousKind, match="'lora_unet_.*_to_q' has the leaves of lora and of other"):
        read_adapter(save(lora(unet_table, "lora_unet", TO_Q))).fit([unet_table])


def test_a_slot_in_two_namings(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q, PROJ_IN)
    flat = f"lora_unet_{TO_Q.replace('.', '_')}"
    tensors |= {name.replace(flat, f"unet.{TO_Q}"): array for name, array in tensors.items() if name.startswith(flat)}
    path = save(tensors)
    with pytest.raises(AdapterMismatch, match=f"means the same layer as .*'{flat}'"):
        read_adapter(path).fit([unet_table])
    adapter = read_adapter(path).fit([unet_table], strict=False)
    assert set(adapter.components["unet"].slots) == {PROJ_IN} and len(adapter.report.unused) == 4


def test_a_slot_whose_leaves_come_in_two_namings(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q) | {f"unet.{TO_Q}.alpha": np.float32(1)}
    adapter = read_adapter(save(tensors)).fit([unet_table])
    assert adapter.components["unet"].slots[TO_Q][0].scale == 0.5


def test_a_tensor_in_two_spellings(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q)
    down = next(name for name in tensors if "lora_down" in name)
    tensors[down.replace("lora_down", "lora_A")] = tensors[down]
    with pytest.raises(AdapterMismatch, match="gives the same tensor twice"):
        read_adapter(save(tensors))


def test_no_tensors(save: Any) -> None:
    with pytest.raises(UnknownKind, match="holds no tensors"):
        read_adapter(save({}))


def test_a_whole_model(unet: Any, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    with pytest.raises(UnknownKind, match="holds no adapter but .*; is it a whole model?"):
        read_adapter(tmp_path / "diffusion_pytorch_model.safetensors")


def test_an_untrained_file_changes_nothing(save: Any, lora: Any, unet_table: SlotTable, delta: Delta) -> None:
    tensors = lora(unet_table, "lora_unet", TO_Q)
    tensors = {name: array * ("up" not in name.split(".")[1]) for name, array in tensors.items()}
    adapter = read_adapter(save(tensors)).fit([unet_table])
    assert not delta(adapter, "unet", unet_table.by_name[TO_Q]).any()


# Components


@pytest.fixture
def two_encoders(text_table: SlotTable) -> list[SlotTable]:
    """Two text encoders, the second one with a layer more."""
    last = Slot("text_model.encoder.layers.2.mlp.fc1", 12, 24)
    return [text_table, SlotTable("text_encoder_2", (*text_table.slots, last))]


def test_names_that_fit_two_components(save: Any, lora: Any, two_encoders: list[SlotTable]) -> None:
    path = save(lora(two_encoders[1], "base_model.model.", FC1))
    with pytest.raises(
        AdapterMismatch, match="may mean .* of text_encoder or .* of text_encoder_2; say which with component="
    ):
        read_adapter(path).fit(two_encoders)
    for component in ("text_encoder", "text_encoder_2"):
        assert set(read_adapter(path).fit(two_encoders, component=component).components) == {component}


def test_one_name_settles_the_component_for_all(save: Any, lora: Any, two_encoders: list[SlotTable]) -> None:
    path = save(lora(two_encoders[1], "base_model.model.", FC1, "text_model.encoder.layers.2.mlp.fc1"))
    adapter = read_adapter(path).fit(two_encoders)
    assert {name: len(forms.slots) for name, forms in adapter.components.items()} == {"text_encoder_2": 2}


def test_a_component_that_the_file_does_not_mean(
    save: Any, lora: Any, unet_table: SlotTable, text_table: SlotTable
) -> None:
    path = save(lora(unet_table, "lora_unet", TO_Q) | lora(text_table, "lora_te", FC1))
    tables = [unet_table, text_table]
    with pytest.raises(AdapterMismatch, match="belongs to text_encoder and not to unet"):
        read_adapter(path).fit(tables, component="unet")
    adapter = read_adapter(path).fit(tables, component="unet", strict=False)
    assert set(adapter.components) == {"unet"}
    with pytest.raises(ComponentMissing, match="'text_encoder_2'"):
        read_adapter(path).fit(tables, component="text_encoder_2")


def test_layers_that_flatten_alike_are_refused(save: Any) -> None:
    table = SlotTable("unet", (Slot("a.b_c", 2, 2), Slot("a_b.c", 2, 2)))
    tensors = {f"lora_unet_a_b_c.lora_{part}.weight": np.ones((2, 2), np.float32) for part in ("up", "down")}
    with pytest.raises(AdapterMismatch, match="may mean a.b_c of unet or a_b.c of unet"):
        read_adapter(save(tensors)).fit([table])


def test_whatever_the_shapes_only_typed_refusals_come_out(save: Any, lora: Any, unet_table: SlotTable) -> None:
    """A good file with one to three tensors replaced by others of any leaf, shape and dtype."""
    rng = np.random.default_rng(0)
    slots = tuple(unet_table.by_name[name] for name in (TO_Q, CONV1))
    table = SlotTable("unet", slots, {"conv_norm_out": 8})
    modules = [*(f"lora_unet_{slot.name.replace('.', '_')}" for slot in slots), "lora_unet_conv_norm_out"]
    leaves = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scale", "diff", "what")
    dtypes = (np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_)
    outcomes: Counter[str] = Counter()
    for _ in range(400):
        tensors = lora(table, "lora_unet", TO_Q, CONV1, alpha=1)
        for _ in range(rng.integers(1, 4)):
            shape = rng.choice([0, 1, 2, 3, 8], rng.integers(0, 5))
            tensors[f"{rng.choice(modules)}.{rng.choice(leaves)}"] = np.ones(shape, rng.choice(dtypes))
        try:
            adapter = read_adapter(save(tensors)).fit([table], strict=bool(rng.integers(2)))
        except AdapterError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["fitted"] += 1
            assert set(adapter.report.applied) | set(adapter.report.unused) == set(tensors)
    assert set(outcomes) == {"fitted", "AdapterMismatch", "UnknownKind", "AmbiguousKind"}, outcomes


def test_a_file_of_the_same_width_gets_no_hint(save: Any, lora: Any, unet_table: SlotTable) -> None:
    tensors = lora(unet_table, "lora_unet", TO_K2) | renamed(lora(unet_table, "lora_unet", PROJ_IN), "mid", "vid")
    with pytest.raises(AdapterMismatch) as caught:
        read_adapter(save(tensors)).fit([unet_table])
    assert "made for" not in str(caught.value)
