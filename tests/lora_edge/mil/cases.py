"""One use, or several, of every operation that is evaluated, and the same in torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Array = np.ndarray[Any, Any]
NOISE = np.random.default_rng(0)


def noise(*shape: int) -> Array:
    return NOISE.standard_normal(shape).astype(np.float32)


def numbers(*values: int) -> Array:
    return np.array(values, np.int32)


X, Y = noise(2, 3, 4, 6), noise(3, 1, 6)
POSITIVE = np.abs(noise(2, 5)) + np.float32(0.1)
TOKENS = np.array([[3, 1, 4], [1, 5, 0]], np.int32)
WIDE = (np.linspace(-6, 6, 97)).astype(np.float32)
PICTURE, KERNEL, BIAS = noise(2, 4, 9, 8), noise(6, 4, 3, 3), noise(6)
QUERY, KEYS, VALUES, MASK = noise(2, 3, 5, 8), noise(2, 3, 7, 8), noise(2, 3, 7, 4), noise(5, 7)


@dataclass(frozen=True)
class Case:
    """One use of an operation.

    Attributes:
        build: the operation, of coremltools' builder and variables.
        inputs: operands.
        other: the same in torch; None where coremltools' own inference is what it is compared with.
        system: the first that has it.
    """

    build: Callable[..., Any]
    inputs: tuple[Array, ...]
    other: Callable[..., torch.Tensor] | None = None
    system: str = "iOS17"


def whole(mb: Any, value: Any) -> Any:
    """Outputs of a package are numbers."""
    return mb.cast(x=value, dtype="int32")


def like(x: torch.Tensor, array: Array) -> torch.Tensor:
    """A constant of an operation, in the precision of what it is applied to."""
    return torch.from_numpy(array.copy()).to(x.dtype)


CASES: dict[str, Case] = {
    **{
        name: Case(lambda mb, x, y, name=name: getattr(mb, name)(x=x, y=y), (X, Y), getattr(torch, name))
        for name in ("add", "sub", "mul", "maximum", "minimum")
    },
    "real_div": Case(lambda mb, x, y: mb.real_div(x=x, y=y), (X, Y), torch.div),
    "floor_div": Case(lambda mb, x, y: mb.floor_div(x=x, y=y), (X, Y), torch.floor_divide),
    "mod": Case(lambda mb, x, y: mb.mod(x=x, y=y), (X, Y), torch.remainder),
    "pow": Case(lambda mb, x: mb.pow(x=x, y=np.float32(3)), (X,), lambda x: x**3),
    **{
        name: Case(lambda mb, x, y, name=name: whole(mb, getattr(mb, name)(x=x, y=y)), (TOKENS, TOKENS[:1]), check)
        for name, check in {"equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge,
                            "less": torch.lt, "less_equal": torch.le}.items()
    },
    **{
        name: Case(
            lambda mb, x, name=name: whole(mb, getattr(mb, name)(x=mb.greater(x=x, y=1), y=mb.less(x=x, y=4))),
            (TOKENS,),
            lambda x, check=check: check(x > 1, x < 4),
        )
        for name, check in {"logical_and": torch.logical_and, "logical_or": torch.logical_or,
                            "logical_xor": torch.logical_xor}.items()
    },
    "logical_not": Case(lambda mb, x: whole(mb, mb.logical_not(x=mb.greater(x=x, y=1))), (TOKENS,), lambda x: x <= 1),
    **{
        name: Case(lambda mb, x, name=name: getattr(mb, name)(x=x), (WIDE,), getattr(torch, name))
        for name in ("abs", "ceil", "cos", "exp", "exp2", "floor", "round", "sign", "sin", "square", "tanh", "erf",
                     "sigmoid", "relu")
    },
    "tan": Case(lambda mb, x: mb.tan(x=x), (X[0],), torch.tan),
    "identity": Case(lambda mb, x: mb.identity(x=x), (X,), lambda x: x),
    "sqrt": Case(lambda mb, x: mb.sqrt(x=x), (POSITIVE,), torch.sqrt),
    "rsqrt": Case(lambda mb, x: mb.rsqrt(x=x, epsilon=np.float32(0.01)), (POSITIVE,), lambda x: torch.rsqrt(x + 0.01)),
    "inverse": Case(lambda mb, x: mb.inverse(x=x), (POSITIVE,), lambda x: 1 / (x + 1e-4)),
    "log": Case(lambda mb, x: mb.log(x=x), (POSITIVE,), torch.log),
    "clip": Case(lambda mb, x: mb.clip(x=x, alpha=-0.5, beta=0.25), (X,), lambda x: x.clip(-0.5, 0.25)),
    "cast": Case(lambda mb, x: mb.cast(x=x, dtype="int32"), (WIDE,), lambda x: x.int()),
    "select": Case(
        lambda mb, x, y: mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=y), (X, Y),
        lambda x, y: torch.where(x > 0, x, y),
    ),
    "silu": Case(lambda mb, x: mb.silu(x=x), (WIDE,), F.silu),
    "softplus": Case(lambda mb, x: mb.softplus(x=x), (WIDE,), F.softplus),
    "leaky_relu": Case(lambda mb, x: mb.leaky_relu(x=x, alpha=0.3), (WIDE,), lambda x: F.leaky_relu(x, 0.3)),
    "gelu": Case(lambda mb, x: mb.gelu(x=x, mode="EXACT"), (WIDE,), F.gelu),
    "gelu tanh": Case(
        lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), (WIDE,), lambda x: F.gelu(x, approximate="tanh")
    ),
    "gelu quick": Case(
        lambda mb, x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), (WIDE,), lambda x: x * torch.sigmoid(1.702 * x)
    ),
    "softmax": Case(lambda mb, x: mb.softmax(x=x, axis=1), (X,), lambda x: x.softmax(1)),
    "linear": Case(lambda mb, x: mb.linear(x=x, weight=Y[:, 0], bias=BIAS[:3]), (X,),
                   lambda x: F.linear(x, like(x, Y[:, 0]), like(x, BIAS[:3]))),
    "matmul": Case(lambda mb, x, y: mb.matmul(x=x, y=y), (QUERY, noise(8, 3)), torch.matmul),
    "matmul turned": Case(lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True), (QUERY, KEYS),
                          lambda x, y: x @ y.mT),
    "matmul turned twice": Case(
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True), (noise(8, 5), noise(3, 7, 8)),
        lambda x, y: x.mT @ y.mT,
    ),
    "einsum": Case(lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
                   (noise(2, 8, 3, 5), noise(2, 5, 3, 7)), lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y)),
    "scaled_dot_product_attention": Case(
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v), (QUERY, KEYS, VALUES),
        F.scaled_dot_product_attention, "iOS18",
    ),
    "attention with a mask": Case(
        lambda mb, q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        (QUERY, KEYS, VALUES, MASK), F.scaled_dot_product_attention, "iOS18",
    ),
    "attention with a mask of flags": Case(
        lambda mb, q, k, v, m: mb.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mb.greater(x=m, y=np.float32(-0.5))
        ),
        (QUERY, KEYS, VALUES, MASK), lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m > -0.5), "iOS18",
    ),
    "conv": Case(lambda mb, x: mb.conv(x=x, weight=KERNEL, bias=BIAS, pad_type="custom", pad=[1, 1, 1, 1]), (PICTURE,),
                 lambda x: F.conv2d(x, like(x, KERNEL), like(x, BIAS), padding=1)),
    "conv with strides": Case(
        lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="custom", pad=[0, 1, 0, 1], strides=[2, 2]), (PICTURE,),
        lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), like(x, KERNEL), stride=2),
    ),
    "conv with a weight that is an input": Case(
        lambda mb, x, w: mb.conv(x=x, weight=w, pad_type="valid"), (PICTURE, noise(5, 4, 1, 1)), F.conv2d
    ),
    "conv with dilations": Case(lambda mb, x: mb.conv(x=x, weight=KERNEL, dilations=[2, 1], pad_type="valid"),
                                (PICTURE,), lambda x: F.conv2d(x, like(x, KERNEL), dilation=(2, 1))),
    "conv in groups": Case(lambda mb, x: mb.conv(x=x, weight=KERNEL[:, :2], groups=2, pad_type="valid"), (PICTURE,),
                           lambda x: F.conv2d(x, like(x, KERNEL[:, :2]), groups=2)),
    "conv same": Case(lambda mb, x: mb.conv(x=x, weight=KERNEL, pad_type="same"), (PICTURE,),
                      lambda x: F.conv2d(x, like(x, KERNEL), padding="same")),
    "conv same_lower": Case(
        lambda mb, x: mb.conv(x=x, weight=KERNEL[:, :, :2, :2], pad_type="same_lower"), (PICTURE,),
        lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0)), like(x, KERNEL[:, :, :2, :2])),
    ),
    "layer_norm": Case(
        lambda mb, x: mb.layer_norm(x=x, axes=[-1], gamma=BIAS, beta=BIAS[::-1].copy(), epsilon=1e-3), (X,),
        lambda x: F.layer_norm(x, (6,), like(x, BIAS), like(x, BIAS[::-1]), 1e-3),
    ),
    "instance_norm": Case(lambda mb, x: mb.instance_norm(x=x, gamma=BIAS[:3], beta=BIAS[3:]), (X,),
                          lambda x: F.instance_norm(x, None, None, like(x, BIAS[:3]),
                                                    like(x, BIAS[3:]))),
    "batch_norm": Case(
        lambda mb, x: mb.batch_norm(x=x, mean=BIAS[:3], variance=POSITIVE[0, :3], gamma=BIAS[3:], beta=BIAS[:3]), (X,),
        lambda x: F.batch_norm(x, *(like(x, v) for v in (BIAS[:3], POSITIVE[0, :3], BIAS[3:], BIAS[:3]))),
    ),
    **{
        f"reduce_{name}": Case(
            lambda mb, x, name=name: getattr(mb, f"reduce_{name}")(x=x, axes=[1, -1], keep_dims=True), (X,), check
        )
        for name, check in {
            "mean": lambda x: x.mean((1, 3), keepdim=True), "sum": lambda x: x.sum((1, 3), keepdim=True),
            "max": lambda x: x.amax((1, 3), keepdim=True), "min": lambda x: x.amin((1, 3), keepdim=True),
            "prod": lambda x: x.prod(1, True).prod(3, True), "l2_norm": lambda x: x.norm(dim=(1, 3), keepdim=True),
            "sum_square": lambda x: x.square().sum((1, 3), keepdim=True),
        }.items()
    },
    "reduce_mean of everything": Case(lambda mb, x: mb.reduce_mean(x=x), (X,), torch.mean),
    "reduce_argmax": Case(lambda mb, x: mb.reduce_argmax(x=x, axis=1), (X,), lambda x: x.argmax(1)),
    "reduce_argmin": Case(lambda mb, x: mb.reduce_argmin(x=x, axis=-1, keep_dims=True), (X,),
                          lambda x: x.argmin(-1, True)),
    "cumsum": Case(lambda mb, x: mb.cumsum(x=x, axis=1), (TOKENS,), lambda x: x.cumsum(1)),
    "cumsum backwards": Case(lambda mb, x: mb.cumsum(x=x, axis=2, exclusive=True, reverse=True), (X,),
                             lambda x: x.flip(2).cumsum(2).flip(2) - x),
    "reshape": Case(lambda mb, x: mb.reshape(x=x, shape=[2, -1, 6]), (X,), lambda x: x.reshape(2, -1, 6)),
    "transpose": Case(lambda mb, x: mb.transpose(x=x, perm=[0, -1, 1, 2]), (X,), lambda x: x.permute(0, 3, 1, 2)),
    "expand_dims": Case(lambda mb, x: mb.expand_dims(x=x, axes=[0, -1]), (POSITIVE,), lambda x: x[None, ..., None]),
    "squeeze": Case(lambda mb, x: mb.squeeze(x=x, axes=[-2]), (Y,), lambda x: x.squeeze(1)),
    "concat": Case(lambda mb, x, y: mb.concat(values=(x, y, x), axis=-2), (X, X[:, :, :1].copy()),
                   lambda x, y: torch.cat((x, y, x), -2)),
    "concat interleaved": Case(lambda mb, x, y: mb.concat(values=(x, y), axis=1, interleave=True), (X, X * 2),
                               lambda x, y: torch.stack((x, y), 2).flatten(1, 2)),
    "stack": Case(lambda mb, x: mb.stack(values=(x, x), axis=1), (X,), lambda x: torch.stack((x, x), 1)),
    "split": Case(lambda mb, x: mb.split(x=x, split_sizes=[1, 2, 3], axis=-1)[1], (X,), lambda x: x[..., 1:3]),
    "split evenly": Case(lambda mb, x: mb.split(x=x, num_splits=3, axis=3)[2], (X,), lambda x: x[..., 4:]),
    "slice_by_index": Case(
        lambda mb, x: mb.slice_by_index(
            x=x, begin=[1, 0, -1, 5], end=[2, -1, 0, 0], stride=[1, 1, -1, -2], begin_mask=[False] * 4,
            end_mask=[False, False, True, False], squeeze_mask=[True, False, False, False],
        ),
        (X,), lambda x: x.flip(2, 3)[1, :-1, :, 0:5:2],
    ),
    "slice_by_size": Case(lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 2, 3], size=[-1, 2, 1, 2]), (X,),
                          lambda x: x[:, 1:3, 2:3, 3:5]),
    "pad": Case(lambda mb, x: mb.pad(x=x, pad=[0, 1, 2, 0], constant_val=1.5), (X,),
                lambda x: F.pad(x, (2, 0, 0, 1), value=1.5)),
    "pad by reflection": Case(lambda mb, x: mb.pad(x=x, pad=[1, 1, 2, 0], mode="reflect"), (X,),
                              lambda x: F.pad(x, (2, 0, 1, 1), "reflect")),
    "pad by the edge": Case(lambda mb, x: mb.pad(x=x, pad=[1, 1, 2, 0], mode="replicate"), (X,),
                            lambda x: F.pad(x, (2, 0, 1, 1), "replicate")),
    "tile": Case(lambda mb, x: mb.tile(x=x, reps=[2, 1, 3]), (Y,), lambda x: x.tile(2, 1, 3)),
    "fill": Case(lambda mb, x: mb.add(x=x, y=mb.fill(shape=[2, 5], value=2.5)), (POSITIVE,), lambda x: x + 2.5),
    "fill_like": Case(lambda mb, x: mb.fill_like(ref_tensor=x, value=2.5), (POSITIVE,), lambda x: x * 0 + 2.5),
    "range_1d": Case(lambda mb, x: mb.add(x=x, y=mb.range_1d(start=1, end=9, step=3)), (TOKENS,),
                     lambda x: x + torch.arange(1, 9, 3)),
    "shape": Case(lambda mb, x: mb.shape(x=x), (X,), lambda x: torch.tensor(x.shape)),
    "reverse": Case(lambda mb, x: mb.reverse(x=x, axes=[1, -1]), (X,), lambda x: x.flip(1, 3)),
    "band_part": Case(lambda mb, x: mb.band_part(x=x, lower=1, upper=-1), (X,), lambda x: x.triu(-1)),
    "upsample_nearest_neighbor": Case(
        lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2.0, scale_factor_width=3.0), (X,),
        lambda x: F.interpolate(x, scale_factor=(2, 3)),
    ),
    "resize_nearest_neighbor": Case(
        lambda mb, x: mb.resize_nearest_neighbor(x=x, target_size_height=6, target_size_width=4), (X,),
        lambda x: F.interpolate(x, size=(6, 4)),
    ),
    "gather": Case(lambda mb, x, i: mb.gather(x=x, indices=i, axis=-1), (X, TOKENS), lambda x, i: x[..., i]),
    "gather by row": Case(lambda mb, x, i: mb.gather(x=x, indices=i, axis=3, batch_dims=1), (X, TOKENS),
                          lambda x, i: torch.stack([row[..., at] for row, at in zip(x, i, strict=True)])),
    "gather_along_axis": Case(lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1), (noise(2, 6), TOKENS),
                              lambda x, i: x.take_along_dim(i.long(), 1)),
    "gather_nd": Case(lambda mb, x, i: mb.gather_nd(x=x, indices=i), (X, np.array([[1, 2], [0, 0]], np.int32)),
                      lambda x, i: x[i[:, 0], i[:, 1]]),
    "one_hot": Case(lambda mb, i: mb.one_hot(indices=i, one_hot_vector_size=6, axis=1), (TOKENS,),
                    lambda i: F.one_hot(i.long(), 6).mT),
    "constexpr_lut_to_dense": Case(
        lambda mb, x: mb.add(x=x, y=mb.constexpr_lut_to_dense(
            indices=np.array([0b11100100, 0b00011011, 0b00000010], np.uint8), lut=np.float32([1, 2, 4, 8]),
            shape=np.array([3, 3], np.uint32),
        )),
        (np.zeros((3, 3), np.float32),),
        lambda x: x + torch.tensor([[1, 2, 4], [8, 8, 4], [2, 1, 4]]),
    ),
}  # fmt: skip
