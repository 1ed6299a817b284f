"""Images equal those of diffusers, their text is what AUTOMATIC1111 writes, and files are whole or absent."""

import os

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from lora_edge.errors import GraphFailed, RequestError
from lora_edge.runtime.image import label, parameters_of, save_png, to_images
from lora_edge.runtime.infotext import Infotext
from lora_edge.runtime.sheet import contact_sheet

PARAMETERS = {
    "prompt": "a red apple <lora:ink:0.8>",
    "negative_prompt": "blurry",
    "steps": 20,
    "sampler": "Euler",
    "guidance": 4.0,
    "seed": 7,
    "width": 64,
    "height": 64,
    "model": "emoji",
    "lora_hashes": {"ink": "0123456789ab", "neon": "ba9876543210"},
}
TEXT = """a red apple <lora:ink:0.8>
Negative prompt: blurry
Steps: 20, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 64x64, Model: emoji, """
TEXT += 'Lora hashes: "ink: 0123456789ab, neon: ba9876543210"'


@pytest.fixture
def image():
    return to_images(np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 24)).astype(np.float32))[0]


def test_pixels_are_those_of_diffusers():
    pixels = np.random.default_rng(0).normal(0, 0.8, (3, 3, 40, 56)).astype(np.float32)
    halves = (np.arange(3 * 256) % 256 + 0.5) / 255 * 2 - 1  # between two values
    pixels[0, :, 0, :] = 5 * np.sign(pixels[0, :, 0, :])
    pixels[1].reshape(-1)[: halves.size] = halves
    expected = VaeImageProcessor().postprocess(torch.from_numpy(pixels), output_type="pil")
    images = to_images(pixels)
    assert [image.size for image in images] == [(56, 40)] * 3 and {image.mode for image in images} == {"RGB"}
    for ours, theirs in zip(images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((3, 8, 8), np.float32), "gave the shape"),
        (np.zeros((1, 4, 8, 8), np.float32), "gave the shape"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_what_is_no_image(pixels, says):
    with pytest.raises(GraphFailed, match=says):
        to_images(pixels)


def test_text_is_that_of_a1111(image):
    assert label(image, PARAMETERS).info["parameters"] == TEXT
    without = PARAMETERS | {"negative_prompt": "", "lora_hashes": {}}
    assert str(Infotext.of(**without)).splitlines()[1:] == [
        "Steps: 20, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 64x64, Model: emoji"
    ]


@pytest.mark.parametrize("prompt", ["cat", "two\nlines, with: marks", "猫 ❤️", "", '"quoted"', "Steps: 3"])
@pytest.mark.parametrize("negative", ["", "dog", "one\ntwo"])
@pytest.mark.parametrize("model", ["emoji", "a, b: c", 'say "hi", twice', "back\\slash: x", "line\nbreak"])
def test_text_is_read_back(prompt, negative, model):
    written = Infotext.of(**PARAMETERS | {"prompt": prompt, "negative_prompt": negative, "model": model})
    read = Infotext.read(str(written))
    assert (read.prompt, read.negative_prompt) == (prompt, negative)
    assert dict(read.settings) == dict(written.settings) and read.settings["Model"] == model
    assert read.lora_hashes == PARAMETERS["lora_hashes"]


def test_text_of_others():
    """As the web UI 1.10 writes it, with settings that lora-edge does not have."""
    read = Infotext.read(
        "masterpiece, <lora:ink:1>\nsecond line\nNegative prompt: bad\nworse\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5, Hires upscale: 2, TI hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert read.prompt == "masterpiece, <lora:ink:1>\nsecond line" and read.negative_prompt == "bad\nworse"
    assert read.settings["Schedule type"] == "Karras" and read.settings["TI hashes"] == "a: 1, b: 2"
    assert read.settings["Version"] == "v1.10.1" and len(read.settings) == 11
    assert Infotext.read("only a prompt") == Infotext("only a prompt")
    assert Infotext.read("") == Infotext("")


@pytest.mark.parametrize("prompt", ["an apple", "ein Äpfelchen", "りんご ❤️ \n second line"])
def test_png_carries_the_text(image, tmp_path, prompt):
    path = tmp_path / "apple.png"
    save_png(label(image, PARAMETERS | {"prompt": prompt}), path)
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.info["parameters"] == TEXT.replace(PARAMETERS["prompt"], prompt)
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))
    assert parameters_of(path).prompt == prompt
    assert [entry.name for entry in tmp_path.iterdir()] == ["apple.png"]


def test_png_without_text(image, tmp_path):
    save_png(image, tmp_path / "plain.png")
    assert parameters_of(tmp_path / "plain.png") is None


def test_nothing_is_half_written(image, tmp_path, monkeypatch):
    path = tmp_path / "apple.png"
    save_png(image, path)
    before = path.read_bytes()

    def full(self, file, *rest, **more):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RequestError, match="cannot write .*No space left"):
        save_png(image, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_no_such_folder(image, tmp_path):
    with pytest.raises(RequestError, match="cannot write"):
        save_png(image, tmp_path / "no" / "apple.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(RequestError, match=r"cannot read .*text\.png"):
        parameters_of(tmp_path / "text.png")


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_file_mode_is_the_usual_one(image, tmp_path):
    save_png(image, tmp_path / "apple.png")
    (tmp_path / "other").touch()
    assert (tmp_path / "apple.png").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_contact_sheet():
    colours = [["red", "green", "blue"], ["black", "gray", "cyan"]]
    rows = [
        (f"row {number} with a caption of many words", [Image.new("RGB", (64, 64), colour) for colour in row])
        for number, row in enumerate(colours)
    ]
    sheet = contact_sheet(["no adapter", "ink 0.5", "averyveryveryverylongnamewithoutspaces"], rows)
    pixels = np.asarray(sheet).reshape(-1, 3)
    for colour in sum(colours, []):
        expected = np.asarray(Image.new("RGB", (1, 1), colour)).reshape(3)
        assert (pixels == expected).all(1).sum() >= 192 * 192
    assert sheet.mode == "RGB" and tuple(pixels[0]) == (255, 255, 255)


def test_contact_sheet_refuses_gaps():
    with pytest.raises(RequestError, match="row 'a' has 1 images for 2 columns"):
        contact_sheet(["x", "y"], [("a", [Image.new("RGB", (8, 8))])])
    with pytest.raises(RequestError, match="at least one"):
        contact_sheet([], [])
