"""Question: how long does it take to change the style?

Method: two random adapters of rank 16 on attention and feed-forward layers of the UNet. From a file: one that
the program has not seen, just written and so in the page cache, is loaded and made active. From a pack:
likewise, where the program has such files; beside it the time to copy the pack's bytes into fresh memory. (Before
both, off the clock, the process takes 64 MB and gives them back, so that pages are this machine's own.) A mapped
pack is not read before the step after. Resident: the other of two loaded ones is made active. Mix: both, at 0.6
and 0.4. `benchmarks/swaps.py` says what is timed; every program is asked as its own guide says. Ratios are to
lora-edge on onnxruntime; a pack's to the copy of its bytes.
Machine: stands in every line.
Result: benchmarks/results/*/swap.*.jsonl, docs/plots/swap.png.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.adapter_files import Files, Spec, fresh_copy
from benchmarks.bench import Bench, Player
from benchmarks.contestants import Role, named
from benchmarks.models import Model
from benchmarks.swaps import measure_changes

REFERENCE = "lora-edge-ort"
RANK = 16
PACKED: Mapping[str, tuple[str, tuple[Role, ...]]] = {  # title -> form, who takes part
    "pack": ("pack", ("ours",)),
    "pack, fp32": ("pack32", ("ours", "mapped")),
}


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    two = [(spec.name, bench.adapter(model, spec)) for spec in (Spec(RANK), Spec(RANK, seed=1))]
    first, second = two
    changes = {
        "file": partial(from_file, first[1]),
        "resident": partial(resident, two),
        "mix of two": partial(mix, two),
    }
    everybody = bench.chosen(named("ours", "other", "peer"), model)
    yield from measure_changes(bench, "swap", model, everybody, REFERENCE, changes)
    for title, (form, roles) in PACKED.items():
        files = {"file": second[1][form]}
        copied = f"copy of the {title}"
        packs = {title: partial(from_file, files), copied: partial(copy, files["file"])}
        ours = bench.chosen(named(*roles), model)
        yield from measure_changes(bench, "swap", model, ours, REFERENCE, packs, {title: copied})


def from_file(files: Files, player: Player, turn: int) -> float:
    """A file of a name never seen; the one before is put away, off the clock."""
    if turn:
        player.unload(f"fresh {turn - 1}")
    fresh = {form: fresh_copy(path, turn % 4) for form, path in files.items() if form in ("file", "onnx_adapter")}
    loaded = player.load(f"fresh {turn}", fresh)
    return loaded + float(player.activate([(f"fresh {turn}", 1.0)])["seconds"])


def resident(two: list[tuple[str, Files]], player: Player, turn: int) -> float:
    """The other of two."""
    _hold(two, player, turn)
    return float(player.activate([(two[turn % 2][0], 1.0)])["seconds"])


def mix(two: list[tuple[str, Files]], player: Player, turn: int) -> float:
    """From one to both."""
    _hold(two, player, turn)
    (first, _), (second, _) = two
    player.activate([(first, 1.0)])
    return float(player.activate([(first, 0.6), (second, 0.4)])["seconds"])


def copy(path: str, player: Player, turn: int) -> float:
    """The bytes of a file that has just been written, into fresh memory."""
    return float(player.worker.ask("copy", path=fresh_copy(path, 4 + turn % 4))["seconds"])


def _hold(two: list[tuple[str, Files]], player: Player, turn: int) -> None:
    """Make both resident, off the clock; what is resident stays so."""
    for name, files in two if turn == 0 else ():
        player.keep(name, files)
