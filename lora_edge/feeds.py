"""What graphs are fed, checked for programs that would not say, or not in words, that it does not fit together."""

from collections.abc import Collection, Mapping, Sequence

from lora_edge.arrays import Array, FloatArray, IntArray
from lora_edge.errors import GraphFailed
from lora_edge.slots import RANKS, SCALES, SlotTable


def check_names(graph: str, feeds: Collection[str], inputs: Collection[str], optional: Collection[str]) -> None:
    """Refuse an input that a graph does not have, and one that it lacks.

    Args:
        graph: what it is called.
        feeds: names of what is fed.
        inputs, optional: names of what must be and what may be fed.

    Raises:
        GraphFailed: with the first of them.
    """
    strange = sorted(name for name in feeds if name not in inputs and name not in optional)
    missing = sorted(name for name in inputs if name not in feeds)
    words = [f"has no input {name}" for name in strange] + [f"needs {name}" for name in missing]
    if words:
        raise GraphFailed(f"the {graph} {words[0]}")


def check_ids(name: str, ids: IntArray, vocabulary: int, added: int) -> None:
    """Refuse token ids beyond those of the base and the added ones (`lora.tokens`).

    Raises:
        GraphFailed: there are some.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary + added:
        raise GraphFailed(f"{name} has ids beyond the {vocabulary} of the base and the {added} added")


def check_cut(table: SlotTable, scales: FloatArray, ranks: IntArray) -> None:
    """Refuse `lora.ranks` that do not cut `lora.scales` into a piece for every slot.

    Raises:
        GraphFailed: they do not.
    """
    if len(ranks) != len(table) or ranks.min(initial=0) < 0 or ranks.sum() != scales.shape[1]:
        raise GraphFailed(f"{RANKS} does not cut the {scales.shape[1]} lanes of {SCALES} for {len(table)} slots")


def check_lanes(table: SlotTable, feeds: Mapping[str, Array]) -> None:
    """Refuse adapter inputs that do not belong together.

    Args:
        table: the component's slots.
        feeds: all inputs of a graph, defaults too.

    Raises:
        GraphFailed: factors have other ranks than `lora.ranks` says, `lora.scales` other lanes, gains another length.
    """
    if SCALES not in feeds or RANKS not in feeds:
        return
    check_cut(table, feeds[SCALES], feeds[RANKS])
    for slot, rank in zip(table, feeds[RANKS].tolist(), strict=True):
        down, up = feeds.get(slot.port("down")), feeds.get(slot.port("up"))
        if down is not None and up is not None and not down.shape[1] == len(up) == rank:
            raise GraphFailed(f"{slot.name} has matrices of rank {down.shape[1]} and {len(up)}, {RANKS} says {rank}")
        for leaf, features in (("gain_in", slot.in_features), ("gain_out", slot.out_features)):
            gain = feeds.get(slot.port(leaf))
            if gain is not None and len(gain) not in (1, features):
                raise GraphFailed(f"{slot.port(leaf)} has {len(gain)} numbers; it takes 1 or {features}")


def check_rows(plain: Sequence[Array], scales: Array | None) -> None:
    """Refuse batches that do not agree: one number of rows for all; a list of numbers, and scales, may have one.

    Raises:
        GraphFailed: they do not.
    """
    batches = {len(array) for array in plain if array.ndim > 1}
    lists = {len(array) for array in plain if array.ndim == 1} | ({1} if scales is None else {len(scales)})
    if len(batches) > 1 or 0 in batches or not lists <= {1, *batches}:
        raise GraphFailed(f"inputs have {', '.join(map(str, sorted(batches | lists)))} rows; they must agree")
