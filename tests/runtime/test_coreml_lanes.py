"""Adapters in the lanes of a fixed rank, against the formula in float64; cuts, against the best that can be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_edge import reference
from lora_edge.errors import AdapterValueError, RankTooLarge, RequestError
from lora_edge.forms import ComponentForms, LowRank
from lora_edge.mix import Mix
from lora_edge.runtime.coreml.cut import cut
from lora_edge.runtime.coreml.lanes import Bucket, check_rank, width_of
from lora_edge.runtime.coreml.manifest import Packaged, Pair, Port, Stage, down_shapes, up_shapes
from lora_edge.slots import Slot, SlotTable

RANK = 8
LINEAR, SMALL, WIDE = Slot("a.b", 6, 5), Slot("c", 4, 7, (1, 1)), Slot("d", 3, 4, (3, 3))
TABLE = SlotTable("unet", (LINEAR, SMALL, WIDE))
RANDOM = np.random.default_rng(0)


def packaged(table: SlotTable, dtype: type = np.float32, convolved: bool = False, rank: int = RANK) -> Packaged:
    """A component whose Linear slots take matrices, or everything the weights of convolutions."""
    pairs, ports = {}, {"lora_scale": Port("lora_scale", (rank,), np.dtype(dtype), True)}
    for slot in table:
        which = int(convolved or slot.kernel is not None)
        name = slot.name.replace(".", "_")
        pair = Pair(f"{name}_down", f"{name}_up", down_shapes(slot, rank)[which], up_shapes(slot, rank)[which])
        pairs[slot.name] = pair
        for port, shape in ((pair.down, pair.down_shape), (pair.up, pair.up_shape)):
            ports[port] = Port(port, shape, np.dtype(dtype), True)
    return Packaged((Stage(Path("Unet.mlpackage"), ports, {}),), pairs, "lora_scale")


def low_rank(slot: Slot, rank: int, scale: float = 1.0) -> LowRank:
    shapes = (slot.patch, rank), (rank, slot.out_features)
    return LowRank(*(RANDOM.standard_normal(shape).astype(np.float32) for shape in shapes), scale)


def matrices(feeds: dict[str, np.ndarray], slot: Slot) -> tuple[np.ndarray, np.ndarray]:
    """down [in, R] and up [R, out] of what is fed, in float64."""
    down, up = (feeds[f"{slot.name.replace('.', '_')}_{leaf}"].astype(np.float64) for leaf in ("down", "up"))
    if down.ndim == 4:
        return down.reshape(len(down), -1).T, up.reshape(len(up), -1).T
    return down, up


PARTS = [
    ("ink", ComponentForms({"a.b": (low_rank(LINEAR, 3, 0.5),), "d": (low_rank(WIDE, 1, 2.0),)})),
    ("glow", ComponentForms({"c": (low_rank(SMALL, 2), low_rank(SMALL, 1, 0.25)), "a.b": (low_rank(LINEAR, 2),)})),
]


@pytest.mark.parametrize("convolved", [False, True], ids=["matrices", "convolutions"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_slot_gets_the_change_that_the_formula_gives(convolved: bool, dtype: type) -> None:
    """sum of multiplier * alpha / rank * down @ up, on slots of other ranks and on slots that one adapter leaves."""
    bucket = Bucket(packaged(TABLE, dtype, convolved), TABLE, PARTS, RANK)
    strengths = np.array([[[0.7], [-0.5]]], np.float32)
    feeds = bucket.resting | bucket.moving(strengths)
    scale = feeds["lora_scale"].astype(np.float64)
    for slot in TABLE:
        wanted = sum(
            float(strength) * form.scale * form.down.astype(np.float64) @ form.up.astype(np.float64)
            for (_, part), strength in zip(PARTS, strengths[0, :, 0], strict=True)
            for form in part.slots.get(slot.name, ())
        )
        down, up = matrices(feeds, slot)
        got = (down * scale) @ up
        assert np.abs(got - wanted).max() <= {np.float32: 1e-6, np.float16: 5e-3}[dtype] * np.abs(wanted).max()
    assert all(array.dtype == dtype for array in feeds.values())


def test_an_adapter_has_the_same_lanes_in_every_slot() -> None:
    feeds = Bucket(packaged(TABLE), TABLE, PARTS, RANK).resting
    used = {
        slot.name: set(np.flatnonzero(matrices(feeds, slot)[0].any(axis=0))) for slot in TABLE
    }  # ink has lanes 0, 1, 2 and glow 3, 4, 5
    assert used == {"a.b": {0, 1, 2, 3, 4}, "c": {3, 4, 5}, "d": {0}}


def test_the_weight_of_a_convolution_lies_as_in_torch() -> None:
    """The same change as `reference` makes of the matrix: in slowest, then kh, kw."""
    form = low_rank(WIDE, 2)
    parts = [("x", ComponentForms({"d": (form,)}))]
    down = Bucket(packaged(TABLE), TABLE, parts, RANK).resting["d_down"]
    changed = reference.effective_weight(
        replace(WIDE, out_features=2), np.zeros((2, 3, 3, 3)), {"down": form.down, "up": np.eye(2)}, np.ones(2)
    )
    np.testing.assert_array_equal(down[:2], changed.astype(np.float32))


def test_multipliers_move_one_number_per_lane_and_nothing_else() -> None:
    bucket = Bucket(packaged(TABLE, np.float16), TABLE, PARTS, RANK)
    first = bucket.moving(np.array([[[0.7], [0.5]]], np.float32))
    assert list(first) == ["lora_scale"] and first["lora_scale"].nbytes == 2 * RANK
    np.testing.assert_array_equal(first["lora_scale"], np.float16([0.7] * 3 + [0.5] * 3 + [0] * 2))
    assert all(bucket.resting[name] is array for name, array in bucket.resting.items())
    assert bucket.copied == bucket.nbytes == sum(array.nbytes for array in bucket.resting.values())
    same = bucket.moving(np.array([[[0.7], [0.5]]] * 3, np.float32))
    np.testing.assert_array_equal(same["lora_scale"], first["lora_scale"])
    with pytest.raises(RequestError, match="one multiplier per adapter for a whole run"):
        bucket.moving(np.array([[[0.7], [0.5]], [[0.7], [0.4]]], np.float32))
    with pytest.raises(RequestError, match="multiplier 100000 is beyond what the package holds in float16"):
        bucket.moving(np.array([[[1e5], [0.5]]], np.float32))


def test_numbers_beyond_half_precision_are_refused() -> None:
    parts = [("x", ComponentForms({"a.b": (low_rank(LINEAR, 1, 1e6),)}))]
    with pytest.raises(AdapterValueError, match=r"float16 cannot hold a_b_up of a\.b, .* --precision fp32"):
        Bucket(packaged(TABLE, np.float16), TABLE, parts, RANK)


def test_small_changes_keep_their_digits_in_half_precision() -> None:
    """alpha / rank may be far below 1; a power of two goes from one factor to the other where it matters."""
    form = replace(low_rank(LINEAR, 3), scale=1e-6)
    bucket = Bucket(packaged(TABLE, np.float16), TABLE, [("x", ComponentForms({"a.b": (form,)}))], RANK)
    down, up = matrices(bucket.resting, LINEAR)
    wanted = 1e-6 * form.down.astype(np.float64) @ form.up
    assert np.abs(down @ up - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_it_is_the_change_that_the_other_layout_makes() -> None:
    strengths = np.array([[0.3, 1.2]], np.float32)
    mix = Mix(TABLE, [part for _, part in PARTS]).feeds(strengths)
    bucket = Bucket(packaged(TABLE), TABLE, PARTS, RANK)
    feeds = bucket.resting | bucket.moving(strengths[:, :, None])
    lanes = np.split(mix["lora.scales"][0], np.cumsum(mix["lora.ranks"])[:-1])
    for slot, scale in zip(TABLE, lanes, strict=True):
        down, up = matrices(feeds, slot)
        wanted = (mix[slot.port("down")] * scale) @ mix[slot.port("up")]
        np.testing.assert_allclose((down * feeds["lora_scale"]) @ up, wanted, atol=1e-5)


def test_too_many_lanes_are_refused_with_both_numbers() -> None:
    check_rank("unet", PARTS, 6)
    with pytest.raises(RankTooLarge, match=r"unet: ink takes 3 and glow takes 3 lanes, 6 together, where .* have 5;"):
        check_rank("unet", PARTS, 5)
    with pytest.raises(RankTooLarge, match=r"ink takes 3 lanes where .* have 2; export with a larger --rank"):
        check_rank("unet", PARTS[:1], 2)


def change(part: ComponentForms, slot: str) -> np.ndarray:
    return sum(form.scale * form.down.astype(np.float64) @ form.up for form in part.slots[slot])


def test_a_cut_of_one_adapter_is_the_best_of_its_rank() -> None:
    """Eckart and Young: what is lost is the sum of the squares of the other singular values."""
    slots = (Slot("p", 20, 30), Slot("q", 25, 15))
    part = ComponentForms({"p": (low_rank(slots[0], 9, 0.5),), "q": (low_rank(slots[1], 3),)})
    [(name, made)], [told] = cut([("big", part)], 4)
    assert name == "big" and width_of(made) == 4
    assert made.slots["q"] is part.slots["q"], "what fits is left as it is"
    values = np.linalg.svd(change(part, "p"), compute_uv=False) ** 2
    lost = np.square(change(made, "p") - change(part, "p")).sum()
    assert lost == pytest.approx(values[4:].sum(), rel=1e-4)
    total = values.sum() + np.square(change(part, "q")).sum()
    assert told == f"big: 9 lanes are cut to 4, which loses {100 * values[4:].sum() / total:.2g} % of its energy"


def test_lanes_go_to_where_they_keep_the_most() -> None:
    """No other deal of 6 lanes to three adapters keeps more, and each has one at least."""
    slot = Slot("p", 20, 30)
    scales = {"a": 2.0, "b": 1.0, "c": 1e-3}
    parts = [(name, ComponentForms({"p": (low_rank(slot, 5, scale),)})) for name, scale in scales.items()]
    made, told = cut(parts, 6)
    widths = [width_of(part) for _, part in made]
    values = [np.linalg.svd(change(part, "p"), compute_uv=False) ** 2 for _, part in parts]
    deals = [(a, b, 6 - a - b) for a in range(1, 6) for b in range(1, 6) if 1 <= 6 - a - b <= 5]
    best = max(deals, key=lambda deal: sum(own[:lanes].sum() for own, lanes in zip(values, deal, strict=True)))
    assert tuple(widths) == best and widths[2] == 1
    assert len(told) == sum(width < 5 for width in widths)


def test_what_fits_together_is_not_cut() -> None:
    made, told = cut(PARTS, 6)
    assert not told and [part.slots for _, part in made] == [part.slots for _, part in PARTS]
