"""Ask questions of models: `python -m benchmarks`, or `make bench`.

Results go to benchmarks/results/, a folder for each machine. A run of some contestants or some latents leaves what the
machine's files say of the others as it is.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.bench import Bench, running
from benchmarks.contestants import CONTESTANTS
from benchmarks.harness import folder_of, machine, merged, read_lines, write_lines
from benchmarks.models import MODELS, ROOT
from benchmarks.questions import QUESTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure; see benchmarks/questions for what and how.")
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="of " + ", ".join(QUESTIONS))
    parser.add_argument("--contestants", default="", help="of " + ", ".join(CONTESTANTS))
    parser.add_argument("--latents", default="", help="sides of latents, in place of the model's own")
    parser.add_argument("--rounds", type=int, default=15, help="that count, where a step takes less than a second")
    parser.add_argument("--threads", type=int, default=0, help="of every contestant; 0 leaves it to them")
    parser.add_argument("--memory", type=float, default=16, help="GB that contestants may take together")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models, adapters, logs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args()
    only = tuple(filter(None, asked.contestants.split(",")))
    folder = asked.results / folder_of(machine())
    latents = tuple(int(side) for side in asked.latents.split(",") if side)
    print(machine())
    with running(Bench(asked.work.absolute(), asked.rounds, asked.threads, asked.memory * 1e9, only)) as bench:
        for name in asked.models.split(","):
            model = MODELS[name].at(latents)
            for question in asked.questions.split(","):
                start, lines, path = time.perf_counter(), [], folder / f"{question}.{name}.jsonl"
                kept = read_lines(path) if only or latents else []
                for line in QUESTIONS[question](bench, model):
                    lines.append(line)
                    print(told(line), file=sys.stderr)
                    write_lines(path, merged(kept, lines))  # a run that ends early keeps them
                print(f"{question}, {name}: {len(lines)} lines in {time.perf_counter() - start:.0f} s", flush=True)


def told(line: dict) -> str:
    """A line for somebody who watches."""
    who = f"{line['question']} {line['model']} {line['contestant']}: {line['case']}"
    if "cannot" in line:
        return f"{who}: cannot: {line['cannot']}"
    ratio = f", {line['ratio']['median']:.3f} x" if "ratio" in line else ""
    return f"{who}: {line['median']:.5g} {line['unit']}{ratio}"


if __name__ == "__main__":
    main()
