"""Files that LyCORIS itself saves for whole models, through the graph, against the models with LyCORIS around them.

At multiplier 1, where its layers, Webui's and ours agree.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.wrapper import LycorisNetwork
from torch import nn

from .bench import Bench

BOUND = 1e-3  # of the change that the adapter makes
LAYERS = ["Linear", "Conv2d", "LayerNorm", "GroupNorm"]
DIMS = {"lora_dim": 4, "conv_lora_dim": 3, "alpha": 2, "conv_alpha": 3}

NETWORKS: dict[str, dict[str, Any]] = {
    "locon": {"network_module": "locon"},
    "locon: tucker, scalar": {"network_module": "locon", "use_tucker": True, "use_scalar": True},
    "locon: dora": {"network_module": "locon", "weight_decompose": True, "wd_on_out": True},
    "locon: dora on input": {"network_module": "locon", "weight_decompose": True, "wd_on_out": False},
    "locon: rs": {"network_module": "locon", "rs_lora": True},
    "loha": {"network_module": "loha"},
    "loha: tucker, dora": {"network_module": "loha", "use_tucker": True, "weight_decompose": True},
    "lokr": {"network_module": "lokr", "factor": 4},
    "lokr: tucker, both factored": {"network_module": "lokr", "use_tucker": True, "decompose_both": True},
    "lokr: whole": {"network_module": "lokr", "full_matrix": True, "factor": 8},
    "lokr: dora on input": {"network_module": "lokr", "weight_decompose": True, "wd_on_out": False, "factor": 4},
    "glora": {"network_module": "glora"},
    "full": {"network_module": "full"},
    "ia3": {"network_module": "ia3"},
    "ia3: on input": {"network_module": "ia3", "train_on_input": True},
    "oft": {"network_module": "diag-oft"},
    "oft: constraint, rescaled": {"network_module": "diag-oft", "constraint": 0.01, "rescaled": True},
    "boft": {"network_module": "boft"},
    "boft: constraint, rescaled": {"network_module": "boft", "constraint": 0.01, "rescaled": True},
    "dylora": {"network_module": "dylora", "block_size": 1},
    "norms": {"network_module": "locon", "train_norm": True},
}
# (component, prefix): what kohya's trainer puts before the paths, and what the stand-alone wrapper does.
PREFIXES = {"unet": ("lora_unet", "lycoris"), "text_encoder": ("lora_te_text_model", "lycoris_text_model")}


def randomize(network: nn.Module) -> None:
    """What LyCORIS starts without effect."""
    torch.manual_seed(9)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "dora_scale":
            parameter.data *= torch.exp(0.3 * noise)
        elif leaf == "rescale":
            parameter.data = 1 + 0.3 * noise
        elif leaf == "scalar":
            parameter.data = torch.tensor(0.7)
        else:
            parameter.data += (0.1 if leaf in ("oft_blocks", "weight", "bias") else 0.3) * noise


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("component", PREFIXES)
def test_a_file_gives_what_lycoris_computes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, component: str
) -> None:
    monkeypatch.setattr(random, "randint", lambda low, high: high)  # DyLoRA draws how many lanes act; its file has all
    twin = bench.twins[component]
    for prefix in PREFIXES[component]:
        module = copy.deepcopy(twin.plain)
        LycorisNetwork.apply_preset(
            {
                "enable_conv": True,
                "target_module": ["Linear", "Conv2d", "LayerNorm", "GroupNorm"],
                "lora_prefix": prefix,
            }
        )
        network = LycorisNetwork(module, **DIMS, **NETWORKS[name])
        network.apply_to()
        network.eval()
        randomize(network)
        file = tmp_path / f"{prefix}.safetensors"
        network.save_weights(str(file), None, {})
        adapter = bench.engine.load_adapter(file)
        assert len(network.loras) > 10 and not adapter.report.unused
        with torch.no_grad():
            wanted = twin.outputs(module)
        assert bench.ratio(component, [(adapter, 1.0)], wanted) <= BOUND
