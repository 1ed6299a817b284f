"""A folder of adapters that grows, shrinks, and holds traps."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_edge.errors import AdapterFileDamaged, AdapterNotFound
from lora_edge.library import Library, short_hash

TENSORS = {"lora_unet_x.lora_down.weight": np.ones((1, 2), np.float32)}


@pytest.fixture
def put(save: Any) -> Any:
    """put(name, alias=None) writes an adapter file into the folder."""

    def write(name: str, alias: str | None = None) -> Path:
        path: Path = save(TENSORS, f"lora/{name}", {"ss_output_name": alias} if alias else None)
        return path

    return write


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "lora").mkdir()
    return Library(tmp_path / "lora")


def test_files_in_subfolders(library: Library, put: Any) -> None:
    ink, oil = put("ink.safetensors"), put("styles/old/oil paint v1.2.safetensors")
    put("ink.preview.png")
    (library.folder / "ink.json").write_text("{}")
    (library.folder / "._ink.safetensors").write_bytes(b"")
    assert library.names() == ("ink", "oil paint v1.2")
    assert library.find("ink") == ink
    assert library.find("oil paint v1.2") == library.find("styles/old/oil paint v1.2") == oil


def test_adapter_folders_go_by_their_own_name(library: Library, put: Any) -> None:
    put("sketch.v2/adapter_model.safetensors")
    put("lcm/pytorch_lora_weights.safetensors")
    other = put("lcm/other.safetensors")
    assert library.names() == ("lcm", "other", "sketch.v2")
    assert library.find("sketch.v2") == library.folder / "sketch.v2"
    assert library.find("lcm") == library.folder / "lcm"
    assert library.find("other") == other


def test_an_alias_is_another_name(library: Library, put: Any) -> None:
    ink = put("ink_000012.safetensors", alias="ink")
    assert library.find("ink") == ink
    assert library.names() == ("ink_000012",)


def test_a_file_name_goes_before_an_alias(library: Library, put: Any) -> None:
    put("a.safetensors", alias="ink")
    ink = put("ink.safetensors", alias="a")
    assert library.find("ink") == ink


def test_an_alias_of_two_files_is_refused(library: Library, put: Any) -> None:
    put("a.safetensors", alias="ink")
    put("b.safetensors", alias="ink")
    with pytest.raises(AdapterNotFound, match="'ink' may be any of a.safetensors or b.safetensors"):
        library.find("ink")


def test_a_name_of_two_files_is_refused_and_the_subfolder_tells_them_apart(library: Library, put: Any) -> None:
    put("old/ink.safetensors")
    new = put("new/ink.safetensors")
    with pytest.raises(AdapterNotFound, match="'ink' may be any of new/ink.safetensors or old/ink.safetensors"):
        library.find("ink")
    assert library.find("new/ink") == new


def test_a_name_that_is_nearly_right(library: Library, put: Any) -> None:
    put("watercolour.safetensors")
    with pytest.raises(AdapterNotFound, match=f"no adapter 'watercolor' in {library.folder}; is it 'watercolour'\\?"):
        library.find("watercolor")
    with pytest.raises(AdapterNotFound, match=f"no adapter 'xyz' in {library.folder}$"):
        library.find("xyz")


def test_names_are_case_sensitive(library: Library, put: Any) -> None:
    put("Ink.safetensors")
    with pytest.raises(AdapterNotFound, match="is it 'Ink'"):
        library.find("ink")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".", "", "~/secret", "ink.safetensors", "sub", "a\0b"]
)
def test_a_name_cannot_leave_the_folder(name: str, library: Library, put: Any, save: Any) -> None:
    save(TENSORS, "secret.safetensors")
    put("ink.safetensors")
    put("sub/a.safetensors")
    with pytest.raises(AdapterNotFound):
        library.find(name)


def test_links_that_leave_the_folder_are_passed_over(library: Library, put: Any, save: Any) -> None:
    secret = save(TENSORS, "outside/secret.safetensors")
    save(TENSORS, "outside/peft/adapter_model.safetensors")
    ink = put("ink.safetensors")
    (library.folder / "leak.safetensors").symlink_to(secret)
    (library.folder / "out").symlink_to(secret.parent)
    (library.folder / "peft").symlink_to(secret.parent / "peft")
    (library.folder / "up").symlink_to(library.folder.parent)
    (library.folder / "loop").symlink_to(library.folder)
    (library.folder / "broken.safetensors").symlink_to("nowhere")
    (library.folder / "linked.safetensors").symlink_to(ink)
    assert library.names() == ("ink", "linked")


def test_things_that_are_no_files_are_passed_over(library: Library, put: Any) -> None:
    put("ink.safetensors")
    os.mkfifo(library.folder / "pipe.safetensors")
    (library.folder / "folder.safetensors").mkdir()
    assert library.names() == ("ink",)


def test_changes_are_noticed(library: Library, put: Any) -> None:
    assert library.names() == ()
    ink = put("deep/er/ink.safetensors")
    assert library.find("ink") == ink
    ink.rename(ink.with_name("oil.safetensors"))
    assert library.find("oil") == ink.with_name("oil.safetensors")
    os.utime(library.folder / "deep" / "er", ns=(0, 0))
    (library.folder / "deep" / "er" / "oil.safetensors").unlink()
    with pytest.raises(AdapterNotFound):
        library.find("oil")


def test_a_damaged_file_spoils_nothing_but_itself(library: Library, put: Any) -> None:
    (library.folder / "bad.safetensors").write_bytes(b"<html>")
    ink = put("x.safetensors", alias="ink")
    assert library.find("ink") == ink
    assert library.find("bad").name == "bad.safetensors"


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="the adapter folder .*nowhere does not exist"):
        Library(tmp_path / "nowhere").find("ink")


def test_short_hash_is_of_the_data_only(library: Library, put: Any) -> None:
    data = np.ones((1, 2), np.float32).tobytes()
    wanted = hashlib.sha256(data).hexdigest()[:12]
    assert short_hash(put("a.safetensors")) == short_hash(put("b.safetensors", alias="b")) == wanted
    put("folder/adapter_model.safetensors")
    assert short_hash(library.folder / "folder") == wanted


def test_short_hash_follows_the_file(put: Any, save: Any) -> None:
    path = put("a.safetensors")
    before = short_hash(path)
    save({"x": np.zeros(3, np.float32)}, "lora/a.safetensors")
    assert short_hash(path) != before


def test_short_hash_of_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound):
        short_hash(tmp_path / "missing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"")
    with pytest.raises(AdapterFileDamaged):
        short_hash(tmp_path / "bad.safetensors")


def listed(library: Library) -> dict[str, str | None]:
    return {entry.name: entry.alias for entry in library.entries()}


def test_entries_have_names_that_find_them(library: Library, put: Any) -> None:
    put("ink_000012.safetensors", alias="ink")
    put("old/oil.safetensors")
    put("new/oil.safetensors")
    put("fog/adapter_model.safetensors")
    assert listed(library) == {"fog": None, "ink_000012": "ink", "new/oil": None, "old/oil": None}
    for entry in library.entries():
        assert library.find(entry.name) == entry.path
        assert entry.alias is None or library.find(entry.alias) == entry.path


def test_an_alias_that_somebody_shares_is_none(library: Library, put: Any) -> None:
    put("a.safetensors", alias="ink")
    put("b.safetensors", alias="ink")
    put("c.safetensors", alias="a")  # another file's name
    put("d.safetensors", alias="d")  # its own
    assert listed(library) == dict.fromkeys("abcd")


@pytest.mark.parametrize("alias", ["none", "None", "Addams", "a:b", "a>b", "<lora", "a\nb", "\x1b[2J", "x" * 256, ""])
def test_aliases_that_no_tag_can_say(alias: str, library: Library, put: Any) -> None:
    put("a.safetensors", alias=alias)
    assert listed(library) == {"a": None}
    with pytest.raises(AdapterNotFound):
        library.find(alias)


def test_a_pack_goes_by_its_file_and_leaves_the_original_its_alias(library: Library, put: Any, save: Any) -> None:
    ink = put("ink_12.safetensors", alias="ink")
    pack = save(TENSORS, "lora/ink_12.pack.safetensors", {"ss_output_name": "ink", "lora_edge_pack": "{}"})
    oil = save(TENSORS, "lora/oil.pack.safetensors", {"lora_edge_pack": "{}"})
    assert library.find("ink") == library.find("ink_12") == ink
    assert library.find("ink_12.pack") == pack
    assert library.find("oil") == library.find("oil.pack") == oil
    assert listed(library) == {"ink_12": "ink", "ink_12.pack": None, "oil.pack": "oil"}


def test_pickles_are_listed_and_never_found(library: Library, put: Any) -> None:
    put("ink.safetensors")
    (library.folder / "ink.pt").write_bytes(b"\x80\x02")
    (library.folder / "old").mkdir()
    (library.folder / "old" / "oil.ckpt").write_bytes(b"PK\x03\x04")
    assert library.names() == ("ink",)
    assert [entry.path.name for entry in library.entries()] == ["ink.safetensors", "ink.pt", "oil.ckpt"]
    assert library.find("ink").suffix == ".safetensors"
    sentence = f"'oil' is the pickle old/oil.ckpt in {library.folder}; run `lora-edge convert` on it"
    with pytest.raises(AdapterNotFound, match=sentence):
        library.find("oil")


def test_pickles_of_folders(library: Library, put: Any) -> None:
    put("fog/adapter_model.safetensors")
    (library.folder / "fog" / "optimizer.pt").write_bytes(b"\x80\x02")
    (library.folder / "mist").mkdir()
    (library.folder / "mist" / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert [entry.name for entry in library.entries()] == ["fog", "mist"]
    with pytest.raises(AdapterNotFound, match="'mist' is the pickle mist/adapter_model.bin"):
        library.find("mist")
