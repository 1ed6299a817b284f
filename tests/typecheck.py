"""mypy --strict over the built wheel, from outside the checkout.

The rooms `runtime/` and `export/` are `lora_edge.runtime` and `lora_edge.export` only once installed, and an editable
install hides them from mypy; checking the wheel also proves it complete.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(target), str(ROOT)], check=True)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "lora_edge"]
        return subprocess.run(command, cwd=target, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
