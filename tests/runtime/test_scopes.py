"""Which graph an engine has open: the narrowest that serves the adapters loaded so far, or the one asked for."""

import re
from pathlib import Path

import numpy as np
import pytest

from lora_edge.bundle import Bundle
from lora_edge.errors import AdapterMismatch, RequestError
from lora_edge.forms import Bias, ComponentForms, Gain, LowRank, NormDelta
from lora_edge.runtime.backends import BACKENDS, Wishes, choose
from lora_edge.runtime.engine import Engine
from lora_edge.scope import ALL, LINEAR, LOWRANK, SCOPES, ports_of

INPUTS = {
    "sample": np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32),
    "timestep": 500,
    "encoder_hidden_states": np.random.default_rng(1).standard_normal((1, 77, 64), np.float32),
}


def test_an_engine_begins_narrow_and_widens_at_load_time(tiny_bundle: Path, styles: Path) -> None:
    engine = Engine.open(tiny_bundle, "onnxruntime", styles, threads=1)
    assert engine.info["graphs"] == {"text_encoder": "all", "unet": "linear"}
    base = engine.run("unet", INPUTS)["out_sample"]
    ink = engine.load_adapter(styles / "ink.safetensors")
    assert (engine.info["graphs"]["unet"], engine.info["sessions_opened"]) == ("linear", 1)
    glow = engine.load_adapter(styles / "deep" / "glow.safetensors")
    assert (engine.info["graphs"]["unet"], engine.info["sessions_opened"]) == ("lowrank", 2), "opened when it is loaded"
    both = engine.run("unet", INPUTS, [(ink, 0.5), (glow, 0.5)])["out_sample"]
    assert engine.info["sessions_opened"] == 2
    assert np.allclose(engine.run("unet", INPUTS)["out_sample"], base, atol=1e-5)
    whole = Engine.open(tiny_bundle, "onnxruntime", styles, threads=1, slots="all")
    assert whole.info["graphs"]["unet"] == "all"
    assert np.allclose(whole.run("unet", INPUTS, [(ink, 0.5), (glow, 0.5)])["out_sample"], both, atol=1e-5)


def test_inputs_by_name_widen_too(tiny_bundle: Path) -> None:
    engine = Engine.open(tiny_bundle, "onnxruntime", threads=1)
    engine.run("unet", INPUTS | {"lora.conv_in.gain_out": np.ones(1, np.float32)})
    assert engine.info["graphs"]["unet"] == "all"


def test_an_adapter_of_another_engine_widens(tiny_bundle: Path, styles: Path) -> None:
    glow = Engine.open(tiny_bundle, "onnxruntime", threads=1).load_adapter(styles / "deep" / "glow.safetensors")
    engine = Engine.open(tiny_bundle, "onnxruntime", threads=1)
    engine.run("unet", INPUTS, [(glow, 1.0)])
    assert engine.info["graphs"]["unet"] == "lowrank"


def test_a_fixed_scope_refuses_what_it_has_no_input_for(tiny_bundle: Path, styles: Path) -> None:
    engine = Engine.open(tiny_bundle, "onnxruntime", styles, threads=1, slots="linear")
    engine.load_adapter(styles / "ink.safetensors")
    words = 'it takes low-rank updates of Linear and 1x1 layers: open the engine with slots="auto"'
    with pytest.raises(AdapterMismatch, match=r"^lora\.\S+conv1\.down is no input .*" + re.escape(words)):
        engine.load_adapter(styles / "deep" / "glow.safetensors")


@pytest.mark.parametrize("name", [*BACKENDS, "auto"])
def test_a_scope_or_an_arena_that_there_is_not(tiny_bundle: Path, name: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(RequestError, match="no slots 'some'; there are auto, linear, lowrank, all"):
        choose(name, bundle, Wishes(slots="some"))
    with pytest.raises(RequestError, match="no arena 'mine'; there are shared, own, none"):
        choose(name, bundle, Wishes(arena="mine"))


def test_each_scope_takes_what_the_narrower_one_does_and_more(tiny_bundle: Path) -> None:
    table = Bundle.open(tiny_bundle).component("unet").table
    ports = [scope.ports(table) for scope in SCOPES.values()]
    assert list(SCOPES.values()) == [LINEAR, LOWRANK, ALL]
    assert ports[0] < ports[1] < ports[2]


def test_where_forms_go(tiny_bundle: Path) -> None:
    table = Bundle.open(tiny_bundle).component("unet").table
    numbers = np.ones(1, np.float32)
    forms = {
        "lora.conv_in.down": LowRank(numbers[:, None], numbers[None]),
        "lora.conv_in.gain_in": Gain("in", numbers),
        "lora.conv_in.gain_out": Gain("out", numbers),
        "lora.conv_in.bias": Bias(numbers),
    }
    for port, form in forms.items():
        assert port in ports_of(ComponentForms({"conv_in": (form,)}), table)
    norm = next(iter(table.norms))
    assert ports_of(ComponentForms({}, {norm: NormDelta(numbers)}), table) == {f"{norm}.weight", f"{norm}.bias"}
