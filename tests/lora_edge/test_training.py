"""What metadata tell of the training, as kohya writes them."""

import json
from typing import Any

import pytest

from lora_edge.training import facts, frequent_tags


def tags(value: Any) -> list[tuple[str, int]]:
    return frequent_tags({"ss_tag_frequency": value if isinstance(value, str) else json.dumps(value)})


def test_tags_of_all_folders_by_count() -> None:
    assert tags({"10_ink": {"ink": 30, "1girl ": 12}, "5_oil": {"oil": 20, "1girl": 12}}) == [
        ("ink", 30), ("1girl", 24), ("oil", 20),
    ]  # fmt: skip


def test_sentences_are_counted_by_word() -> None:
    counted = dict(tags({"img": {"an ink drawing of a cat on a table": 2, "an ink drawing of a large dog": 3}}))
    assert counted["ink"] == counted["drawing"] == 5 and counted["cat"] == 2 and "a" not in counted


def test_as_many_tags_as_the_lora_tab_shows() -> None:
    assert len(tags({"img": {f"tag{number}": 1 for number in range(100)}})) == 24


@pytest.mark.parametrize(
    "value",
    ["", "x", "[1]", "null", "[" * 100_000, {"img": 3}, {"img": ["ink"]}, {"img": {"ink": "3"}}, {"img": {"ink": -1}},
     {"img": {"ink": 1.5}}, {"img": {" ": 4}}, {"img": {"ink": True}}],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_tags_that_do_not_read_are_none(value: Any) -> None:
    assert tags(value) == []


def test_facts() -> None:
    metadata = {
        "ss_output_name": "ink",
        "ss_sd_model_name": "v1-5-pruned.safetensors",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "4.0",
        "ss_clip_skip": "None",
        "ss_resolution": "(512, 512)",
        "ss_num_epochs": "10",
        "ss_training_started_at": "1700000000.5",
        "ss_training_comment": "x" * 1000,
        "ss_unknown": "y",
    }
    assert facts(metadata) == {
        "output name": "ink",
        "base model": "v1-5-pruned.safetensors",
        "dim": "Dynamic",
        "alpha": "4.0",
        "resolution": "(512, 512)",
        "epochs": "10",
        "began": "2023-11-14 22:13 UTC",
        "comment": "x" * 300,
    }


@pytest.mark.parametrize("stamp", ["yesterday", "nan", "inf", "1e300", "-1e18", ""])
def test_dates_that_are_none(stamp: str) -> None:
    assert facts({"ss_training_started_at": stamp}) == {}
