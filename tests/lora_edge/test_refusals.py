"""The table of refusals: every way in which reading and fitting an adapter can end, with its class and its sentence."""

import ast
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lora_edge
from lora_edge import errors
from lora_edge.bundle import Bundle
from lora_edge.opening import open_adapter
from lora_edge.slots import Slot

from ..fuzz.world import CONFIGS, TABLES, component
from .refusals import containers, kinds, ort, packs, settings, words
from .refusals.case import BLOCK, OUT, Case, Desk, pair

TABLE: tuple[Case, ...] = (*containers.CASES, *settings.CASES, *kinds.CASES, *packs.CASES, *ort.CASES, *words.CASES)

ROOM = Path(lora_edge.__file__).parent
SOURCES = sorted(
    path
    for pattern in (
        *("adapterfile", "fitting", "planning", "cost", "opening", "tensorfile", "tensorheader", "library"),
        *("peftconfig", "peftpatterns", "basemodel", "pack", "packhead", "ports", "ortadapter", "ortfile"),
        *("embeddingfile", "kinds/*"),
    )
    for path in ROOM.glob(f"{pattern}.py")
)

# Refusals that no row meets: file -> what stands in the line -> why.
UNMET = {
    "peftconfig.py": {"cannot be read": "a disk that fails, or a file that the user may not read"},
    "library.py": {"cannot be read": "the same of a folder"},
    "dora.py": {"beside gains or biases": "no kind that has lanes has gains or biases too; for one that will"},
}


@dataclass(frozen=True)
class Refusal:
    """What came of a row."""

    raised: BaseException | None
    folder: Path


class Lines:
    """The lines of some files that run while it is entered."""

    def __init__(self, files: list[Path]) -> None:
        self.met: defaultdict[str, set[int]] = defaultdict(set)
        self._files = {str(path) for path in files}

    def __enter__(self) -> "Lines":
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.met[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small one, with a layer of the same name in both components."""
    folder = tmp_path_factory.mktemp("bundle")
    tables = [replace(table, slots=(*table.slots, Slot("twin", 8, 8))) for table in TABLES]
    components = {table.component: component(folder, table, CONFIGS[table.component]) for table in tables}
    return Bundle(folder, {"fingerprint": "5f" * 32, "family": "SD1", "name": "small"}, components)


@pytest.fixture(scope="module")
def lines() -> Lines:
    return Lines(SOURCES)


@pytest.fixture(scope="module")
def ends(bundle: Bundle, lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    """Every row, done once."""
    made: dict[str, Refusal] = {}
    for case in TABLE:
        folder = tmp_path_factory.mktemp("row")
        raised: BaseException | None = None
        with lines:
            try:
                case.act(Desk(folder, bundle))
            except Exception as error:
                raised = error
        made[case.name] = Refusal(raised, folder)
    return made


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_a_refusal_is_of_its_class_and_says_its_sentence(case: Case, ends: dict[str, Refusal], bundle: Bundle) -> None:
    end = ends[case.name]
    assert type(end.raised) is case.error, end.raised
    folder = re.escape(str(bundle.folder if "fit the adapter to it" in case.sentence else end.folder))
    sentence = case.sentence.replace("{file}", rf"{folder}/f\.safetensors").replace("{peft}", f"{folder}/peft")
    assert re.fullmatch(sentence.replace("{folder}", folder), str(end.raised)), str(end.raised)


@pytest.mark.parametrize("case", [case for case in TABLE if case.misfits], ids=lambda case: case.name)
def test_without_strictness_the_rest_is_applied_and_every_tensor_counted(
    case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    good, bad = pair(OUT), dict(case.misfits or {})
    adapter = open_adapter(Desk(tmp_path, bundle).save(good | bad), bundle, strict=False)
    report = adapter.report
    assert sorted(report.applied) == sorted(good) and report.unused.keys() == bad.keys()
    assert str(report) == f"{len(good)} tensors applied, {len(bad)} unused"
    assert set(adapter.components["unet"].slots) == {f"{BLOCK}.attn1.to_out.0"} and len(adapter.components) == 1
    assert all(len(reason) > 20 for reason in report.unused.values())
    with pytest.raises(errors.AdapterError, match="modules cannot be used"):
        open_adapter(adapter.path or tmp_path, bundle)


def test_every_row_has_its_own_name() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)


def test_every_class_of_errors_of_adapters_is_in_the_table() -> None:
    classes = {found for found in vars(errors).values() if inspect.isclass(found)}
    wanted = {found for found in classes if issubclass(found, errors.AdapterError)} - {errors.AdapterError}
    elsewhere = {
        errors.PickleRefused,
        errors.RankTooLarge,
    }  # of `convert`, in tools/test_pickles.py; of Core ML's lanes
    assert wanted - {case.error for case in TABLE} == elsewhere


def _raises(path: Path) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, text) of every statement that refuses something."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        adds = isinstance(node, ast.Expr) and ast.unparse(node.value).startswith("misfits.add(")
        if isinstance(node, ast.Raise) or adds:
            yield node.lineno, node.end_lineno or node.lineno, ast.unparse(node)


@pytest.mark.usefixtures("ends")
def test_every_refusal_in_the_source_is_met_by_some_row(lines: Lines) -> None:
    unmet: defaultdict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for first, last, text in _raises(path):
            excused = any(part in text for part in UNMET.get(path.name, ()))
            if not excused and lines.met[str(path)].isdisjoint(range(first, last + 1)):
                unmet[path.name].append(f"{first}: {text}")
    assert not unmet
