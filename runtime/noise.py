"""Normal numbers equal to torch's CPU generator, without torch.

A seed is a promise: the image made from seed 7 here is the image made from seed 7 by every program that draws its
first latents with `torch.randn(shape, generator=torch.Generator().manual_seed(7))`.

torch's CPU generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura, "Mersenne Twister", 1998), seeded with
the low 32 bits of the seed, followed by the transform of Box and Muller ("A Note on the Generation of Random Normal
Deviates", 1958) in two forms, which `aten/src/ATen/native/cpu/DistributionTemplates.h` defines:

- 16 numbers or more: 24-bit uniforms, transformed in blocks of 16, the first eight of a block with its last eight;
  a ragged end draws sixteen fresh uniforms for the last sixteen places.
- fewer than 16: 53-bit uniforms, two normals a pair, of which the second waits for the next call.
"""

from collections.abc import Sequence

import numpy as np

from lora_edge.arrays import FloatArray
from lora_edge.errors import RequestError

_BLOCK = 16
_TWO_PI = 2 * np.pi


class _Generator:
    """One Mersenne Twister in the state torch's generator has after the same draws."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.MT19937()
        # RandomState seeds by the rule of the 1998 paper, as torch does; MT19937 alone hashes its seed first.
        np.random.RandomState(self._twister).seed(seed & 0xFFFFFFFF)
        self._waiting: float | None = None

    def normal(self, shape: Sequence[int]) -> FloatArray:
        size = int(np.prod(shape, dtype=np.int64))
        flat = self._blocks(size) if size >= _BLOCK else self._pairs(size)
        return flat.reshape(tuple(shape))

    def _blocks(self, size: int) -> FloatArray:
        uniform = self._uniform24(size)
        whole = size - size % _BLOCK
        normal = np.empty(size, np.float32)
        normal[:whole] = _box_muller(uniform[:whole])
        if whole < size:
            normal[-_BLOCK:] = _box_muller(self._uniform24(_BLOCK))
        return normal

    def _pairs(self, size: int) -> FloatArray:
        return np.array([self._one() for _ in range(size)], np.float32)

    def _one(self) -> float:
        if self._waiting is not None:
            ready, self._waiting = self._waiting, None
            return ready
        high_low = self._twister.random_raw(4).reshape(2, 2)
        turn, reach = ((high_low[:, 0] << np.uint64(32) | high_low[:, 1]) % np.uint64(2**53)) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log1p(-reach)), _TWO_PI * turn
        self._waiting = float(radius * np.sin(angle))
        return float(radius * np.cos(angle))

    def _uniform24(self, size: int) -> FloatArray:
        return ((self._twister.random_raw(size) % 2**24) / 2.0**24).astype(np.float32)


def _box_muller(uniform: FloatArray) -> FloatArray:
    first, second = uniform.reshape(-1, 2, _BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(-2 * np.log(np.float64(1) - first))
    angle = np.float64(np.float32(_TWO_PI) * second)  # torch rounds the angle to float32; its sine and cosine follow
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1).astype(np.float32)


class Noise:
    """A stream of standard normal numbers, one seed for all rows of a batch or one seed per row.

    Args:
        seed: one number for a single stream, or one per image, so that each image of a batch equals the image its seed
            makes alone. -2**63 .. 2**64 - 1; as in torch, only the low 32 bits count.

    Raises:
        RequestError: a seed is out of range, or there is none.
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        self.seeds = tuple(seed) if isinstance(seed, Sequence) else (int(seed),)
        if not self.seeds:
            raise RequestError("there is no seed: give one number, or one for each image")
        for number in self.seeds:
            if not -(2**63) <= number < 2**64:
                raise RequestError(f"seed {number} is out of range: use a number from -2**63 to 2**64 - 1")
        self._generators = [_Generator(number) for number in self.seeds]

    def normal(self, shape: Sequence[int]) -> FloatArray:
        """The next numbers of the stream.

        Args:
            shape: [rows, ...]; with several seeds, as many rows as seeds.

        Returns:
            float32 of that shape, within 1e-6 of what torch draws.

        Raises:
            RequestError: the rows are not as many as the seeds.
        """
        if len(self._generators) == 1:
            return self._generators[0].normal(shape)
        if not shape or shape[0] != len(self._generators):
            raise RequestError(f"{len(self._generators)} seeds cannot fill the shape {tuple(shape)}: one seed a row")
        return np.concatenate([generator.normal((1, *shape[1:])) for generator in self._generators])
