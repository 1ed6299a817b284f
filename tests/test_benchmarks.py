"""The benchmarks' own machinery, on made-up numbers and on the tiny model; nothing is timed here."""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lora_edge
from benchmarks import bars, harness, report, steps
from benchmarks.adapter_files import Spec, write_adapter
from benchmarks.bench import Chosen, Player
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.base import Cannot, Contestant, Server, as_wanted, inputs_of
from benchmarks.found import Found, on_machines
from benchmarks.models import MODELS, PLAIN, ROOT
from benchmarks.peers import ENVIRONMENTS
from benchmarks.plain import write_plain
from benchmarks.questions import QUESTIONS
from benchmarks.steps import Case
from benchmarks.workers import Worker, groups
from lora_edge.bundle import Bundle

RESULTS = ROOT / "benchmarks" / "results"
MACHINE = "a processor, 2 cores, 24 GiB, Linux"


def test_everybody_takes_a_turn_in_every_round_and_the_order_rotates() -> None:
    taken: list[str] = []
    clock = iter(range(100))

    def turn(name: str) -> float:
        taken.append(name)
        return float(next(clock))

    made, _ = harness.in_turns({name: lambda name=name: turn(name) for name in "abc"}, rounds=3, warm=1)
    assert ["".join(taken[start : start + 3]) for start in range(0, 12, 3)] == ["cab", "abc", "bca", "cab"]
    assert made == {"a": [3.0, 8.0, 10.0], "b": [4.0, 6.0, 11.0], "c": [5.0, 7.0, 9.0]}


def test_who_fails_on_the_way_is_told_and_the_others_go_on() -> None:
    left = iter([1.0, 2.0])

    def dies() -> float:
        try:
            return next(left)
        except StopIteration:
            raise harness.Failed("its process ended") from None

    made, lost = harness.in_turns({"a": dies, "b": lambda: 5.0}, rounds=3, warm=1)
    assert made == {"b": [5.0, 5.0, 5.0]} and lost == {"a": "its process ended"}


def test_spread_is_median_and_quartiles() -> None:
    values = np.random.default_rng(1).lognormal(size=31).tolist()
    made = harness.spread(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    np.testing.assert_allclose([made["quartiles"][0], made["median"], made["quartiles"][1]], [low, middle, high], 1e-4)
    assert made["n"] == 31


def test_a_machine_that_drifts_does_not_move_ratios() -> None:
    drift = np.linspace(1, 3, 15)
    made = harness.ratio((1.07 * drift).tolist(), drift.tolist())
    assert made["median"] == made["interval"][0] == made["interval"][1] == pytest.approx(1.07)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    samples = [random.lognormal(sigma=0.1, size=15).tolist() for _ in range(100)]
    intervals = [harness.ratio(sample, [1.0] * 15)["interval"] for sample in samples]
    assert 88 <= sum(low <= 1.0 <= high for low, high in intervals) <= 100


def line(contestant: str, case: str, values: Sequence[float], question: str = "swap", **facts: Any) -> dict[str, Any]:
    reference = facts.pop("reference", ())
    against = facts.pop("against", "")
    return harness.Line(question, "sd15", contestant, case, "s", values, reference, against, facts).to_json()


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    lines = [
        line("lora-edge-ort", "resident", [0.001, 0.003, 0.002], versions={"onnxruntime": "1"}),
        harness.unable("swap", "sd15", "ort-adapters", "mix of two", "the first one wins"),
    ]
    harness.write_lines(tmp_path / "swap.sd15.jsonl", lines)
    assert harness.read_lines(tmp_path) == lines
    assert lines[0]["median"] == 0.002 and "ratio" not in lines[0]
    assert not list(tmp_path.glob("*.partial"))


def test_groups_fit_and_hold_the_references() -> None:
    model = MODELS["sd15"]
    made = list(groups(["plain-ort", "diffusers-fp32", "diffusers-bf16", "sd-cpp"], ["lora-edge-ort"], model, 12e9))
    assert made == [
        ("lora-edge-ort", "plain-ort"), ("lora-edge-ort", "diffusers-fp32", "diffusers-bf16"),
        ("lora-edge-ort", "sd-cpp"),
    ]  # fmt: skip
    assert list(groups(["lora-edge-ort"], ["lora-edge-ort"], model, 1.0)) == [("lora-edge-ort",)]


class Drifting:
    """A machine that becomes slower all the time, and a contestant on it that is `factor` times slower than another."""

    facts: Mapping[str, Any] = {}

    def __init__(self, name: str, factor: float, clock: list[str]) -> None:
        self.name, self.factor, self.clock = name, factor, clock

    def hold(self, chosen: Chosen) -> bool:
        return False

    def steps(self, latents: int, rows: int, count: int = 1) -> list[float]:
        assert rows == 2
        self.clock += [self.name] * count
        return [0.5 * self.factor * (1 + len(self.clock) / 500)] * count


class Fake:
    """What `steps.compare` asks of a bench."""

    rounds = 9

    def __init__(self) -> None:
        self.clock: list[str] = []

    def groups(self, names: Sequence[str], references: Sequence[str], model: Any) -> list[tuple[str, ...]]:
        return [tuple(dict.fromkeys([*references, *names]))]

    def players(self, names: Sequence[str], model: Any) -> dict[str, Any]:
        factors = {"plain-ort": 1.0, "lora-edge-ort": 1.07}
        return {name: Drifting(name, factors[name], self.clock) for name in names}


def test_a_case_is_told_beside_the_turn_right_before_it() -> None:
    bench, plain = Fake(), Case("plain-ort", "no adapter")
    cases = [Case("lora-edge-ort", title) for title in ("a", "b", "c")]
    lines = list(
        steps.compare(bench, "step_time", MODELS["sd15"], 32, [plain, *cases], dict.fromkeys(cases, plain))  # type: ignore[arg-type]
    )
    assert [line["case"] for line in lines] == ["no adapter", "a", "b", "c"] and "ratio" not in lines[0]
    for line in lines[1:]:
        assert line["ratio"]["n"] == 9 and line["against"] == "plain-ort: no adapter"
        assert line["ratio"]["median"] == pytest.approx(1.07, rel=0.02), "the machine is three times slower at the end"
    turns = [name for name, _ in itertools.groupby(bench.clock[4 * len(lines) :])]  # tried twice before
    assert turns.count("lora-edge-ort") == 3 * 9, "never one of them right after another"


@pytest.mark.parametrize(("factor", "before"), [(1.0, 32), (20.0, 8)])
def test_a_long_step_needs_none_of_its_size_before_it(factor: float, before: int) -> None:
    """But the small one before it makes all that waits for a change of adapters."""
    asked: list[int] = []

    class Noting(Drifting):
        def steps(self, latents: int, rows: int, count: int = 1) -> list[float]:
            asked.append(latents)
            return super().steps(latents, rows, count)

    class One(Fake):
        def players(self, names: Sequence[str], model: Any) -> dict[str, Any]:
            return {name: Noting(name, factor, self.clock) for name in names}

    (made,) = steps.compare(One(), "step_time", MODELS["sd15"], 32, [Case("plain-ort", "no adapter")], {})  # type: ignore[arg-type]
    assert asked[-2:] == [before, 32] and made["n"] == (9 if factor == 1 else 4)


def test_the_lists_name_what_is_there() -> None:
    for entry in CONTESTANTS.values():
        assert (ROOT / "benchmarks" / "contestants" / f"{entry.module}.py").is_file()
        assert entry.environment in {"", *ENVIRONMENTS} and entry.limit in {"", *CONTESTANTS}
    for name in QUESTIONS:
        told = (ROOT / "benchmarks" / "questions" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
        assert all(word in told for word in ("Question:", "Method:", "Machine:", "Result:")), name


class Made(Contestant):
    """Adds its adapters' numbers to the sample."""

    def load(self, path: str) -> Any:
        return float(path)

    def activate(self, adapters: Sequence[tuple[Any, Any]]) -> None:
        if len(adapters) > 1:
            raise Cannot("takes one")
        self.sum = sum(number * multiplier for number, multiplier in adapters)

    def step(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return inputs["sample"] + self.sum


def test_a_server_asks_its_contestant(tmp_path: Path) -> None:
    model = {"channels": 4, "context": 8, "tokens": 5}
    server = Server(Made)
    assert server.open(model, 0, {}, "")["versions"] == {}
    server.load("a", {"file": "3"})
    assert server.activate([["a", 0.5]])["seconds"] >= 0  # type: ignore[list-item]
    assert len(server.step(4, 2, 3)["seconds"]) == 3
    server.output(4, 2, str(tmp_path / "out.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), inputs_of(model, 4, 2)["sample"] + 1.5, 1e-6)
    with pytest.raises(Cannot, match="takes one"):
        server.activate([["a", 1.0], ["a", 1.0]])  # type: ignore[list-item]
    assert 0 < server.memory()["resident"] <= 2 * server.memory()["peak"]


def test_a_worker_computes_what_the_engine_does_and_stands_still_between(tiny_bundle: Path, tmp_path: Path) -> None:
    files = write_adapter(Spec(4), Bundle.open(tiny_bundle), tmp_path)
    model = {"bundle": str(tiny_bundle), "channels": 4, "context": 64, "tokens": 5}
    worker = Worker("lora-edge-ort", tmp_path / "log")
    try:
        worker.open(model, 1, files["file"])
        assert worker.versions.keys() == {"lora-edge", "onnxruntime"}
        player = Player(worker, lambda spec: files)
        assert player.hold(((Spec(4), 0.5),)) and not player.hold(((Spec(4), 0.5),))
        assert len(player.steps(8, 2, 2)) == 2
        worker.ask("output", latents=8, rows=2, path=str(tmp_path / "out.npy"))
        if sys.platform == "linux":
            assert _comes_to_rest(worker.pid)
        with pytest.raises(harness.Failed, match="KeyError"):
            worker.ask("unload", key="never loaded")
    finally:
        worker.close()
    engine = lora_edge.Engine.open(tiny_bundle, threads=1)
    adapter = engine.load_adapter(files["file"])
    wanted = engine.run("unet", inputs_of(model, 8, 2), [(adapter, 0.5)])["out_sample"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-6)


def _comes_to_rest(pid: int) -> bool:
    """Whether the kernel says that a process is stopped; the signal may still be under way."""
    state = Path(f"/proc/{pid}/stat")
    return any(state.read_text().rpartition(")")[2].split()[0] == "T" or time.sleep(0.01) for _ in range(100))


def test_every_form_of_an_adapter_does_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    files = write_adapter(Spec(4, 2), Bundle.open(tiny_bundle), tmp_path)
    engine = lora_edge.Engine.open(tiny_bundle, threads=1)
    inputs = inputs_of({"channels": 4, "context": 64, "tokens": 5}, 8, 2)
    outputs = [engine.run("unet", inputs, [(engine.load_adapter(path), 1.0)])["out_sample"] for path in files.values()]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-4)


def test_the_limits_are_the_network_without_slots(tiny_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Both of them, by onnxruntime: OpenVINO's has nothing in it that only OpenVINO knows."""
    write_plain(tiny_model, "unet", tiny_bundle, tmp_path / "unet")
    inputs = inputs_of({"channels": 4, "context": 64, "tokens": 5}, 8, 2)
    wanted = lora_edge.Engine.open(tiny_bundle, threads=1).run("unet", inputs)["out_sample"]
    for file in PLAIN.values():
        session = onnxruntime.InferenceSession(tmp_path / "unet" / file, providers=["CPUExecutionProvider"])
        assert {port.name for port in session.get_inputs()} == inputs.keys()
        (made,) = session.run(None, as_wanted(inputs, session.get_inputs()))
        np.testing.assert_allclose(made, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.fixture
def measured() -> Found:
    """Results of a machine where everything is as asked for, but one peer is faster than it should be."""
    ours, steps = "lora-edge-ort", {"question": "beside_peers", "latents": 64}
    seconds = [2.0, 2.2, 1.8]
    return Found(
        [
            line(ours, "1 of rank 16", seconds, reference=seconds, against=f"{ours}: 1 of rank 16", **steps),
            line("ort-adapters", "1 of rank 16", [1.9, 2.09, 1.71], reference=seconds, against=ours, **steps),
            line("diffusers-fp32", "1 of rank 16", [8.0, 8.8, 7.2], reference=seconds, against=ours, **steps),
            line(ours, "1 of rank 16", [2.06], question="step_time", reference=[2.0], against="plain", latents=64),
            line(ours, "no adapter", [2.02], question="step_time", reference=[2.0], against="plain", latents=64),
            line(ours, "resident", [4e-5]) | {"later": {"median": 5e-4}, "lazy": False},
            line("diffusers-fp32", "resident", [0.02]),
            line("ort-adapters", "resident", [3e-5]),
            harness.unable("swap", "sd15", "ort-adapters", "mix of two", "the first one wins"),
        ],
        MACHINE,
    )


def test_bars_are_answered(measured: Found) -> None:
    told = {(answer.title, answer.where): answer for answer in bars.answers(measured)}
    bare = told["a step with no adapter, over the plain graph's", "lora-edge, onnxruntime, 64x64"]
    assert (bare.measured, bare.verdict) == (1.01, "met")
    peer = told["our step with 1 of rank 16, over the fastest peer's", "ONNX Runtime LoraAdapter, on our bundle, 64x64"]
    assert peer.measured == pytest.approx(1 / 0.95) and peer.verdict == "not met"
    assert told["the same, over eager diffusers'", "diffusers + PEFT, eager fp32, 64x64"].measured == 0.25
    assert told["a swap to a resident adapter", "lora-edge, onnxruntime"].measured == pytest.approx(0.04)
    swap = "a swap to a resident adapter and what it puts off, over the fastest peer's"
    own = told[f"{swap} (of its own)", "diffusers + PEFT, eager fp32"]
    assert own.measured == pytest.approx(0.00054 / 0.02) and own.verdict == "met"
    assert told[f"{swap} (on our graph)", "ONNX Runtime LoraAdapter, on our bundle"].verdict == "not met"
    assert {answer.verdict for answer in bars.answers(Found([]))} == {"not measured"}


def test_seconds_of_an_export_are_compared_on_one_machine(tmp_path: Path) -> None:
    told = {"seconds": 219.4, "peak_bytes": 9558196224}
    *_, seconds, peak = bars.answers(Found([], bars.FIRST_MACHINE, told))
    assert (seconds.measured, seconds.verdict, peak.verdict) == (0.5, "met", "not met")
    *_, seconds, peak = bars.answers(Found([], MACHINE, told))
    assert (seconds.verdict, peak.measured) == ("not measured", 1)


def test_results_lie_by_machine(tmp_path: Path) -> None:
    for machine, median in ((MACHINE, 1.0), (bars.FIRST_MACHINE, 2.0)):
        made = line("lora-edge-ort", "resident", [median]) | {"machine": machine}
        harness.write_lines(tmp_path / harness.folder_of(machine) / "swap.sd15.jsonl", [made])
    (tmp_path / harness.folder_of(MACHINE) / "export_sd15.json").write_text(json.dumps({"seconds": 3}))
    read = {found.machine: found for found in on_machines(tmp_path)}
    assert {machine: found.lines[0]["median"] for machine, found in read.items()} == {
        MACHINE: 1.0, bars.FIRST_MACHINE: 2.0,
    }  # fmt: skip
    assert (read[MACHINE].export, read[bars.FIRST_MACHINE].export) == ({"seconds": 3}, {})
    assert on_machines(tmp_path / "none") == []


def test_a_run_of_some_leaves_the_others_lines() -> None:
    kept = [line("a", "x", [1.0], latents=32), line("a", "x", [2.0], latents=64), line("b", "x", [3.0], latents=32)]
    made = [harness.unable("swap", "sd15", "b", "x", "gone") | {"latents": 32}, line("c", "x", [4.0])]
    assert harness.merged(kept, made) == [*kept[:2], *made]


def test_programs_that_have_a_choice_compute_in_what_the_processor_is_best_at() -> None:
    assert [harness.precision_of(machine) for machine in (bars.FIRST_MACHINE, MACHINE)] == ["bf16", "fp32"]
    with_it = {name for name, entry in CONTESTANTS.items() if entry.bf16}
    assert with_it == {"diffusers-bf16", "lora-edge-ov-fp32", "plain-ov-fp32"}


def test_the_page_and_the_section_say_what_was_measured(measured: Found) -> None:
    others = Found([], bars.FIRST_MACHINE)
    section, page = report.section([others, measured]), report.document([others, measured])
    assert report.section([]) == report.section([others]) == "Nothing has been measured yet: `make bench`.\n"
    told = "**0.04 ms to change the style, 0.5 ms more in the first step after it, 3.0 % a step** (SD 1.5's size, 64x64"
    assert section.startswith(told)
    row = "| diffusers + PEFT, eager fp32 | 8 s, 4.000 x | – |"
    assert row in section and row in page
    assert "ONNX Runtime LoraAdapter, on our bundle: swap: mix of two: the first one wins." in page
    widths = {len(row.split("|")) for row in page.splitlines() if row.startswith("| a step")}
    assert widths == {7}


def test_the_section_is_replaced_in_place(measured: Found) -> None:
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.with_section(readme, report.section([measured]))
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    assert report.with_section(once, report.section([measured])) == once
    with pytest.raises(SystemExit, match="lacks the marks"):
        report.with_section("nothing", "")


def test_readme_and_page_are_what_the_results_give() -> None:
    """`python -m benchmarks.report` writes both."""
    machines = on_machines(RESULTS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_section(readme, report.section(machines)) == readme
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == report.document(machines)
