"""LoRA and its relatives, whose change is a product of factors (formats: LyCORIS, functional/; kohya, networks/)."""

import numpy as np

from .example import Array, Example, Make, Tensors, additive, an_alpha, is_spatial, scale, scaled, tucker


def _ones(weight: Array) -> tuple[int, ...]:
    return (1,) * (weight.ndim - 2)


def lora_delta(weight: Array, t: Tensors) -> Array:
    down, up = t["lora_down.weight"], t["lora_up.weight"]
    rank = len(down)
    if "lora_mid.weight" in t:
        product = tucker(up.reshape(-1, rank), t["lora_mid.weight"], down.reshape(rank, -1))
    else:
        product = up.reshape(-1, rank) @ down.reshape(rank, -1)
    return scale(t, rank) * product.reshape(weight.shape)


def make_lora(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    rank = int(rng.integers(1, 6))
    tensors = {
        "lora_down.weight": rng.standard_normal((rank, *weight.shape[1:])),
        "lora_up.weight": rng.standard_normal((len(weight), rank, *_ones(weight))),
        "alpha": an_alpha(rng, rank),
    }
    return scaled(weight, tensors, "lora_up.weight", lora_delta)


def _make_other_axes(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    """A Linear with 1x1 kernels and a 1x1 Conv without: trainers whose own model has the other layer there."""
    tensors = make_lora(weight, rng)
    if weight.ndim == 2:
        return {leaf: t[..., None, None] if t.ndim == 2 else t for leaf, t in tensors.items()}
    if weight.shape[2:] == (1, 1):
        return {leaf: t[:, :, 0, 0] if t.ndim == 4 else t for leaf, t in tensors.items()}
    return tensors


def _make_tucker(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    if not is_spatial(weight):
        return make_lora(weight, rng)
    tensors = {
        "lora_down.weight": rng.standard_normal((3, weight.shape[1], 1, 1)),
        "lora_mid.weight": rng.standard_normal((3, 3, *weight.shape[2:])),
        "lora_up.weight": rng.standard_normal((len(weight), 3, 1, 1)),
        "alpha": an_alpha(rng, 3),
    }
    return scaled(weight, tensors, "lora_up.weight", lora_delta)


def _added_delta(weight: Array, t: Tensors) -> Array:
    """A dense tensor beside the product, scaled with it (AUTOMATIC1111, network.py, finalize_updown)."""
    dense = t.get("bias", np.zeros(weight.shape))
    if "bias_indices" in t:
        dense = np.zeros(tuple(t["bias_size"].astype(int)))
        np.add.at(dense, tuple(t["bias_indices"]), t["bias_values"])
    return lora_delta(weight, t) + scale(t, len(t["lora_down.weight"])) * dense


def _make_dense(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    tensors = make_lora(weight, rng)
    share = weight.std() / scale(tensors, len(tensors["lora_down.weight"]))
    return {**tensors, "bias": rng.normal(0, 0.2 * share, weight.shape)}


def _make_sparse(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    tensors = make_lora(weight, rng)
    count = weight.size // 5
    places = np.unravel_index(rng.choice(weight.size, count), weight.shape)  # a place may come twice
    return {
        **tensors,
        "bias_indices": np.stack(places),
        "bias_values": rng.normal(0, weight.std() / scale(tensors, len(tensors["lora_down.weight"])), count),
        "bias_size": np.array(weight.shape),
    }


def loha_delta(weight: Array, t: Tensors) -> Array:
    def half(index: int) -> Array:
        a, b = t[f"hada_w{index}_a"], t[f"hada_w{index}_b"]
        if f"hada_t{index}" in t:
            return tucker(a.T, t[f"hada_t{index}"], b)
        return (a @ b).reshape(weight.shape)

    return scale(t, len(t["hada_w1_b"])) * half(1) * half(2)


def make_loha(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    rank, out, patch = int(rng.integers(1, 4)), len(weight), weight[0].size
    tensors = {
        "hada_w1_a": rng.standard_normal((out, rank)),
        "hada_w1_b": rng.standard_normal((rank, patch)),
        "hada_w2_a": rng.standard_normal((out, rank)),
        "hada_w2_b": rng.standard_normal((rank, patch)),
        "alpha": an_alpha(rng, rank),
    }
    return scaled(weight, tensors, "hada_w1_a", loha_delta)


def _make_loha_tucker(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
    if not is_spatial(weight):
        return make_loha(weight, rng)
    out, channels, *kernel = weight.shape
    tensors = {"alpha": an_alpha(rng, 2)}
    for index in (1, 2):
        tensors[f"hada_t{index}"] = rng.standard_normal((2, 2, *kernel))
        tensors[f"hada_w{index}_a"] = rng.standard_normal((2, out))
        tensors[f"hada_w{index}_b"] = rng.standard_normal((2, channels))
    return scaled(weight, tensors, "hada_w1_a", loha_delta)


def lokr_delta(weight: Array, t: Tensors) -> Array:
    whole = "lokr_w1" in t and "lokr_w2" in t
    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    b, d = len(weight) // len(w1), weight.shape[1] // w1.shape[1]
    if "lokr_w2" in t:
        w2 = t["lokr_w2"]
    elif "lokr_t2" in t:
        w2 = tucker(t["lokr_w2_a"].T, t["lokr_t2"], t["lokr_w2_b"])
    else:
        w2 = t["lokr_w2_a"] @ t["lokr_w2_b"]
    rank = len(t["lokr_w2_b"]) if "lokr_w2_b" in t else len(t["lokr_w1_b"]) if "lokr_w1_b" in t else 1
    product = np.einsum("xz,ytk->xyztk", w1, w2.reshape(b, d, -1)).reshape(weight.shape)
    return product if whole else scale(t, rank) * product


def _factor(size: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if size % n == 0)


def lokr(whole_1: bool, whole_2: bool, *, middle: bool = False) -> Make:
    """Makes a LoKr whose factors are whole or products; with `middle` those of wide kernels are of Tucker form."""

    def make(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        out, channels, *kernel = weight.shape
        a, c, rank = _factor(out, 4), _factor(channels, 2), 2
        b, d = out // a, channels // c
        first = {"lokr_w1": (a, c)} if whole_1 else {"lokr_w1_a": (a, 1), "lokr_w1_b": (1, c)}
        second: dict[str, tuple[int, ...]] = {
            "lokr_w2_a": (b, rank),
            "lokr_w2_b": (rank, d * int(np.prod(kernel))),
        }
        if whole_2:
            second = {"lokr_w2": (b, d, *kernel)}
        elif middle and is_spatial(weight):
            second = {"lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, b), "lokr_w2_b": (rank, d)}
        tensors = {leaf: rng.standard_normal(shape) for leaf, shape in {**first, **second}.items()}
        # LyCORIS writes its dimension as the alpha of two whole factors, which nothing is divided by.
        tensors["alpha"] = np.array(10000.0) if whole_1 and whole_2 else an_alpha(rng, rank)
        return scaled(weight, tensors, next(iter(first)), lokr_delta)

    return make


def glora_delta(weight: Array, t: Tensors) -> Array:
    """LyCORIS since 3.0, modules/glora.py."""
    a1, a2, b1, b2 = (t[f"{leaf}.weight"] for leaf in ("a1", "a2", "b1", "b2"))
    rank = len(a2)
    return scale(t, rank) * _glora(weight, a1.reshape(-1, rank), a2.reshape(rank, -1), b1.reshape(-1, rank), b2)


def _old_glora_delta(weight: Array, t: Tensors) -> Array:
    """LyCORIS before and AUTOMATIC1111, network_glora.py: 1 and 2 in each other's place."""
    a1, a2, b1, b2 = (t[f"{leaf}.weight"] for leaf in ("a1", "a2", "b1", "b2"))
    rank = len(a1)
    return scale(t, rank) * _glora(weight, a2.reshape(-1, rank), a1.reshape(rank, -1), b2.reshape(-1, rank), b1)


def _glora(weight: Array, right: Array, left: Array, up: Array, down: Array) -> Array:
    changed = np.einsum("oi...,ir,rj->oj...", weight, right, left)
    return np.asarray(changed + (up @ down.reshape(len(down), -1)).reshape(weight.shape))


def _make_glora(old: bool) -> Make:
    delta = _old_glora_delta if old else glora_delta
    first, second = ("2", "1") if old else ("1", "2")

    def make(weight: Array, rng: np.random.Generator) -> dict[str, Array]:
        out, channels, ones, rank = len(weight), weight.shape[1], _ones(weight), 3
        down = rng.standard_normal((rank, *weight.shape[1:]))
        up = rng.standard_normal((out, rank, *ones))
        share = np.linalg.norm(weight) / np.linalg.norm(up.reshape(out, rank) @ down.reshape(rank, -1))
        tensors = {
            f"a{first}.weight": rng.standard_normal((channels, rank, *ones)) * channels**-0.5,
            f"a{second}.weight": rng.standard_normal((rank, channels, *ones)),
            f"b{first}.weight": up * share,
            f"b{second}.weight": down,
            "alpha": np.array(1.0),
        }
        return scaled(weight, tensors, "alpha", delta)

    return make


EXAMPLES: tuple[Example, ...] = (
    additive("lora", make_lora, lora_delta),
    additive("lora: other axes", _make_other_axes, lora_delta),
    additive("dylora", make_lora, lora_delta, metadata={"ss_network_module": "networks.dylora"}),
    additive("locon: tucker", _make_tucker, lora_delta),
    additive("lora: dense", _make_dense, _added_delta),
    additive("lora: sparse", _make_sparse, _added_delta),
    additive("loha", make_loha, loha_delta),
    additive("loha: tucker", _make_loha_tucker, loha_delta),
    additive("lokr: whole", lokr(True, True), lokr_delta),
    additive("lokr: w2 factored", lokr(True, False), lokr_delta),
    additive("lokr: w1 factored", lokr(False, True), lokr_delta),
    additive("lokr: both factored", lokr(False, False), lokr_delta),
    additive("lokr: tucker", lokr(True, False, middle=True), lokr_delta),
    additive("glora", _make_glora(old=False), glora_delta),
    additive("glora: old", _make_glora(old=True), _old_glora_delta),
)
