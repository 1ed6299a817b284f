"""The walls: who may import whom, and how long a file may be. Read from the source; nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"lora_edge": "lora_edge", "runtime": "lora_edge.runtime", "export": "lora_edge.export"}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LINES = 300

HEAVY = {"torch", "diffusers", "transformers", "peft", "onnx", "onnx_ir", "onnxscript", "coremltools"}
# What each room may import besides itself, lora_edge and the standard library.
ALLOWED = {
    "lora_edge": {"numpy", "typer", "tqdm"},
    "runtime": {"numpy", "onnxruntime", "tokenizers", "PIL", "torch", "coremltools", "openvino"},
    "export": {"numpy", "safetensors"} | HEAVY,
}
FORBIDDEN_ROOMS = {"lora_edge": {"lora_edge.runtime", "lora_edge.export"}, "runtime": {"lora_edge.export"}}
FORBIDDEN_ROOMS["export"] = {"lora_edge.runtime"}
# The command line and the front door join the rooms, and only inside functions.
JOINING = {"lora_edge/front.py", "lora_edge/__init__.py"} | {
    path.relative_to(ROOT).as_posix() for path in (ROOT / "lora_edge" / "cli").glob("*.py")
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports at run time, and whether it does so when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
             for node in ast.walk(function)}  # fmt: skip
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith("TYPE_CHECKING")
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((_imported(node.module or "", alias.name), id(node) not in inner) for alias in node.names)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((ROOMS[parts[0]], *parts[1:])).removesuffix(".__init__")


def _imported(module: str, name: str) -> str:
    """`from package import module` imports the module."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


MODULES = {module_name(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_stays_in_its_room_and_in_its_size(path: Path) -> None:
    room = room_of(path)
    name = path.relative_to(ROOT).as_posix()
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES
    for module, at_load in imports(path):
        top = module.split(".")[0]
        assert top not in {"runtime", "export"}, f"{name} makes a second copy of {module}"
        if any(module == wall or module.startswith(wall + ".") for wall in FORBIDDEN_ROOMS[room]):
            assert name in JOINING and not at_load, f"{name} reaches into {module}"
        if top in HEAVY | {"numpy", "onnxruntime", "tokenizers", "PIL", "safetensors", "typer", "tqdm"}:
            assert top in ALLOWED[room], f"{name} imports {module}, which {room}/ does without"


def test_onnxruntime_is_imported_in_one_file() -> None:
    users = {
        path.relative_to(ROOT).as_posix() for path in FILES for module, _ in imports(path) if module == "onnxruntime"
    }
    assert users == {"runtime/session.py"}


def test_coremltools_is_imported_in_one_file_of_the_runtime() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for module, _ in imports(path)
        if module.split(".")[0] == "coremltools"
    }
    assert {user for user in users if not user.startswith("export/coreml/")} == {"runtime/coreml/machine.py"}


def test_torch_is_imported_in_two_files_of_the_runtime_which_nobody_loads_unasked() -> None:
    torch_files = {"runtime/torchprogram.py", "runtime/torchslots.py"}
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for module, _ in imports(path)
        if room_of(path) == "runtime" and module.split(".")[0] == "torch"
    }
    assert users == torch_files
    modules = {module_name(ROOT / file) for file in torch_files}
    loaders = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for module, at_load in imports(path)
        if at_load and any(module == one or module.startswith(one + ".") for one in modules)
    }
    assert loaders == {"runtime/torchprogram.py"}


def test_openvino_is_imported_in_one_file_which_nobody_loads_unasked() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), module, at_load) for path in FILES for module, at_load in imports(path)
    ]
    assert {file for file, module, _ in found if module.split(".")[0] == "openvino"} == {"runtime/openvino.py"}
    assert not [file for file, module, at_load in found if at_load and module == "lora_edge.runtime.openvino"]


def test_typer_and_tqdm_stay_with_the_command_line() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for module, _ in imports(path)
        if module.split(".")[0] in {"typer", "tqdm"}
    }
    assert users <= JOINING | {"lora_edge/cli/__init__.py"}


def test_no_import_cycle() -> None:
    graph = {module_name(path): {module for module, at_load in imports(path) if at_load} for path in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for module in graph[name]:
            visit(module, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())
