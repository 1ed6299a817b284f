"""Decoding in tiles, against diffusers' own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from lora_edge.errors import RequestError
from lora_edge.runtime.engine import Engine
from lora_edge.runtime.tiles import Tiling

FACTOR = 4  # pixels per latent of the tiny model
LEAST_DB = 60


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of pixels from -1 to 1."""
    return float(10 * np.log10(4 / np.mean((one.astype(np.float64) - other) ** 2)))


def latents(height: int, width: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(height).standard_normal((rows, 4, height, width)).astype(np.float32)


def run(engine: Engine, sample: np.ndarray) -> np.ndarray:
    return engine.run("vae_decoder", {"latent_sample": sample})["sample"]


@pytest.mark.parametrize(("side", "height", "width"), [(8, 20, 12), (8, 9, 24), (16, 16, 40), (12, 31, 13)])
def test_tiles_are_those_of_diffusers(tiny_model: Path, engine: Engine, side: int, height: int, width: int) -> None:
    vae: Any = AutoencoderKL.from_pretrained(tiny_model / "vae").eval()
    vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor = side, side * FACTOR, 0.25
    sample = latents(height, width, rows=2)
    with torch.no_grad():
        theirs = vae.tiled_decode(torch.from_numpy(sample)).sample.numpy()
        whole = vae.decode(torch.from_numpy(sample)).sample.numpy()
    tiling = Tiling.of(side)
    assert tiling is not None
    ours = tiling.decode(lambda part: run(engine, part), sample)
    assert ours.dtype == np.float32 and psnr(ours, theirs) > LEAST_DB
    assert psnr(ours, whole) < LEAST_DB, "the test would not see tiles that were never made"


def test_tiles_of_what_decodes_place_by_place_are_the_whole() -> None:
    """Where neighbours have no say, overlaps agree and nothing of the cutting may be left."""
    sample = latents(23, 40)
    tiling = Tiling.of(8)
    assert tiling is not None

    def decode(part: np.ndarray) -> np.ndarray:
        assert max(part.shape[2:]) <= 8
        return part[:, :3].repeat(2, axis=2).repeat(2, axis=3)

    np.testing.assert_allclose(tiling.decode(decode, sample), sample[:, :3].repeat(2, 2).repeat(2, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("wish", "height", "width", "most"),
    [("auto", 96, 96, 96), ("auto", 97, 96, 64), ("auto", 64, 144, 144), ("auto", 64, 145, 64), (8, 8, 8, 8)],
)
def test_only_what_is_large_is_cut(wish: Any, height: int, width: int, most: int) -> None:
    seen: list[int] = []
    tiling = Tiling.of(wish)
    assert tiling is not None

    def decode(part: np.ndarray) -> np.ndarray:
        seen.append(max(part.shape[2:]))
        return part[:, :3]

    tiling.decode(decode, latents(height, width))
    assert max(seen) == most


def test_images_are_cut_where_the_engine_is_told_so(tiny_bundle: Path) -> None:
    settings: dict[str, Any] = {"steps": 1, "seed": 1, "width": 96, "height": 64}

    def made(**options: Any) -> np.ndarray:
        [image] = Engine.open(tiny_bundle, threads=1, **options).generate("a cat", **settings)
        assert isinstance(image, Image.Image) and image.size == (96, 64)
        return np.asarray(image)

    whole = made(vae_tile="off")
    np.testing.assert_array_equal(made(), whole, "24 x 16 latents are not large")
    np.testing.assert_array_equal(made(vae_tile=24), whole, "nor larger than a tile")
    assert (made(vae_tile=8) != whole).any()


@pytest.mark.parametrize("wish", [0, 6, -4, "on", None, 2.5, True])
def test_other_tiles_are_refused(tiny_bundle: Path, wish: Any) -> None:
    with pytest.raises(RequestError, match="it is auto, off or a multiple of 4"):
        Engine.open(tiny_bundle, vae_tile=wish)
