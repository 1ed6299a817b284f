"""What an exported program may call: operators that compute tensors of tensors and touch nothing else.

A program that calls anything more is refused when it is read; an export finds out when its program is verified.
"""

from collections.abc import Mapping

_OVERLOADS: Mapping[str, str] = {
    "default": (
        "_softmax addmm arange argmax baddbmm bitwise_not bmm cat chunk clamp clone constant_pad_nd contiguous conv2d "
        "cos cumsum embedding erf exp expand full full_like gelu group_norm layer_norm linear matmul neg new_ones "
        "new_zeros ones ones_like pad permute repeat reshape rsqrt scaled_dot_product_attention sigmoid silu sin sqrt "
        "stack t tanh tril triu unsqueeze view zeros zeros_like"
    ),
    "Tensor": "add bitwise_and bitwise_or div eq ge gt index le lt mul slice split sub",
    "Scalar": "add div eq ge gt le lt masked_fill mul ne rsub sub",
    "int": "select softmax sym_size transpose unflatten",
    "dim": "mean squeeze",
    "dtype": "to",
    "device": "to",
    "start": "arange",
    "start_step": "arange",
    "self": "where",
    "ScalarSelf": "where",
    "vec": "upsample_nearest2d",
    "dim_IntList": "sum",
    "using_ints": "flatten",
    "Tensor_Scalar": "pow",
}

PREFIX = "torch.ops.aten."
ATEN: Mapping[str, tuple[str, str]] = {
    f"{PREFIX}{name}.{overload}": (name, overload)
    for overload, names in _OVERLOADS.items()
    for name in names.split(" ")
}
"""As a file spells them -> name and overload."""

INTEGERS: Mapping[str, str] = {f"_operator.{name}": name for name in ("add", "sub", "mul", "floordiv", "mod", "neg")}
"""Arithmetic of sizes: as a file spells it -> name in Python's module operator."""
