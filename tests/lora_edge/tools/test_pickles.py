"""Hostile files: each is refused in a sentence, writes nothing, runs nothing and takes little memory.

They are in attacks.py; watch.py converts them under an audit hook, which a pickle cannot hide from: python itself
reports every import, every opened file and every process.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_edge.errors import AdapterError, PickleRefused
from lora_edge.tools.convert import convert

SCRIPT = Path(__file__).with_name("watch.py")
MEMORY = 80_000_000  # bytes; a pickle of 8 MB of text takes most

SENTENCES = {
    "asks for os.system": "asks for os.system, which is no plain tensor; nothing was run",
    "asks for torch.os.system": "asks for torch.os.system, which is no plain tensor; nothing was run",
    "asks for torch.storage._load_from_bytes": "asks for torch.storage._load_from_bytes, which is no plain tensor",
    "STACK_GLOBAL with dots": "asks for torch.os.system, which is no plain tensor",
    "a real pickle of os.system": "asks for posix.system, which is no plain tensor",
    "the same in the older form": "asks for posix.system, which is no plain tensor",
    "instead of the keys": "asks for posix.system, which is no plain tensor",
    "INST": "asks for os.system, which is no plain tensor; nothing was run",
    "EXT1": "uses the pickle instruction EXT1, which no tensor needs",
    "BUILD of an OrderedDict": "sets attributes of an OrderedDict other than _metadata",
    "a persistent number": "refers to something else than a storage of numbers",
    "a storage key that is a path": "lacks the storage ../../../etc/passwd",
    "a storage larger than its entry": "has 20 bytes in the storage 0 where 24 belong",
    "strides beyond the storage": "has a tensor that reaches to element 6 of a storage of 6",
    "an offset beyond the storage": "has a tensor that reaches to element 6 of a storage of 6",
    "a shape beyond memory": "gives a tensor a shape too large for any memory",
    "an expanded tensor": "would become 4294967320 bytes of tensors, more than 8 times its own size",
    "a million names of a storage": "bytes of tensors, more than 8 times its own size",
    "a billion laughs": "leads to more than 100000 values",
    "a billion laughs in text": "has more than 4194304 characters of names and metadata",
    "long names again and again": "has more than 4194304 characters of names and metadata",
    "a list in itself": "has containers inside one another, more than 32 deep, or one inside itself",
    "100,000 lists deep": "has containers inside one another, more than 32 deep",
    "too many instructions": "is a pickle of more than 500000 instructions",
    "compressed": "has the entry archive/data.pkl compressed or encrypted; torch stores entries as they are",
    "one entry twice": "has the entry archive/data/0 twice",
    "an entry in another": "has the entry archive/data/1 in the bytes of another",
    "a header outside the file": "has the entry archive/data/0 outside the file",
    "a torn file": "is truncated or no archive of torch's",
    "TorchScript": "is a TorchScript program and not a file of tensors",
    "one name twice": "has two values of the name a.b",
    "a picture with a false checksum": "is a damaged picture: the checksum of a text is wrong",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What watch.py prints."""
    folder = tmp_path_factory.mktemp("attacks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], check=False, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_each_is_refused_by_its_own_class_in_one_sentence(told: dict[str, Any]) -> None:
    attacks = told["attacks"]
    assert len(attacks) > 100
    assert {name: did["error"] for name, did in attacks.items()} == dict.fromkeys(attacks, "PickleRefused")
    for name, did in attacks.items():
        assert did["message"].isprintable() and 20 < len(did["message"]) < 500, name
        assert "in.pt " in did["message"], name


def test_none_runs_anything_or_writes_a_byte(told: dict[str, Any]) -> None:
    assert {name: did["events"] for name, did in told["attacks"].items() if did["events"]} == {}
    assert {name: did["left"] for name, did in told["attacks"].items() if did["left"] != ["in.pt"]} == {}


def test_none_takes_much_memory(told: dict[str, Any]) -> None:
    assert {name: did["peak"] for name, did in told["attacks"].items() if did["peak"] > MEMORY} == {}


def test_no_torch_is_needed(told: dict[str, Any]) -> None:
    assert told["torch"] is False


@pytest.mark.parametrize("name", SENTENCES)
def test_the_sentence_says_what_is_wrong(name: str, told: dict[str, Any]) -> None:
    assert SENTENCES[name] in told["attacks"][name]["message"]


def test_a_global_is_named_for_whom_it_calls(told: dict[str, Any]) -> None:
    asked = {name: did["message"] for name, did in told["attacks"].items() if name.startswith("asks for ")}
    assert len(asked) >= 30
    assert {name for name, message in asked.items() if name not in message} == set()


def test_the_hook_sees_what_runs(tmp_path: Path) -> None:
    """That nothing is reported above means something: the same hook reports a pickle that is really loaded."""
    script = """
import os, pickle, sys
from watch import Watch
class Call:
    def __reduce__(self): return os.system, ("touch canary",)
data = pickle.dumps(Call(), 2)
watch = Watch(); sys.addaudithook(watch); watch.on = True
pickle.loads(data)
watch.on = False
print(watch.seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(SCRIPT.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "os.system" in done.stdout and "pickle.find_class" in done.stdout and (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_or_read_as_torch_reads_them(zipped: bool, tmp_path: Path) -> None:
    source, target = tmp_path / "x.pt", tmp_path / "x.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).half())
    torch.save(model.state_dict(), source, _use_new_zipfile_serialization=zipped)
    whole = source.read_bytes()
    rng = random.Random(0)
    read = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        source.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            convert(source, target, overwrite=True)
        except AdapterError:
            continue
        made = load_file(target)
        try:
            wanted = torch.load(source, weights_only=True)
        except Exception:  # checksums, or a device of another name: torch is stricter there
            continue
        read += 1
        assert made.keys() == {str(name) for name in wanted}
        for name, tensor in wanted.items():
            same = made[str(name)]
            assert same.dtype == tensor.dtype and same.shape == tensor.shape
            assert same.numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert read > 10


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02cos\n\x1b[2J\x07system\n.")
    with pytest.raises(PickleRefused, match=r"asks for os\.\\x1b\[2J\\x07system"):
        convert(path, tmp_path / "x.safetensors")
