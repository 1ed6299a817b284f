"""Question: how much disk do the model and an adapter take?

Method: sizes of the files that each contestant reads, exact: the checkpoint, our bundle, the plain graph,
OpenVINO's own format; one adapter of rank 16 as a file, as packs and as ONNX Runtime's adapter.
Machine: does not matter.
Result: benchmarks/results/*/disk.*.jsonl.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import DECLARED, Bench
from benchmarks.harness import Line
from benchmarks.models import BUNDLES, Model, Places


def measure(bench: Bench, model: Model) -> Iterator[dict[str, Any]]:
    places = Places(model, bench.work)
    places.prepare("bundle")
    bundles = {name: places.folder / name for name in BUNDLES}
    for title, folder in {"checkpoint": places.model, **bundles, "OpenVINO": places.openvino}.items():
        if folder.is_dir():
            held = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]
            size = sum(path.stat().st_size for path in held)
            yield Line("disk", model.name, "", title, "bytes", [size]).to_json()
    for form, path in bench.adapter(model, DECLARED).items():
        yield Line("disk", model.name, "", f"adapter: {form}", "bytes", [Path(path).stat().st_size]).to_json()
