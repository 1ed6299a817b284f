"""Fresh processes in turns: the method of questions whose answer a process gives only once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contestants.base import Cannot
from benchmarks.harness import Failed, Line, in_turns, unable
from benchmarks.models import Model
from benchmarks.workers import Worker

Once = Callable[[Worker, dict[str, Any]], float]


def measure_once(
    bench: Bench,
    question: str,
    model: Model,
    title: str,
    unit: str,
    once: Once,
    reference: dict[str, str],
    names: tuple[str, ...],
    facts: dict[str, Any],
    rounds: int,
    cold: bool,
) -> Iterator[dict[str, Any]]:
    """Lines of all contestants; nothing else is open meanwhile.

    Args:
        once: asks a worker that was just started, given what to open it with.
        reference: contestant -> the one whose value of the same round its ratio is made with.
        rounds: that count.
        cold: whether the first round, when files may not be in the page cache, counts as well as any other.
    """
    bench.close()
    able, told, first = {}, {}, {}
    for name in names:
        try:
            first[name] = [_run(bench, model, name, once, told)] * cold
            able[name] = partial(_run, bench, model, name, once, told)
        except (Cannot, Failed) as reason:
            yield unable(question, model.name, name, title, str(reason))
    later, lost = in_turns(able, rounds - cold, f"{question}, {model.name}, {title}", warm=0)
    yield from (unable(question, model.name, name, title, why) for name, why in lost.items())
    made = {name: first[name] + values for name, values in later.items()}
    for name, values in made.items():
        beside = made.get(reference.get(name, ""), ())
        against = f"{reference[name]}: {title}" if len(beside) else ""
        said = {**facts, "versions": told[name]}
        yield Line(question, model.name, name, title, unit, values, beside, against, said).to_json()


def _run(bench: Bench, model: Model, name: str, once: Once, told: dict[str, Any]) -> float:
    worker, settings = bench.start(name, model)
    try:
        value = once(worker, settings)
        told[name] = worker.versions
        return value
    finally:
        worker.close()
