"""What kinds say of tensors that are not those of the layer."""

import numpy as np

from lora_edge.adapterfile import read_adapter
from lora_edge.errors import AmbiguousKind
from lora_edge.kinds import Kind, claim
from lora_edge.kinds.lora import LORA

from .case import BASE, CONV, NORM, OUT, UNKNOWN, VALUE, Case, Q, misfit, of, opened, pair

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
LOHA = {f"hada_w{index}_{side}": shape for index in (1, 2) for side, shape in (("a", (8, 2)), ("b", (2, 8)))}
GLORA = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2), "b2.weight": (2, 8)}
OTHER = Kind("other", {"thing": ("thing",)}, frozenset({"thing"}), lambda update: ())

UNREAD = (
    ("lokr_t1", "LoKr with a Tucker core in w1"),
    ("oft_R.weight", "OFT of PEFT"),
    ("boft_R", "BOFT of PEFT"),
    ("hra_u", "HRA"),
    ("vera_lambda_b", "VeRA"),
    ("fourierft_spectrum", "FourierFT"),
    ("lora_embedding_A", "LoRA of an embedding"),
    ("modules_to_save.weight", "a whole layer"),
    ("base_layer.weight", "a whole layer"),
)


def _without_base(name: str, tensors: object, sentence: str) -> Case:
    return Case(
        name,
        lambda desk: read_adapter(desk.save(tensors)).fit(desk.bundle.tables),  # type: ignore[arg-type]
        BASE,
        rf"{{file}}: 1 of 1 modules cannot be used: '[^']+' {sentence}",
    )


CASES = (
    # LoRA
    misfit("no up", Q, {DOWN: (2, 8)}, r"has down but no up"),
    misfit("no down", Q, {UP: (8, 2), "alpha": ()}, r"has alpha and up but no down"),
    misfit("no rank", Q, {DOWN: (0, 8), UP: (8, 0)}, r"has a down of shape \[0, 8\], which has no rank"),
    misfit("down without axes", Q, {DOWN: (), UP: (8, 2)}, r"has a down of shape \[\], which has no rank"),
    misfit(
        "down of another width",
        Q,
        {DOWN: (2, 9), UP: (8, 2)},
        r"has down \[2, 9\] where the layer and its rank need \[2, 8\]",
    ),
    misfit(
        "up of another rank",
        Q,
        {DOWN: (2, 8), UP: (8, 3)},
        r"has up \[8, 3\] where the layer and its rank need \[8, 2\]",
    ),
    misfit(
        "mid of another rank",
        CONV,
        {DOWN: (2, 4, 1, 1), UP: (8, 2, 1, 1), MID: (2, 5, 3, 3)},
        r"has a mid of shape \[2, 5, 3, 3\] that does not follow its down \[2, 4, 1, 1\]",
    ),
    misfit("LoRA of a norm", NORM, {DOWN: (2, 8), UP: (8, 2)}, r"is a norm, which has no low-rank update"),
    misfit(
        "alpha of several numbers",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "alpha": (3,)},
        r"has an alpha of shape \[3\] where one number belongs",
    ),
    # LoHa
    misfit(
        "LoHa without a part", Q, {**LOHA, "hada_w2_b": (0, 8)}, r"has a hada_w2_b of shape \[0, 8\], which has no rank"
    ),
    misfit(
        "LoHa with a core of another rank",
        CONV,
        {**LOHA, "hada_t1": (2, 3, 3, 3)},
        r"has a hada_t1 of shape \[2, 3, 3, 3\] that does not follow its hada_w1_b",
    ),
    opened(
        "LoHa whose product is beyond float32",
        of(Q, {leaf: np.full((8, 8), 3e38, np.float32) for leaf in LOHA}),
        VALUE,
        rf"{{file}}: '{Q}' makes a product of its factors that is not finite; the file is broken",
    ),
    opened(
        "a norm's change beyond float32",
        of(NORM, {"diff": np.full(8, 3e38, np.float32), "scale": np.float32(10)}),
        VALUE,
        rf"{{file}}: '{NORM}' makes a norm's change that is not finite; the file is broken",
    ),
    opened(
        "a number that is none",
        pair() | {f"{Q}.alpha": np.float32("nan")},
        VALUE,
        rf"{{file}} holds numbers that are not finite in '{Q}\.alpha'; the file is broken",
    ),
    # LoKr
    misfit(
        "LoKr whole and in factors",
        Q,
        {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (4, 4)},
        r"has lokr_w1 both whole and in factors",
    ),
    misfit(
        "LoKr with a vector",
        Q,
        {"lokr_w1": (2,), "lokr_w2": (4, 4)},
        r"has a lokr_w1 of shape \[2\] that is no matrix",
    ),
    misfit(
        "LoKr that does not divide",
        Q,
        {"lokr_w1": (3, 2), "lokr_w2": (4, 4)},
        r"has a lokr_w1 of 3 x 2, which does not divide the layer's \[8, 8\]",
    ),
    misfit(
        "LoKr with a core of another kernel",
        CONV,
        {"lokr_w1": (2, 2), "lokr_t2": (2, 2, 5, 5), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 2)},
        r"has a lokr_t2 of shape \[2, 2, 5, 5\] where the layer has shape \[4, 2, 3, 3\]",
    ),
    # IA3
    misfit(
        "IA3 without a side",
        Q,
        {"on_input": ()},
        r"has on_input but no weight",
    ),
    misfit(
        "IA3 of another length", Q, {"weight": (9,), "on_input": ()}, r"has weight \[9\] where the layer has 8 channels"
    ),
    misfit("IA3 of PEFT", Q, {"ia3_l": (3, 3)}, r"has ia3_l \[3, 3\] where the layer has shape \[8, 8\]"),
    _without_base(
        "IA3 of PEFT without a base",
        of(OUT, {"ia3_l": (8, 1)}),
        "is of the kind ia3 of PEFT, which needs the biases of the base: open it with a bundle, or export the "
        "bundle again",
    ),
    # full, norms and biases
    misfit(
        "a difference of another shape",
        Q,
        {"diff": (8, 9)},
        r"has diff \[8, 9\] where the layer and its rank need \[8, 8\]",
    ),
    misfit(
        "a norm's change for a layer", Q, {"w_norm": (8,)}, r"has w_norm, which change norms, and the layer is none"
    ),
    misfit("a norm of other channels", NORM, {"w_norm": (9,)}, r"has w_norm \[9\] where the layer has 8 channels"),
    misfit("a bias of another length", Q, {"diff_b": (9,)}, r"has diff_b \[9\] where the layer has 8 channels"),
    misfit("a bias of up on a norm", NORM, {"diff": (8,), "lora_B.bias": (8,)}, r"has the bias of an `up` and no `up`"),
    misfit(
        "a dense bias on a norm",
        NORM,
        {"diff": (8,), "bias": (8, 8)},
        r"has bias \[8, 8\] where the layer and its rank need \[8\]",
    ),
    misfit(
        "a whole bias",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "bias": (8,)},
        r"has a bias of shape \[8\]: a whole bias of the layer, which lora-edge does not read",
    ),
    misfit(
        "a sparse bias of other lengths",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "bias_indices": (2, 3), "bias_values": (4,), "bias_size": (2,)},
        r"has bias_indices \[2, 3\] that do not follow its values \[4\]",
    ),
    misfit(
        "a sparse bias of too many numbers",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "bias_indices": (2, 65), "bias_values": (65,), "bias_size": (2,)},
        r"has 65 bias_values where the layer has 64 weights",
    ),
    misfit(
        "a sparse bias outside of the layer",
        Q,
        {
            DOWN: (2, 8),
            UP: (8, 2),
            "bias_indices": np.full((2, 1), 9),
            "bias_values": (1,),
            "bias_size": np.array([8, 8]),
        },
        r"has bias_indices outside of its bias_size \[8, 8\]",
    ),
    misfit(
        "a dense bias beside IA3",
        Q,
        {"weight": (8,), "on_input": (), "bias": (8, 8)},
        r"has a dense bias beside no low-rank update",
    ),
    # DoRA
    misfit(
        "magnitudes twice",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "dora_scale": (8, 1), "lora_magnitude_vector": (8,)},
        r"has both dora_scale and lora_magnitude_vector",
    ),
    misfit(
        "magnitudes of IA3",
        Q,
        {"weight": (8,), "on_input": (), "dora_scale": (8, 1)},
        r"has magnitudes beside no low-rank update",
    ),
    misfit(
        "magnitudes of another length",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "dora_scale": (9, 1)},
        r"has dora_scale \[9, 1\] where the layer has 8 channels",
    ),
    _without_base(
        "DoRA without a base",
        of(Q, {DOWN: (2, 8), UP: (8, 2), "dora_scale": (8, 1)}),
        "is of the kind dora, which needs the weights of the base: open it with a bundle, or export the bundle again",
    ),
    # GLoRA
    misfit("GLoRA with a vector", Q, {**GLORA, "a1.weight": (8,)}, r"has factors that are no matrices"),
    misfit(
        "GLoRA of other ranks",
        Q,
        {**GLORA, "b2.weight": (3, 8)},
        r"has a1 \[8, 2\], a2 \[2, 8\], b1 \[8, 2\], b2 \[3, 8\], which fit the layer's \[8, 8\] in no order",
    ),
    # rotations
    misfit(
        "OFT of other blocks",
        Q,
        {"oft_blocks": (3, 4, 4)},
        r"has oft_blocks \[3, 4, 4\] where the layer has 8 output channels",
    ),
    misfit(
        "OFT in two spellings",
        Q,
        {"oft_blocks": (2, 4, 4), "oft_diag": (2, 4, 4)},
        r"has oft_blocks and oft_diag and needs one of oft_blocks and oft_diag",
    ),
    misfit(
        "BOFT of too many stages",
        Q,
        {"oft_blocks": (5, 2, 4, 4)},
        r"has oft_blocks \[5, 2, 4, 4\] where the layer has 8 output channels",
    ),
    # claims
    misfit(
        "leaves of nobody",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "extra": (1,)},
        r"has extra, which no known kind uses",
        UNKNOWN,
    ),
    misfit(
        "leaves of two kinds",
        Q,
        {DOWN: (2, 8), UP: (8, 2), "diff": (8, 8)},
        r"has the leaves of lora and of full",
        AmbiguousKind,
    ),
    Case(
        "a kind of somebody else's",
        lambda desk: claim({"down", "thing"}, kinds=(LORA, OTHER)),
        AmbiguousKind,
        "has the leaves of lora and of other",
    ),
    *(
        misfit(
            f"unread: {leaf}",
            Q,
            {leaf: (2, 2)},
            rf"has {leaf}, which no known kind uses \({name}, which lora-edge does not read\)",
            UNKNOWN,
        )
        for leaf, name in UNREAD
    ),
)
