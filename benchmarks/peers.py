"""Environments of their own for peers whose versions conflict with ours: `make bench-peers`."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(os.environ.get("LORA_EDGE_PEERS", Path(__file__).parent.parent / "build" / "peers"))

# What is installed where; these versions are known to work together.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "numpy==2.4.6"),
    "optimum": (
        "optimum-intel==2.2.0", "optimum==2.3.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0",
        "nncf==3.4.0", "diffusers==0.39.0", "transformers==5.5.4", "torch==2.14.1", "numpy==2.4.6",
    ),
    "sdcpp": ("stable-diffusion-cpp-python==0.4.7", "numpy==2.4.6"),
}  # fmt: skip


def python_of(environment: str) -> Path:
    """The interpreter of an environment; "" is the one that runs the benchmarks."""
    return FOLDER / environment / "bin" / "python" if environment else Path(sys.executable)


def main() -> None:
    for name, packages in ENVIRONMENTS.items():
        python = python_of(name)
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(FOLDER / name)], check=True)
        print(f"{name}: {', '.join(packages)}")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)


if __name__ == "__main__":
    main()
