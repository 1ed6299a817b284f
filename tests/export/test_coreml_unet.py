"""The UNet's forms: slot by slot, the Neural Engine's layout, palettized, cut in two."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from diffusers import UNet2DConditionModel
from torch import nn

from lora_edge import errors
from lora_edge.export.checkpoint import Checkpoint, Part, settings_of
from lora_edge.export.coreml.alone import each_alone
from lora_edge.export.coreml.bisect import bisect
from lora_edge.export.coreml.convert import convert
from lora_edge.export.coreml.einsum import PIECE, SplitAttention, split_einsum
from lora_edge.export.coreml.mend import mend, read_model
from lora_edge.export.coreml.norms import ChannelNorm, GroupNorm, half_norms
from lora_edge.export.coreml.options import Options
from lora_edge.export.coreml.palettize import nearest_centres, palettize
from lora_edge.export.coreml.ports import Port
from lora_edge.export.coreml.programs import Program, Sizes, programs
from lora_edge.export.coreml.verify import Bench, Compared, check_ports, verify
from lora_edge.export.coreml.write import sizes_of, write
from lora_edge.export.recipes.unet import UNET
from lora_edge.export.slotted import slot_table
from lora_edge.mil import Package, check
from lora_edge.mil.types import FLOAT16, FLOAT32
from lora_edge.slots import SlotTable

HALF = Options(rank=16)


def converted(program: Program, options: Options, folder: Path) -> Package:
    path = folder / f"{program.package}.mlpackage"
    convert(program, options).save(str(path))
    return Package.open(path)


@pytest.fixture
def copied(coreml_bundle: Path, tmp_path: Path) -> Path:
    """The half-precision UNet, to be changed."""
    made = shutil.copytree(coreml_bundle / "coreml" / "Unet.mlpackage", tmp_path / "Unet.mlpackage")
    return Path(made)


def small_unet(folder: Path) -> Part:
    """Every kind of slot, also strided and 1x1 ones, and as few of each as can be."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet.save_pretrained(folder)
    return Part(UNET, "UNet2DConditionModel", folder, settings_of(unet))


@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_every_slot_is_wired_to_its_own_layer(attention: Any, tmp_path: Path) -> None:
    """An adapter on one slot alone, against torch with that weight changed: at most 1e-4 of its effect."""
    part = small_unet(tmp_path)
    unet = part.load()
    table = slot_table(UNET, unet, part.config, UNET.example(part.config, 1, 8))
    options = Options(rank=16, precision="fp32", attention=attention, conv_slots=True)
    (program,) = programs(part, table, options, Sizes((8, 8)))
    assert [pair.slot for pair in program.pairs] == list(table)
    bench = Bench(program, [converted(program, options, tmp_path)], options)
    verify(program, bench.packages, options)
    outcomes = list(each_alone(program, bench.packages, options))
    assert [outcome.case for outcome in outcomes] == [slot.name for slot in table]
    for outcome in outcomes:
        assert outcome.effect > 0.01 and outcome.error < outcome.allowed == 1e-4 * outcome.effect, outcome


def test_the_other_layout_is_the_same_network(tiny_model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet").eval()
    turned = split_einsum(unet)
    noise = torch.Generator().manual_seed(0)
    sample, text = torch.randn(2, 4, 16, 16, generator=noise), torch.randn(2, 77, 64, generator=noise)
    step = torch.tensor([1.0, 981.0])
    with torch.no_grad():
        expected = unet(sample, step, text).sample
        got = turned(sample, step, text.transpose(1, 2)[:, :, None]).sample
    assert (got - expected).abs().max() < 1e-5
    assert not any(isinstance(layer, nn.Linear) for layer in turned.modules())
    held = {tensor.data_ptr() for tensor in unet.parameters()}
    assert all(tensor.data_ptr() in held for tensor in turned.parameters()), "one copy of the weights"


def test_long_sequences_are_attended_to_in_pieces(tiny_model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet").eval()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    x = torch.randn(1, PIECE + 40, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        folded = x.transpose(1, 2)[:, :, None]
        got = SplitAttention(attention)(folded, folded)
        assert (got[:, :, 0].transpose(1, 2) - attention(x)).abs().max() < 1e-5


def test_transformers_that_are_not_sd1_have_no_other_layout() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2, attention_type="gated",
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    with pytest.raises(errors.ExportError, match="not those of SD1; export with attention='original'"):
        split_einsum(unet)


def test_halves_compute_what_the_whole_does(copied: Path, unet_program: Callable[[Options], Program]) -> None:
    program = unet_program(HALF)
    whole = Bench(program, [Package.open(copied)], HALF)
    feeds = whole.feeds([whole.draw(4, np.random.default_rng(0))], [0.5])
    expected = [whole.run(program.example, given)["noise_pred"] for given in ({}, feeds)]
    weights = (copied / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    halves = bisect(copied)
    assert [half.name for half in halves] == ["UnetChunk1.mlpackage", "UnetChunk2.mlpackage"] and not copied.exists()
    opened = [Package.open(half) for half in halves]
    check_ports(program, opened)
    cut = Bench(program, opened, HALF)
    for given, whole_output in zip(({}, feeds), expected, strict=True):
        assert np.array_equal(cut.run(program.example, given)["noise_pred"], whole_output)
    for half in halves:
        size = (half / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        assert 0.35 * weights < size < 0.65 * weights
        model = coremltools.models.MLModel(str(half), skip_model_load=True)
        read = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
        assert len(read.functions["main"].operations) > 100, "coremltools reads the half and its weights"
    names = [set(package.inputs) for package in opened]
    assert not any(name.endswith(("_down", "_up")) for name in names[0] & names[1])


def test_palettized_weights_keep_the_contract(copied: Path, unet_program: Callable[[Options], Program]) -> None:
    options = replace(HALF, palettize=6)
    program = unet_program(options)
    before = (copied / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    palettize(copied, 6)
    mend(copied, program.adapter_ports)
    assert (copied / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size < before * 7 / 16
    outcomes = verify(program, [Package.open(copied)], options)
    assert [outcome.measure for outcome in outcomes] == ["rms"] * 2 + ["rms of the change"] * 2
    assert all(20 * np.log10(2 * outcome.largest / outcome.error) > 30 for outcome in outcomes[:2])
    assert all(outcome.error < 0.3 * outcome.effect for outcome in outcomes[2:])


def test_small_halves_for_the_neural_engine(tmp_path: Path) -> None:
    """All at once, as an iPhone takes it: the other layout, palettized, then cut; on the oldest system."""
    part = small_unet(tmp_path / "model" / "unet")
    unet = part.load()
    table = slot_table(UNET, unet, part.config, UNET.example(part.config, 1, 8))
    options = Options(rank=32, os="iOS16", attention="split-einsum", palettize=4, chunks=2)
    rows: list[Compared] = []
    checkpoint = Checkpoint(tmp_path / "model", {}, (part,))
    write(checkpoint, tmp_path, {"unet": table}, "", options, lambda what: None, lambda name, row: rows.append(row))
    packages = check(tmp_path / "coreml")
    assert list(packages) == ["UnetChunk1.mlpackage", "UnetChunk2.mlpackage"] and len(rows) == 4
    manifest = json.loads((tmp_path / "coreml" / "lora_edge_coreml.json").read_text(encoding="utf-8"))
    slots = [slot for slot in table if slot.kernel in (None, (1, 1))]
    assert list(manifest["components"]["unet"]["slots"]) == [slot.name for slot in slots]
    taken = {name for package in packages.values() for name, port in package.inputs.items() if port.optional}
    assert len(taken) == 2 * len(slots) + 1
    ports = {name: port for package in packages.values() for name, port in package.inputs.items()}
    assert all(len(ports[name].shape) == 4 for name in taken - {"lora_scale"})


def test_a_lost_optional_flag_or_default_is_noticed_and_mended(
    copied: Path, unet_program: Callable[[Options], Program]
) -> None:
    program = unet_program(HALF)
    file = copied / "Data/com.apple.CoreML/model.mlmodel"
    good = file.read_bytes()

    def refused(change: Callable[[Any], None]) -> str:
        model = read_model(copied)
        change({feature.name: feature.type for feature in model.description.input})
        file.write_bytes(model.SerializeToString())
        with pytest.raises(errors.VerificationError) as caught:
            check_ports(program, [Package.open(copied)])
        mend(copied, program.adapter_ports)
        check_ports(program, [Package.open(copied)])
        file.write_bytes(good)
        return str(caught.value)

    def lose(inputs: Any) -> None:
        inputs["time_embedding_linear_1_up"].isOptional = False

    def change(inputs: Any) -> None:
        inputs["lora_scale"].multiArrayType.floatDefaultValue = 0.0

    assert "time_embedding_linear_1_up" in refused(lose) and "lora_scale" in refused(change)


ACTIVATIONS = {"tiny": 1e-3, "usual": 1.0, "large": 1e3, "huge": 1e4}


@pytest.mark.parametrize("size", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_norms_bear_half_precision(attention: Any, size: float, tmp_path: Path) -> None:
    """The square of 300 is infinite in float16, and that of 0.0001 is nothing; some groups are constant."""
    norm = nn.GroupNorm(4, 16, eps=1e-6).eval()
    x = size * torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 12:] = size
    port = Port("z", (1, 16, 8, 8), "fp16")
    options = replace(HALF, attention=attention)
    module = half_norms(nn.Sequential(norm)) if attention == "split-einsum" else norm
    program = Program("vae_decoder", "Norm", module, norm, (x.half().float(),), (port,), ("image",))
    package = converted(program, options, tmp_path)
    verify(program, [package], options)
    means = [operation for operation in package.program.operations if operation.kind == "reduce_mean"]
    types = {kind.element for operation in means for kind in operation.outputs.values()}
    assert types == ({FLOAT16} if attention == "split-einsum" else {FLOAT16, FLOAT32})


@pytest.mark.parametrize("size", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_norms_for_half_precision_are_the_usual_ones(size: float) -> None:
    x = size * torch.randn(2, 8, 1, 20, generator=torch.Generator().manual_seed(0)) + size
    layer, group = nn.LayerNorm(8, eps=1e-5), nn.GroupNorm(2, 8, eps=1e-6)
    for norm in (layer, group):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    with torch.no_grad():
        expected = layer(x.squeeze(2).transpose(1, 2)).transpose(1, 2)[:, :, None]
        torch.testing.assert_close(ChannelNorm(layer)(x), expected, atol=1e-5, rtol=1e-5)
        for shape in ((2, 8, 4, 5), (2, 8, 20)):
            image = x.reshape(shape)
            torch.testing.assert_close(GroupNorm(group)(image), group(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_every_slot_of_a_text_encoder_is_wired_to_its_own_layer(
    attention: Any, checkpoint: Checkpoint, tables: dict[str, SlotTable], tmp_path: Path
) -> None:
    part = next(part for part in checkpoint.parts if part.recipe.component == "text_encoder")
    options = Options(rank=16, precision="fp32", attention=attention)
    program = programs(part, tables["text_encoder"], options, sizes_of(checkpoint))[1]
    for outcome in each_alone(program, [converted(program, options, tmp_path)], options):
        assert outcome.effect > 0.01 and outcome.error < outcome.allowed, outcome


def test_tables_of_weights_are_found_by_k_means() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(20_000)
    centres = nearest_centres(values, 16)
    assert np.all(np.diff(centres) > 0)
    nearest = np.abs(values[:, None] - centres).argmin(axis=1)
    means = [values[nearest == index].mean() for index in range(16)]
    assert np.abs(means - centres).max() < 0.02, "every centre is the mean of the values nearest to it"
    error = np.square(values - centres[nearest]).mean()
    assert error < 0.0105, "Lloyd's and Max's quantizer of 16 levels for a normal distribution has 0.009497"
    few = nearest_centres(np.array([1.0, 1.0, 2.0]), 64)
    assert {1.0, 2.0} <= set(few), "fewer values than centres"
