"""Who is measured. A new one is a file with a `Contestant` and a line in CONTESTANTS."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AUTO = "auto"
Role = Literal["ours", "other", "wider", "mapped", "smaller", "limit", "peer"]


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        title: as tables call it.
        module: of `benchmarks.contestants`, run as a process.
        role: ours; ours in another precision or library than most will choose; ours with a graph that takes more than
            most adapters need; ours that uses packs where they lie; ours with quantized weights; the limit (the same
            graph without LoRA inputs); or a peer.
        environment: a name in `benchmarks.peers.ENVIRONMENTS`, or "" for the one that runs the benchmarks.
        settings: passed to the contestant; AUTO is what the processor is best at, bf16 or fp32.
        limit: the name of the contestant that is the limit of this one; none where its library runs no plain graph.
        weight: bytes of memory per parameter of the UNet that it may take, by which a machine's memory is shared out.
        models: the models that it can run; none for all.
        lazy: whether what the first step after a change takes longer belongs to the change.
        single: whether loading an adapter replaces the one before.
        borrows: whether it runs on a graph that we made.
        bundle: which of `benchmarks.models.BUNDLES` it opens.
        bf16: whether it takes part only where the processor has bfloat16: in fp32 it would be somebody else again.
        needs: what of a model it reads besides the checkpoint: `bundle`, `plain`, `openvino`.
    """

    title: str
    module: str
    role: Role
    environment: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: str = ""
    weight: float = 5.0
    models: tuple[str, ...] = ()
    lazy: bool = False
    single: bool = False
    borrows: bool = False
    bundle: str = "bundle"
    bf16: bool = False
    needs: tuple[str, ...] = ()


CONTESTANTS: Mapping[str, Entry] = {
    "lora-edge-ort": Entry(
        "lora-edge, onnxruntime", "lora_edge", "ours",
        settings={"backend": "onnxruntime"}, limit="plain-ort", needs=("bundle",),
    ),
    "lora-edge-ort-lowrank": Entry(
        "lora-edge, onnxruntime, slots in every layer", "lora_edge", "wider",
        settings={"backend": "onnxruntime", "slots": "lowrank"}, limit="plain-ort", needs=("bundle",),
    ),
    "lora-edge-ort-all": Entry(
        "lora-edge, onnxruntime, the whole contract", "lora_edge", "wider",
        settings={"backend": "onnxruntime", "slots": "all"}, limit="plain-ort", needs=("bundle",),
    ),
    "lora-edge-ov": Entry(
        "lora-edge, OpenVINO", "lora_edge", "ours",
        settings={"backend": "openvino", "precision": AUTO}, limit="plain-ov", weight=7.0, needs=("bundle",),
    ),
    "lora-edge-ov-lowrank": Entry(
        "lora-edge, OpenVINO, slots in every layer", "lora_edge", "wider",
        settings={"backend": "openvino", "precision": AUTO, "slots": "lowrank"}, limit="plain-ov", weight=7.0,
        needs=("bundle",),
    ),
    "lora-edge-ort-mapped": Entry(
        "lora-edge, onnxruntime, packs mapped", "lora_edge", "mapped",
        settings={"backend": "onnxruntime", "map_packs": True}, needs=("bundle",),
    ),
    "lora-edge-ov-mapped": Entry(
        "lora-edge, OpenVINO, packs mapped", "lora_edge", "mapped",
        settings={"backend": "openvino", "precision": AUTO, "map_packs": True}, weight=7.0, needs=("bundle",),
    ),
    "lora-edge-ov-fp32": Entry(
        "lora-edge, OpenVINO fp32", "lora_edge", "other",
        settings={"backend": "openvino", "precision": "fp32"}, limit="plain-ov-fp32", weight=9.0, needs=("bundle",),
        bf16=True,
    ),
    "lora-edge-torch": Entry(
        "lora-edge, torch program", "lora_edge", "other",
        settings={"backend": "torch"}, weight=6.0, needs=("bundle",),
    ),
    "lora-edge-ort-int8": Entry(
        "lora-edge, onnxruntime, int8 weights", "lora_edge", "smaller",
        settings={"backend": "onnxruntime"}, bundle="int8", limit="lora-edge-ort", needs=("int8",),
    ),
    "lora-edge-ort-int4": Entry(
        "lora-edge, onnxruntime, int4 weights", "lora_edge", "smaller",
        settings={"backend": "onnxruntime"}, bundle="int4", limit="lora-edge-ort", needs=("int4",),
    ),
    "plain-ort": Entry("graph without LoRA inputs, onnxruntime", "plain_onnxruntime", "limit", needs=("plain",)),
    "plain-ov": Entry(
        "graph without LoRA inputs, OpenVINO", "plain_openvino", "limit",
        settings={"precision": AUTO}, weight=7.0, needs=("plain",),
    ),
    "plain-ov-other": Entry(
        "graph without LoRA inputs as for onnxruntime, OpenVINO", "plain_openvino", "limit",
        settings={"precision": AUTO, "library": "onnxruntime"}, weight=7.0, needs=("plain",),
    ),
    "plain-ov-fp32": Entry(
        "graph without LoRA inputs, OpenVINO fp32", "plain_openvino", "limit",
        settings={"precision": "fp32"}, weight=9.0, needs=("plain",), bf16=True,
    ),
    "diffusers-fp32": Entry(
        "diffusers + PEFT, eager fp32", "diffusers_peft", "peer", settings={"precision": "fp32"}, weight=5.0
    ),
    "diffusers-bf16": Entry(
        "diffusers + PEFT, eager bf16", "diffusers_peft", "peer", settings={"precision": "bf16"}, weight=3.0,
        bf16=True,
    ),
    "diffusers-hotswap": Entry(
        "diffusers + PEFT hot-swap, torch.compile", "diffusers_hotswap", "peer",
        settings={"precision": AUTO}, weight=4.5, lazy=True, single=True,
    ),
    "diffusers-fuse": Entry(
        "diffusers fuse_lora (merge)", "diffusers_fuse", "peer", settings={"precision": AUTO}, weight=3.0
    ),
    "openvino-genai": Entry(
        "OpenVINO GenAI dynamic adapters", "openvino_genai", "peer", "openvino",
        weight=6.0, lazy=True, needs=("openvino",),
    ),
    "ort-adapters": Entry(
        "ONNX Runtime LoraAdapter, on our bundle", "onnxruntime_adapter", "peer", borrows=True, needs=("bundle",)
    ),
    "sd-cpp": Entry(
        "stable-diffusion.cpp", "stable_diffusion_cpp", "peer", "sdcpp",
        weight=4.0, lazy=True, models=("sd15",), needs=("older",),
    ),
}  # fmt: skip


def named(*roles: Role) -> tuple[str, ...]:
    """Names of those that have one of the roles, in the order of the list."""
    return tuple(name for name, entry in CONTESTANTS.items() if entry.role in roles)
