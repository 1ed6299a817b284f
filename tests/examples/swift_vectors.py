"""What the Swift package is tested against: a manifest, packs, the arrays that they must become, and files to refuse.

    python tests/examples/swift_vectors.py examples/swift/Tests/LoRAEdgeKitTests/Resources/Vectors

Every number is written out index by index from docs/packs.md and docs/coreml.md, so that nothing here shares code, or a
reshape, with what it tests. The same seed gives the same bytes.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RANK = 6
FINGERPRINT = "5f1d0c3b" * 8
Array = np.ndarray[Any, Any]
Runs = Sequence[tuple[int, float]]
DTYPES = {"F16": np.float16, "F32": np.float32}

# slot -> (features in, features out, kernel of a convolution, package)
UNET = {
    "down_blocks.0.attn.to_q": (5, 4, None, "UnetChunk1.mlpackage"),
    "mid_block.proj_in": (3, 4, (1, 1), "UnetChunk1.mlpackage"),
    "up_blocks.0.conv1": (2, 3, (3, 3), "UnetChunk2.mlpackage"),
}
TEXT = {"text_model.fc1": (3, 5, None, "TextEncoderWithAdapters.mlpackage")}
SLOTS = {"unet": UNET, "text_encoder": TEXT}
PREFIX = {"unet": "", "text_encoder": "text_encoder/", "text_encoder_plain": ""}
DTYPE = {"unet": "fp16", "text_encoder": "fp32"}

# pack -> (dtype, component -> slot -> runs of (lanes, alpha / rank))
PACKS: Mapping[str, tuple[str, Mapping[str, Mapping[str, Runs]]]] = {
    "ink": (
        "F16",
        {
            "unet": {"down_blocks.0.attn.to_q": [(2, 0.5)], "mid_block.proj_in": [(2, 0.75), (1, 1 / 3)]},
            "text_encoder": {"text_model.fc1": [(4, 0.1)]},
        },
    ),
    "glow": ("F32", {"unet": {"down_blocks.0.attn.to_q": [(3, 2.0)], "up_blocks.0.conv1": [(1, 0.7)]}}),
    "wide": ("F16", {"unet": {"up_blocks.0.conv1": [(4, 1.0)]}}),
    "wider": ("F16", {"unet": {"up_blocks.0.conv1": [(7, 1.0)]}}),
}

# case -> (packs, component, multipliers)
CASES: Mapping[str, tuple[Sequence[str], str, Sequence[float]]] = {
    "none": ([], "unet", []),
    "one": (["ink"], "unet", [0.8]),
    "two": (["ink", "glow"], "unet", [0.8, -0.5]),
    "two_turned": (["glow", "ink"], "unet", [0.1, 0.0]),
    "text": (["ink"], "text_encoder", [1.25]),
}


def patch(slot: tuple[int, int, Any, str]) -> int:
    inputs, _, kernel, _ = slot
    return inputs * (kernel[0] * kernel[1] if kernel else 1)


def shapes(slot: tuple[int, int, Any, str]) -> tuple[list[int], list[int]]:
    """Of down and up in a package: a matrix, or a convolution's weight."""
    inputs, outputs, kernel, _ = slot
    return ([RANK, inputs, *kernel], [outputs, RANK, 1, 1]) if kernel else ([inputs, RANK], [RANK, outputs])


def input_name(slot: str, leaf: str) -> str:
    return f"{slot.replace('.', '_')}_{leaf}"


def manifest() -> dict[str, Any]:
    components = {component: packaged(component, slots) for component, slots in SLOTS.items()}
    plain = {"packages": ["TextEncoder.mlpackage"], "ports": {"TextEncoder.mlpackage": {"inputs": [], "outputs": []}}}
    return {
        "format": 1, "abi": 1, "fingerprint": FINGERPRINT, "rank": RANK, "os": "iOS17", "precision": "fp16",
        "attention": "split-einsum", "palettize": None, "rows": 2, "latent": [8, 8],
        "components": {**components, "text_encoder_plain": plain},
        "digests": {}, "files": {}, "verification": [],
    }  # fmt: skip


def packaged(component: str, slots: Mapping[str, tuple[int, int, Any, str]]) -> dict[str, Any]:
    dtype, ports, told = DTYPE[component], {}, {}
    for package in dict.fromkeys(slot[3] for slot in slots.values()):
        first = {"name": "lora_scale", "shape": [RANK], "dtype": dtype, "optional": True, "default": 1.0}
        ports[package] = {"inputs": [first], "outputs": []}
    for name, slot in slots.items():
        down, up = shapes(slot)
        for leaf, shape in (("down", down), ("up", up)):
            entry = {"name": input_name(name, leaf), "shape": shape, "dtype": dtype, "optional": True, "default": 0.0}
            ports[slot[3]]["inputs"].append(entry)
        told[name] = {"down": input_name(name, "down"), "up": input_name(name, "up"),
                      "down_shape": down, "up_shape": up}  # fmt: skip
    return {"packages": list(ports), "ports": ports, "slots": told, "scale": "lora_scale"}


def factors(pack: str) -> dict[str, Array]:
    """A pack's tensors by name."""
    dtype, components = PACKS[pack]
    random = np.random.default_rng(list(PACKS).index(pack))
    made = {}
    for component, slots in components.items():
        for name, runs in slots.items():
            slot, rank = SLOTS[component][name], sum(lanes for lanes, _ in runs)
            for leaf, shape in (("down", (patch(slot), rank)), ("up", (rank, slot[1]))):
                numbers = random.standard_normal(shape).astype(DTYPES[dtype])
                made[f"{PREFIX[component]}lora.{name}.{leaf}"] = numbers
    return made


def head(components: Mapping[str, Mapping[str, Runs]], dtype: str = "F16", **changed: Any) -> str:
    told = {
        component: {
            "prefix": PREFIX[component],
            "slots": [
                {"name": name, "rank": sum(lanes for lanes, _ in runs), "scales": [list(run) for run in runs]}
                for name, runs in slots.items()
            ],
        }
        for component, slots in components.items()
    }
    bundle = {"fingerprint": FINGERPRINT, "family": "sd1", "name": "vectors"}
    about = {"format": 1, "abi": 1, "bundle": bundle, "adapter": {"name": "vector", "kinds": ["lora"]},
             "dtype": dtype.replace("F", "fp"), "components": told}  # fmt: skip
    return json.dumps({**about, **changed}, sort_keys=True, separators=(",", ":"))


def file_of(tensors: Mapping[str, Array], strings: Mapping[str, str]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": dict(strings)}
    body = b""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    for name, array in tensors.items():
        data = array.tobytes()
        place = [len(body), len(body) + len(data)]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": place}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def reworded(file: bytes, old: bytes, new: bytes) -> bytes:
    """The file with other words in its header."""
    end = 8 + int.from_bytes(file[:8], "little")
    text = file[8:end].replace(old, new)
    assert text != file[8:end]
    return len(text).to_bytes(8, "little") + text + file[end:]


def pack_file(pack: str) -> bytes:
    dtype, components = PACKS[pack]
    return file_of(factors(pack), {"lora_edge_pack": head(components, dtype), "ss_output_name": pack})


def expected(packs: Sequence[str], component: str, multipliers: Sequence[float]) -> dict[str, Array]:
    """What a package is fed: every lane of every adapter put where the contract wants it, number by number."""
    dtype = np.float16 if DTYPE[component] == "fp16" else np.float32
    scale, made, start = np.zeros(RANK, np.float32), {}, 0
    for pack, multiplier in zip(packs, multipliers, strict=True):
        slots, tensors = PACKS[pack][1][component], factors(pack)
        width = max(sum(lanes for lanes, _ in runs) for runs in slots.values())
        scale[start : start + width] = multiplier
        for name, runs in slots.items():
            inputs, outputs, kernel, _ = slot = SLOTS[component][name]
            down_shape, up_shape = shapes(slot)
            down = made.setdefault(input_name(name, "down"), np.zeros(down_shape, np.float32))
            up = made.setdefault(input_name(name, "up"), np.zeros(up_shape, np.float32))
            low, high = (
                tensors[f"{PREFIX[component]}lora.{name}.{leaf}"].astype(np.float32) for leaf in ("down", "up")
            )
            alphas = [np.float32(alpha) for lanes, alpha in runs for _ in range(lanes)]
            for lane, alpha in enumerate(alphas):
                at = start + lane
                for channel in range(inputs):
                    for y, x in np.ndindex(*(kernel or (1, 1))):
                        place = (at, channel, y, x) if kernel else (channel, at)
                        row = (channel * kernel[0] + y) * kernel[1] + x if kernel else channel
                        down[place] = low[row, lane]
                for channel in range(outputs):
                    up[(channel, at, 0, 0) if kernel else (at, channel)] = high[lane, channel] * alpha
        start += width
    return {name: array.astype(dtype) for name, array in {"lora_scale": scale, **made}.items()}


def refused() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """File -> its bytes, and how it is refused: the case of `Refusal` and words of its sentence."""
    to_q, strange = "down_blocks.0.attn.to_q", "up_blocks.0.conv_shortcut"
    slots = {"unet": {to_q: [(2, 0.5)]}}
    good = {name: array for name, array in factors("ink").items() if to_q in name}
    down, up = good

    def packed(tensors: Mapping[str, Array], about: str | None = None) -> bytes:
        return file_of(tensors, {"lora_edge_pack": about or head(slots)})

    whole = packed(good)
    lone = {"lora.x.gain_out": np.ones(4, np.float32), "mid.norm.weight": np.ones(4, np.float32)}
    word = {"tokens.text_encoder.cat": np.ones((1, 3), np.float32)}
    moved = {f"lora.{strange}.{leaf}": good[f"lora.{to_q}.{leaf}"] for leaf in ("down", "up")}
    elsewhere = {"fingerprint": "0" * 64, "family": "sd1", "name": "other"}
    broken = good[down].copy()
    broken[0, 0] = np.nan
    files: dict[str, tuple[bytes, str, list[str]]] = {
        "truncated": (whole[:-3], "damaged", ["take"]),
        "longer": (whole + b"\0", "damaged", ["take"]),
        "empty": (b"", "damaged", ["header"]),
        "no_header": ((2**63).to_bytes(8, "little") + whole[8:], "damaged", ["cut off"]),
        "no_json": ((4).to_bytes(8, "little") + b"{{{{", "damaged", ["no map"]),
        "overlapping": (reworded(whole, b"[20,36]", b"[10,26]"), "damaged", ["overlap"]),
        "huge_shape": (reworded(whole, b"[5,2]", b"[4611686018427387904,4]"), "damaged", ["size"]),
        "negative": (reworded(whole, b"[0,20]", b"[-4,16]"), "damaged", ["size"]),
        "other_file": (file_of(good, {"format": "pt"}), "damaged", ["pack"]),
        "no_description": (packed(good, "{}"), "damaged", ["pack"]),
        "wrong_runs": (packed(good, head(slots).replace("[2,0.5]", "[3,0.5]")), "damaged", ["scales"]),
        "huge_rank": (
            packed(good, head(slots).replace('"rank":2', f'"rank":{2**62}').replace("[2,0.5]", f"[{2**62},0.5]")),
            "damaged", ["lanes"],
        ),
        "format_2": (packed(good, head(slots, format=2)), "version", ["format 2"]),
        "abi_9": (packed(good, head(slots, abi=9)), "version", ["abi 9"]),
        "other_bundle": (packed(good, head(slots, bundle=elsewhere)), "otherBundle", ["000000000000", "5f1d0c3b5f1d"]),
        "gains": (packed({**good, **lone}), "notLanes", ["lora.x.gain_out", "mid.norm.weight"]),
        "words": (packed({**good, **word}), "notLanes", ["tokens.text_encoder.cat"]),
        "missing_slot": (
            packed(moved, head({"unet": {strange: [(2, 0.5)]}})), "missingSlots", [strange, "--conv-slots"]
        ),
        "missing_up": (packed({down: good[down]}), "tensor", [up, "missing"]),
        "wrong_shape": (packed({**good, up: good[up].T.copy()}), "tensor", ["[4, 2]", "[2, 4]"]),
        "wrong_rank": (packed({**good, down: good[down][:, :1].copy()}), "tensor", ["[5, 1]", "[5, 2]"]),
        "nan": (packed({**good, down: broken}), "numbers", [down]),
        "beyond_half": (
            packed({**good, up: np.full((2, 4), 6e4, np.float16)}, head({"unet": {to_q: [(2, 4.0)]}})),
            "numbers", [input_name(to_q, "up"), "--precision fp32"],
        ),
        "no_component": (
            packed(good, head({"text_encoder_plain": {}})), "unfedComponents", ["text_encoder_plain"]
        ),
    }  # fmt: skip
    return {name: (data, {"packs": [f"refused/{name}"], "refusal": kind, "says": says})
            for name, (data, kind, says) in files.items()}  # fmt: skip


def mixes_refused() -> list[dict[str, Any]]:
    """Good packs that do not go together, or not with what the app feeds."""
    return [
        {"packs": ["ink", "wide"], "refusal": "tooManyLanes", "says": ["3 + 4", "7 together", "have 6"]},
        {"packs": ["wider"], "refusal": "tooManyLanes", "says": ["7", "have 6"]},
        {"packs": ["ink"], "feeding": ["unet"], "refusal": "unfedComponents", "says": ["text_encoder"]},
        {"packs": ["ink"], "multipliers": [1.0, 1.0], "refusal": "multipliers", "says": ["1 adapters"]},
        {"packs": ["glow"], "multipliers": [7e4], "refusal": "multipliers", "says": ["1 adapters"]},
        {"packs": [], "component": "vae_decoder", "refusal": "noComponent", "says": ["text_encoder, unet"]},
    ]


def halves() -> list[list[int]]:
    """Pairs of float32 bits and the nearest half's, as numpy rounds."""
    edges = [0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, 1e30, np.inf, -np.inf, 2.0**-14, 2.0**-24, 2.0**-25, 3e-8,
             1 + 2.0**-11, 1 + 3 * 2.0**-11, 2048.5, 2049.5, 6.1e-5, 1e-45]  # fmt: skip
    random = np.random.default_rng(0)
    spread = random.standard_normal(400) * 10.0 ** random.uniform(-9, 6, 400)
    numbers = np.concatenate([edges, spread]).astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float16)
    return np.stack([numbers.view(np.uint32), rounded.view(np.uint16)], axis=1).tolist()


def files() -> dict[str, bytes]:
    """Path below Vectors -> content."""
    arrays = {f"{case}/{name}": array for case, (packs, component, multipliers) in CASES.items()
              for name, array in expected(packs, component, multipliers).items()}  # fmt: skip
    cases = [{"name": name, "packs": list(packs), "component": component, "multipliers": list(multipliers)}
             for name, (packs, component, multipliers) in CASES.items()]  # fmt: skip
    bad = refused()
    told = {
        "made_by": "tests/examples/swift_vectors.py",
        "cases": cases,
        "refusals": [case for _, case in bad.values()] + mixes_refused(),
        "halves": halves(),
    }
    return {
        "coreml/lora_edge_coreml.json": json.dumps(manifest(), indent=1).encode() + b"\n",
        "cases.json": json.dumps(told, separators=(",", ":")).encode() + b"\n",
        "expected.safetensors": file_of(arrays, {}),
        **{f"{name}.pack.safetensors": pack_file(name) for name in PACKS},
        **{f"refused/{name}.pack.safetensors": data for name, (data, _) in bad.items()},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    for path, data in files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


if __name__ == "__main__":
    main()
