"""The front door: no name comes or goes unnoticed, and every error is in the tree of errors.py."""

import inspect

import lora_edge
from lora_edge import errors


def test_public_names() -> None:
    assert lora_edge.__all__ == ["Adapter", "Engine", "LoraEdgeError", "Multiplier", "export", "read_adapter"]
    for name in lora_edge.__all__:
        assert callable(getattr(lora_edge, name))


def test_signatures_that_other_programs_rely_on() -> None:
    generate = inspect.signature(lora_edge.Engine.generate).parameters
    fixed = "prompt negative_prompt seed steps guidance sampler width height batch adapters lora_dir on_step"
    assert list(generate)[1:13] == fixed.split()
    assert (generate["steps"].default, generate["guidance"].default, generate["sampler"].default) == (20, 4.0, "euler")
    opened = inspect.signature(lora_edge.Engine.open).parameters
    assert list(opened)[:3] == ["bundle", "backend", "lora_dir"]
    assert list(inspect.signature(lora_edge.Engine.load_adapter).parameters)[1:] == ["path", "component", "strict"]
    assert list(inspect.signature(lora_edge.Engine.run).parameters)[1:] == ["component", "inputs", "adapters"]


def test_every_error_is_drawn_in_the_tree() -> None:
    classes = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]
    assert all(issubclass(item, lora_edge.LoraEdgeError) for item in classes)
    drawn = errors.__doc__ or ""
    assert all(item.__name__ in drawn and item.__doc__ for item in classes)
