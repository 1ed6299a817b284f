"""Which base a file was made for: headers as they occur, for every family, naming and kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lora_edge.adapterfile import read_adapter
from lora_edge.basemodel import Base, guess
from lora_edge.errors import AdapterMismatch
from lora_edge.families import FAMILIES, tables
from lora_edge.slots import SlotTable

Layer = tuple[str, int, int]  # name, in, out
Shapes = dict[str, tuple[int, ...]]

BLOCK = "transformer_blocks"
# (family, naming) -> layers with the names and widths of real files.
FILES: dict[tuple[str, str], list[Layer]] = {
    ("SD1", "kohya"): [
        (f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_0_attn1_to_q", 320, 320),
        (f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_0_attn2_to_k", 768, 320),
        (f"lora_unet_mid_block_attentions_0_{BLOCK}_0_attn2_to_v", 768, 1280),
        (f"lora_unet_up_blocks_3_attentions_2_{BLOCK}_0_ff_net_0_proj", 320, 2560),
        ("lora_te_text_model_encoder_layers_11_mlp_fc1", 768, 3072),
    ],
    ("SD1", "diffusers"): [
        (f"unet.down_blocks.1.attentions.0.{BLOCK}.0.attn2.to_v", 768, 640),
        (f"unet.up_blocks.3.attentions.2.{BLOCK}.0.ff.net.2", 1280, 320),
        ("text_encoder.text_model.encoder.layers.0.self_attn.k_proj", 768, 768),
    ],
    ("SD1", "attn procs"): [(f"unet.down_blocks.0.attentions.0.{BLOCK}.0.attn2.processor.to_k_lora", 768, 320)],
    ("SD1", "peft"): [
        (f"base_model.model.down_blocks.0.attentions.1.{BLOCK}.0.attn2.to_k", 768, 320),
        ("base_model.model.down_blocks.3.resnets.0.time_emb_proj", 1280, 1280),
    ],
    ("SD1", "text alone"): [("lora_te_text_model_encoder_layers_3_self_attn_q_proj", 768, 768)],
    ("SD2", "kohya"): [
        (f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_0_attn2_to_k", 1024, 320),
        (f"lora_unet_up_blocks_1_attentions_0_{BLOCK}_0_attn1_to_out_0", 1280, 1280),
        ("lora_te_text_model_encoder_layers_22_mlp_fc2", 4096, 1024),
    ],
    ("SD2", "diffusers"): [
        (f"unet.down_blocks.2.attentions.0.{BLOCK}.0.attn2.to_k", 1024, 1280),
        ("text_encoder.text_model.encoder.layers.7.mlp.fc1", 1024, 4096),
    ],
    ("SD2", "text alone"): [("lora_te_text_model_encoder_layers_0_self_attn_v_proj", 1024, 1024)],
    ("SDXL", "kohya"): [
        (f"lora_unet_input_blocks_4_1_{BLOCK}_0_attn2_to_k", 2048, 640),
        (f"lora_unet_middle_block_1_{BLOCK}_9_attn1_to_q", 1280, 1280),
        (f"lora_unet_output_blocks_0_1_{BLOCK}_4_ff_net_0_proj", 1280, 10240),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, 3072),
        ("lora_te2_text_model_encoder_layers_31_self_attn_q_proj", 1280, 1280),
    ],
    ("SDXL", "kohya over diffusers"): [
        (f"lora_unet_down_blocks_1_attentions_0_{BLOCK}_1_attn2_to_k", 2048, 640),
        (f"lora_unet_up_blocks_0_attentions_2_{BLOCK}_9_attn2_to_v", 2048, 1280),
    ],
    ("SDXL", "diffusers"): [
        (f"unet.down_blocks.2.attentions.1.{BLOCK}.9.attn2.to_v", 2048, 1280),
        ("unet.add_embedding.linear_1", 2816, 1280),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc2", 5120, 1280),
    ],
    ("SDXL", "ldm"): [
        (f"diffusion_model.input_blocks.7.1.{BLOCK}.3.attn2.to_k", 2048, 1280),
        (f"diffusion_model.input_blocks.8.1.{BLOCK}.9.ff.net.2", 5120, 1280),
    ],
    ("SDXL", "text alone"): [("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", 1280, 1280)],
    ("SDXL", "first text alone"): [("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", 768, 768)],
    ("SDXL refiner", "kohya"): [
        (f"lora_unet_input_blocks_4_1_{BLOCK}_0_attn2_to_k", 1280, 768),
        (f"lora_unet_middle_block_1_{BLOCK}_3_attn2_to_v", 1280, 1536),
        (f"lora_unet_output_blocks_3_1_{BLOCK}_0_attn1_to_q", 1536, 1536),
    ],
    ("SDXL refiner", "diffusers"): [
        (f"unet.down_blocks.1.attentions.0.{BLOCK}.0.attn2.to_k", 1280, 768),
        ("unet.add_embedding.linear_1", 2560, 1536),
    ],
    ("SD3", "kohya"): [("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, 4608)],
    ("SD3", "diffusers"): [(f"transformer.{BLOCK}.0.attn.add_q_proj", 1536, 1536)],
    ("SD3", "diffusers, large"): [(f"transformer.{BLOCK}.0.attn.to_q", 2432, 2432)],
    ("Flux", "kohya"): [
        ("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, 3072),
    ],
    ("Flux", "diffusers"): [
        (f"transformer.{BLOCK}.0.attn.to_q", 3072, 3072),
        (f"transformer.single_{BLOCK}.0.attn.to_q", 3072, 3072),
    ],
    ("Flux", "diffusers, double alone"): [(f"transformer.{BLOCK}.0.attn.add_k_proj", 3072, 3072)],
    ("Flux", "xlabs"): [("double_blocks.0.processor.qkv_lora1", 3072, 9216)],
    ("Flux", "comfy"): [("diffusion_model.double_blocks.0.img_attn.qkv", 3072, 9216)],
}

# kind -> shapes of a layer's tensors, tiny along every axis that is the file's own.
KINDS: dict[str, Callable[[int, int], Shapes]] = {
    "lora": lambda i, o: {"lora_down.weight": (4, i), "lora_up.weight": (o, 4), "alpha": ()},
    "lora, dots": lambda i, o: {"lora_A.weight": (4, i), "lora_B.weight": (o, 4)},
    "lora, adapter name": lambda i, o: {"lora_A.default.weight": (4, i), "lora_B.default.weight": (o, 4)},
    "lora, oldest": lambda i, o: {"down.weight": (4, i), "up.weight": (o, 4)},
    "dora": lambda i, o: {"lora_down.weight": (1, i), "lora_up.weight": (o, 1), "dora_scale": (o, 1)},
    "dora over inputs": lambda i, o: {"lora_down.weight": (1, i), "lora_up.weight": (o, 1), "dora_scale": (1, i)},
    "loha": lambda i, o: {"hada_w1_a": (o, 2), "hada_w1_b": (2, i), "hada_w2_a": (o, 2), "hada_w2_b": (2, i)},
    "lokr": lambda i, o: {"lokr_w1": (4, 4), "lokr_w2": (o // 4, i // 4), "alpha": ()},
    "lokr, factored": lambda i, o: {"lokr_w1": (8, 8), "lokr_w2_a": (o // 8, 2), "lokr_w2_b": (2, i // 8)},
    "full": lambda i, o: {"diff": (o, i), "diff_b": (o,)},
    "glora": lambda i, o: {"a1.weight": (i, 2), "a2.weight": (2, i), "b1.weight": (o, 2), "b2.weight": (2, i)},
    "glora, old": lambda i, o: {"a1.weight": (2, i), "a2.weight": (i, 2), "b1.weight": (2, i), "b2.weight": (o, 2)},
    "ia3": lambda i, o: {"weight": (o,), "on_input": ()},
    "ia3 over inputs": lambda i, o: {"weight": (i,), "on_input": ()},
    "oft": lambda i, o: {"oft_blocks": (o // 4, 4, 4), "alpha": ()},
    "oft, old": lambda i, o: {"oft_diag": (4, o // 4, o // 4)},
    "boft": lambda i, o: {"oft_blocks": (2, o // 4, 4, 4)},
}
OUTPUTS_ALONE = {"ia3", "oft", "oft, old", "boft"}


@dataclass(frozen=True)
class Header:
    """What `guess` needs of a file."""

    shapes: Shapes
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


def header(layers: list[Layer], kind: str = "lora", metadata: Mapping[str, str] | None = None) -> Header:
    tensors = {f"{name}.{leaf}": shape for name, i, o in layers for leaf, shape in KINDS[kind](i, o).items()}
    return Header(tensors, metadata or {})


def text(shapes: Shapes) -> str:
    return str(guess(Header(shapes)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "naming"), FILES)
def test_the_family_of_a_file(family: str, naming: str, kind: str) -> None:
    found = guess(header(FILES[family, naming], kind)).families
    if kind in OUTPUTS_ALONE and found == ("SD1", "SD2"):  # which differ in what goes in
        assert family in found
    else:
        assert found == (family,)


def test_convolutions() -> None:
    conv = "lora_unet_input_blocks_4_0_in_layers_2"
    small = {f"{conv}.lora_down.weight": (4, 320, 3, 3), f"{conv}.lora_up.weight": (640, 4, 1, 1)}
    refiner = {f"{conv}.lora_down.weight": (4, 384, 3, 3), f"{conv}.lora_up.weight": (768, 4, 1, 1)}
    flat = {f"{conv}.hada_w1_b": (4, 384 * 9), f"{conv}.hada_w1_a": (768, 4)}
    assert text(small) == "SD1 or SD2 or SDXL"
    assert text(refiner) == text(flat) == "SDXL refiner"


def test_what_tells_nothing() -> None:
    assert guess(Header({})) == Base()
    assert text({"lora_unet_something_else.lora_down.weight": (4, 768)}) == ""
    assert text({"emb_params": (3, 768)}) == ""


def test_self_attention_alone_leaves_two_families_and_four_axes_name_one() -> None:
    attention = f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_0_attn1_to_q"
    shapes: Shapes = {f"{attention}.lora_down.weight": (4, 320), f"{attention}.lora_up.weight": (320, 4)}
    assert text(shapes) == "SD1 or SD2"
    proj = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert (
        text({**shapes, f"{proj}.lora_down.weight": (4, 320, 1, 1), f"{proj}.lora_up.weight": (320, 4, 1, 1)}) == "SD1"
    )


def test_a_base_of_its_own_width() -> None:
    layer = f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_0_attn2_to_k"
    base = guess(header([(layer, 128, 48)], metadata={"ss_base_model_version": "sd_v1"}))
    assert str(base) == "custom (cross-attention width 128)" and base.families == () and not base.conflict
    assert str(guess(header([(layer, 768, 48)]))) == "SD1"  # small layers that read the text of SD1


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sdxl_refiner_v1-0"}, "SDXL refiner"),
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD2"),
        ({"ss_base_model_version": "sd3_medium"}, "SD3"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({"ss_v2": "True"}, "SD2"),
        ({"ss_v2": "False"}, ""),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-refiner/lora"}, "SDXL refiner"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "SD3"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "something-else"}, ""),
        ({"ss_base_model_version": "sd_v1", "ss_v2": "True"}, "SD1"),
    ],
)
def test_metadata_speak_where_tensors_do_not(metadata: dict[str, str], family: str) -> None:
    assert str(guess(Header({"x.lora_down.weight": (1, 1)}, metadata))) == family


def test_shapes_go_before_metadata() -> None:
    base = guess(header(FILES["SDXL", "kohya"], metadata={"ss_base_model_version": "sd_v1"}))
    assert base.families == ("SDXL",)
    assert base.conflict == (
        "its metadata says SD1 (ss_base_model_version 'sd_v1'), its tensors SDXL; the tensors count"
    )
    both = header([("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, 3072)], metadata={"ss_v2": "True"})
    assert guess(both).conflict


def test_metadata_choose_among_what_the_tensors_leave() -> None:
    text_alone = [("text_encoder.text_model.encoder.layers.0.mlp.fc1", 768, 3072)]
    assert str(guess(header(text_alone))) == "SD1 or SDXL"
    for version, family in (("sd_v1", "SD1"), ("sdxl_base_v1-0", "SDXL")):
        base = guess(header(text_alone, metadata={"ss_base_model_version": version}))
        assert base.families == (family,) and not base.conflict


def tensors(layers: list[Layer]) -> dict[str, Any]:
    return {name: np.zeros(shape, np.float16) for name, shape in header(layers).shapes.items()}


@pytest.mark.parametrize("bundle", FAMILIES)
@pytest.mark.parametrize(("family", "naming"), [key for key in FILES if "alone" not in key[1]])
def test_the_refusal_names_both(family: str, naming: str, bundle: str, save: Any) -> None:
    adapter = read_adapter(save(tensors(FILES[family, naming])))
    if family == bundle:
        assert not adapter.fit(tables(bundle)).report.unused
        return
    with pytest.raises(AdapterMismatch) as caught:
        adapter.fit(tables(bundle))
    assert str(caught.value).endswith(f"; made for {family}, this bundle is {bundle}")


def test_a_misfit_of_the_right_family_gets_no_hint(save: Any) -> None:
    layers = [*FILES["SD1", "kohya"], (f"lora_unet_mid_block_attentions_0_{BLOCK}_7_attn1_to_q", 1280, 1280)]
    with pytest.raises(AdapterMismatch) as caught:
        read_adapter(save(tensors(layers))).fit(tables("SD1"))
    assert "made for" not in str(caught.value)


def test_a_file_that_fits_is_never_refused_for_what_it_claims(save: Any, lora: Any, unet_table: SlotTable) -> None:
    """Small models have widths and families of their own."""
    name = f"down_blocks.0.attentions.0.{BLOCK}.0.attn2.to_k"
    path = save(lora(unet_table, "lora_unet", name), metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert not read_adapter(path).fit([unet_table]).report.unused


def test_hostile_shapes_are_only_looked_at() -> None:
    shapes: Shapes = {
        "x.lokr_w1": (2**62, 2**62),
        "x.lokr_w2": (2**62, 2**62),
        "x.lora_down.weight": (),
        "y.lora_down.weight": (0, 0),
        "z.dora_scale": (0,),
        "z.lora_magnitude_vector": (0,),
        "u.oft_blocks": (1, 2),
        "v.weight": (),
        "w.a1.weight": (0, 0),
        ".": (1,),
        "": (),
    }
    assert guess(Header(shapes, {"ss_v2": "True" * 100, "modelspec.architecture": "x" * 10**6})).families in (
        (),
        ("SD2",),
    )
