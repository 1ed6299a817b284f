"""The Mac checklist: what only a Mac can tell of a bundle's Core ML packages, in one run and one file to send back.

    python examples/mac_check.py BUNDLE [--out mac-check.json]

Run by `make mac-check` on the demo model. docs/coreml.md tells what each line proves. Exit code 0: every line passed.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NEEDS_A_MAC = (
    "mac-check needs a Mac, since Core ML compiles and runs packages there alone; "
    "`lora-edge verify BUNDLE` checks as much of them as can be checked on this machine"
)
Line = dict[str, Any]


def main() -> int:
    if sys.platform != "darwin":
        print(NEEDS_A_MAC, file=sys.stderr)
        return 1
    from mac_parts import check, plan, times

    from lora_edge.bundle import Bundle
    from lora_edge.runtime.coreml.machine import UNITS, MachinePackage, tools
    from lora_edge.runtime.coreml.manifest import FOLDER, Packages
    from lora_edge.runtime.coreml.reference import ReferencePackage

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "demo" / "coreml")
    parser.add_argument("--out", type=Path, default=Path("mac-check.json"))
    parser.add_argument("--units", nargs="+", choices=UNITS, default=list(UNITS))
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    packages = Packages.open(bundle)
    coremltools = tools()
    reference = partial(ReferencePackage, precision=packages.precision)

    lines: list[Line] = []
    told: dict[str, Any] = {"machine": machine(), "bundle": about(bundle.folder / FOLDER), "lines": lines}
    with tempfile.TemporaryDirectory() as folder:
        compiled = {}
        for line in compile_all(coremltools, bundle.folder / FOLDER, Path(folder)):
            lines.append(show(line))
            if line["ok"]:
                compiled[line["component"]] = line["compiled"]
        for units in arguments.units:
            open_package = partial(MachinePackage, units=units)
            for name in packages.components:
                lines += map(show, check(packages, name, units, reference, open_package))
                lines.append(show(guarded(name, units, "times", partial(times, packages, name, open_package))))
            for package, path in compiled.items():
                lines.append(show(guarded(package, units, "plan", partial(plan, coremltools, path, units))))
    failed = sum(not line["ok"] for line in lines)
    told["failed"] = failed
    arguments.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{len(lines) - failed} passed, {failed} failed; please send {arguments.out} back")
    return 1 if failed else 0


def compile_all(coremltools: Any, folder: Path, out: Path) -> Iterator[Line]:
    """Every package as `.mlmodelc`, by the compiler that apps use."""
    for package in sorted(folder.glob("*.mlpackage")):
        line: Line = {"component": package.name, "units": "", "case": "compile", "proves": "Core ML compiles it"}
        start = time.perf_counter()
        try:
            path = coremltools.models.utils.compile_model(str(package), str(out / f"{package.stem}.mlmodelc"))
            yield line | {"ok": True, "seconds": time.perf_counter() - start, "compiled": str(path)}
        except Exception as error:  # whatever the compiler says is what the file is for
            yield line | {"ok": False, "says": str(error)}


def guarded(name: str, units: str, case: str, measure: Any) -> Line:
    """A measurement as a line; that it fails is a finding, and no reason to stop."""
    line: Line = {"component": name, "units": units, "case": case, "proves": ""}
    try:
        return line | {"ok": True, case: measure()}
    except Exception as error:
        return line | {"ok": False, "says": str(error)}


def show(line: Line) -> Line:
    """Print a line for the person who waits."""
    shown = {key: value for key, value in line.items() if key not in ("component", "units", "case", "proves", "ok")}
    print("ok  " if line["ok"] else "FAIL", line["component"], line["units"], line["case"], shown, flush=True)
    return line


def machine() -> dict[str, str]:
    chip = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    return {"system": platform.mac_ver()[0], "chip": chip.stdout.strip(), "machine": platform.machine()}


def about(folder: Path) -> dict[str, Any]:
    """How the packages were exported."""
    manifest = json.loads((folder / "lora_edge_coreml.json").read_text(encoding="utf-8"))
    words = ("fingerprint", "rank", "os", "precision", "attention", "palettize", "rows", "latent")
    return {word: manifest.get(word) for word in words}


if __name__ == "__main__":
    sys.exit(main())
