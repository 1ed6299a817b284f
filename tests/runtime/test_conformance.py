"""The graph contract, written out by hand, on every backend whose ranks are free: against torch with changed weights.

A backend that joins is a line in BACKENDS; it is skipped where its package is not installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lora_edge.bundle import Bundle
from lora_edge.errors import GraphFailed
from lora_edge.graph import Graph
from lora_edge.runtime.backends import Wishes, choose
from lora_edge.scope import ALL
from lora_edge.slots import Slot

from ..tiny import Twin, twins

Feeds = dict[str, np.ndarray]
BOUND = 2e-5


@dataclass(frozen=True)
class Entry:
    """A backend as it is tested.

    Attributes:
        name: in `Engine.open(backend=...)`.
        package: that it needs.
        wishes: how it is opened.
    """

    name: str
    package: str
    wishes: Wishes = Wishes(threads=1)


BACKENDS = (
    Entry("onnxruntime", "onnxruntime"),
    Entry("torch", "torch", Wishes(["cpu"], threads=1)),
    Entry("openvino", "openvino", Wishes(threads=1, precision="fp32")),
)


class Case(Twin):
    """A component and its graph on a backend."""

    def __init__(self, graph: Graph, twin: Twin) -> None:
        super().__init__(twin.table, twin.module, twin.inputs)
        self.graph = graph

    def run(self, feeds: Feeds, rows: int = 1) -> np.ndarray:
        return self.graph.run(self.plain(rows) | feeds)[self.graph.outputs[0]]

    def torch(self, changed: dict[str, Tensor], row: int) -> np.ndarray:
        inputs = {name: tensor[row : row + 1] for name, tensor in self.inputs.items()}
        with torch.no_grad():
            out = functional_call(self.module, changed, kwargs={**inputs, "return_dict": False})
        return np.asarray(out[0])


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda tested: tested.name)
def cases(tiny_model: Path, tiny_bundle: Path, request: pytest.FixtureRequest) -> Callable[[str], Case]:
    pytest.importorskip(request.param.package)
    bundle = Bundle.open(tiny_bundle)
    backend = choose(request.param.name, bundle, request.param.wishes)
    made = {
        name: Case(backend.open_graph(bundle.component(name), ALL), twin)
        for name, twin in twins(bundle, tiny_model).items()
    }
    return made.__getitem__


@pytest.fixture(params=["unet", "text_encoder"])
def case(cases: Callable[[str], Case], request: pytest.FixtureRequest) -> Case:
    return cases(request.param)


def changed_weight(case: Case, slot: Slot, parts: list[tuple[float, np.ndarray, np.ndarray]]) -> Tensor:
    weight = case.parameter(f"{slot.name}.weight").detach().double()
    for scale, down, up in parts:
        weight = weight + scale * torch.from_numpy(down.astype(np.float64) @ up).T.reshape(weight.shape)
    return weight


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_ports(case: Case) -> None:
    graph = case.graph
    assert list(graph.inputs) == list(case.inputs)
    assert graph.optional["lora.scales"].dtype == np.float32 and len(graph.optional["lora.scales"].shape) == 2
    assert graph.optional["lora.ranks"].dtype == np.int64
    assert tuple(graph.optional["lora.ranks"].shape) == (len(case.table),)
    for slot in case.table:
        shapes = {leaf: graph.optional[slot.port(leaf)].shape for leaf in ("down", "up", "gain_in", "gain_out", "bias")}
        assert (shapes["down"][0], shapes["up"][1]) == (slot.patch, slot.out_features)
        assert tuple(shapes["bias"]) == (slot.out_features,)
        free = [shapes["down"][1], shapes["up"][0], *shapes["gain_in"], *shapes["gain_out"]]
        assert not any(isinstance(axis, int) for axis in free), slot.name
    norms = {f"{norm}.{leaf}" for norm in case.table.norms for leaf in ("weight", "bias")}
    assert norms <= graph.optional.keys()
    assert ("lora.tokens" in graph.optional) == (case.table.component == "text_encoder")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ranks", [(), (1,), (4,), (16,), (64,), (4, 16)])
def test_low_rank_on_every_slot(case: Case, ranks: tuple[int, ...], rows: int) -> None:
    scales = case.random.uniform(-1, 1, (rows, max(len(ranks), 1)))
    pairs = {slot.name: [case.pair(slot, rank) for rank in ranks] for slot in case.table}
    feeds: Feeds = {}
    if ranks:
        lanes = np.repeat(scales, ranks, axis=1)
        feeds["lora.scales"] = np.tile(lanes, (1, len(case.table))).astype(np.float32)
        feeds["lora.ranks"] = np.full(len(case.table), sum(ranks))
        for slot in case.table:
            feeds[f"lora.{slot.name}.down"] = np.concatenate([down for down, _ in pairs[slot.name]], axis=1)
            feeds[f"lora.{slot.name}.up"] = np.concatenate([up for _, up in pairs[slot.name]])
    got = case.run(feeds, rows)
    for row in range(rows):
        changed = {
            f"{slot.name}.weight".removeprefix(case.prefix): changed_weight(
                case, slot, [(float(s), *pair) for s, pair in zip(scales[row], pairs[slot.name], strict=False)]
            ).float()
            for slot in case.table
        }
        assert relative(got[row : row + 1], case.torch(changed, row)) <= BOUND


@pytest.mark.parametrize("full", [True, False], ids=["per channel", "one number"])
def test_gains_and_biases_on_every_slot(case: Case, full: bool) -> None:
    feeds: Feeds = {}
    changed = {}
    for slot in case.table:
        gain_in = 1 + case.normal(slot.in_features if full else 1, scale=0.05)
        gain_out = 1 + case.normal(slot.out_features if full else 1, scale=0.05)
        weight = case.parameter(f"{slot.name}.weight").detach().double()
        spread = (1, -1, *(1 for _ in slot.kernel or ()))
        weight = weight * torch.from_numpy(gain_in).double().reshape(spread)
        weight = weight * torch.from_numpy(gain_out).double().reshape(-1, *(1 for _ in weight.shape[1:]))
        changed[f"{slot.name}.weight".removeprefix(case.prefix)] = weight.float()
        feeds |= {f"lora.{slot.name}.gain_in": gain_in, f"lora.{slot.name}.gain_out": gain_out}
        if slot.has_bias:
            bias = case.normal(slot.out_features, scale=0.05)
            feeds[f"lora.{slot.name}.bias"] = bias
            name = f"{slot.name}.bias"
            changed[name.removeprefix(case.prefix)] = case.parameter(name).detach() + torch.from_numpy(bias)
    assert relative(case.run(feeds), case.torch(changed, 0)) <= BOUND


def test_norms_are_overridable(case: Case) -> None:
    feeds, changed = {}, {}
    for norm, channels in case.table.norms.items():
        for leaf in ("weight", "bias"):
            value = case.parameter(f"{norm}.{leaf}").detach() + torch.from_numpy(case.normal(channels, scale=0.05))
            feeds[f"{norm}.{leaf}"] = value.numpy()
            changed[f"{norm}.{leaf}".removeprefix(case.prefix)] = value
    assert relative(case.run(feeds), case.torch(changed, 0)) <= BOUND


def test_each_slot_is_wired_to_its_own_layer(case: Case) -> None:
    """Only one slot has an update: a swapped wire would be off by the whole effect."""
    base = case.run({})
    for index, slot in enumerate(case.table):
        down, up = case.pair(slot, 2, size=0.5)
        ranks = np.zeros(len(case.table), dtype=np.int64)
        ranks[index] = 2
        feeds = {
            f"lora.{slot.name}.down": down,
            f"lora.{slot.name}.up": up,
            "lora.ranks": ranks,
            "lora.scales": np.ones((1, 2), np.float32),
        }
        got = case.run(feeds)
        name = f"{slot.name}.weight".removeprefix(case.prefix)
        expected = case.torch({name: changed_weight(case, slot, [(1.0, down, up)]).float()}, 0)
        effect = np.abs(expected - base).max()
        assert effect > 0
        assert np.abs(got - expected).max() <= 2e-2 * effect, slot.name


def test_a_multiplier_of_zero_is_the_base_bit_for_bit(case: Case) -> None:
    feeds: Feeds = {}
    for slot in case.table:
        feeds[f"lora.{slot.name}.down"], feeds[f"lora.{slot.name}.up"] = case.pair(slot, 8, size=5)
    feeds["lora.ranks"] = np.full(len(case.table), 8)
    feeds["lora.scales"] = np.zeros((1, 8 * len(case.table)), np.float32)
    assert np.array_equal(case.run(feeds, 2), case.run({}, 2))


def test_one_row_off_leaves_that_row_alone(case: Case) -> None:
    feeds: Feeds = {}
    for slot in case.table:
        feeds[f"lora.{slot.name}.down"], feeds[f"lora.{slot.name}.up"] = case.pair(slot, 4)
    feeds["lora.ranks"] = np.full(len(case.table), 4)
    feeds["lora.scales"] = np.repeat([[1.0], [0.0]], 4 * len(case.table), axis=1).astype(np.float32)
    got, base = case.run(feeds, 2), case.run({}, 2)
    assert np.abs(got[0] - base[0]).max() > 1e-2
    assert relative(got[1], base[1]) <= BOUND


def test_added_tokens(cases: Callable[[str], Case]) -> None:
    """`lora.tokens` row k is the embedding of id vocab_size + k; pooling still finds the end of text."""
    case = cases("text_encoder")
    embeddings = case.parameter("text_model.embeddings.token_embedding.weight").detach()
    ids = case.inputs["input_ids"][:1].clone()
    ids[0, 5:7] = torch.tensor([17, 400])
    ids[0, 20:] = 513
    added = ids.clone()
    added[0, 5:7] = torch.tensor([515, 514])
    tokens = embeddings[[400, 17]].numpy()
    plain = case.graph.run({"input_ids": ids.numpy()})
    learned = case.graph.run({"input_ids": added.numpy(), "lora.tokens": tokens})
    assert {"last_hidden_state", "pooler_output", "hidden_states.0", "hidden_states.2"} <= set(case.graph.outputs)
    assert plain.keys() == learned.keys() == set(case.graph.outputs)
    for name in plain:
        assert np.array_equal(plain[name], learned[name]), name
    with torch.no_grad():
        expected = case.module(input_ids=ids, output_hidden_states=True)
    assert relative(plain["pooler_output"], expected.pooler_output.numpy()) <= BOUND
    added[0, 6] = 516
    with pytest.raises(GraphFailed):
        case.graph.run({"input_ids": added.numpy(), "lora.tokens": tokens})


@pytest.mark.parametrize("size", [(2, 2), (8, 32)])
def test_other_sizes_and_one_timestep_for_all_rows(cases: Callable[[str], Case], size: tuple[int, int]) -> None:
    case = cases("unet")
    sample, context = torch.randn(3, 4, *size), torch.randn(3, 154, 64)
    with torch.no_grad():
        expected = case.module(sample, torch.tensor(7.0), context, return_dict=False)[0].numpy()
    feeds = {"sample": sample.numpy(), "timestep": np.array([7], np.float32), "encoder_hidden_states": context.numpy()}
    assert relative(case.graph.run(feeds)["out_sample"], expected) <= BOUND
