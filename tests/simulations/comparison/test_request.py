"""What a command line asks for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from simulations.comparison.presets import PRESETS, Size
from simulations.comparison.request import Kind, Request, parse


def test_a_size_fills_what_is_not_set() -> None:
    asked = parse(["out=x"])
    assert asked.size is Size.quick
    assert asked.epsilons == PRESETS[Size.quick].epsilons
    assert asked.seeds == PRESETS[Size.quick].seeds
    assert asked.augments == ("none",)
    assert [arm.kind for arm in asked.arms] == list(Kind)
    assert "federation.rounds=4" in asked.overrides


def test_what_the_user_sets_wins() -> None:
    asked = parse(["out=x", "size=smoke", "epsilons=inf,3", "seeds=7", "federation.rounds=9"])
    assert asked.epsilons == (3.0, math.inf)
    assert asked.seeds == (7,)
    assert [word for word in asked.overrides if "rounds" in word] == ["federation.rounds=9"]
    assert "model=test_vit" in asked.overrides


@pytest.mark.parametrize("word", ["model=vit_tiny", "data.image_size=64", "model.patch_size=8"])
def test_model_and_size_of_images_go_together(word: str) -> None:
    asked = parse(["out=x", "size=smoke", word])
    assert "model=test_vit" not in asked.overrides
    assert "data.image_size=32" not in asked.overrides


def test_any_setting_is_an_arm() -> None:
    asked = parse(
        [
            "out=x",
            "arms=federated",
            "arm.lora=finetune=lora model.patch_size=8",
            "arm.own=local a=b",
        ]
    )
    federated, lora, own = asked.arms
    assert federated.name == "federated"
    assert (lora.kind, lora.overrides) == (Kind.federated, ("finetune=lora", "model.patch_size=8"))
    assert (own.kind, own.overrides) == (Kind.local, ("a=b",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "out is not set"),
        (["out=x", "--quick"], "--quick: no such option"),
        (["out=x", "quick"], "no such option"),
        (["out=x", "size=huge"], "there are smoke, quick, full"),
        (["out=x", "arms=centralised"], "there are centralized, federated, local"),
        (["out=x", "augments=blend"], "augments=blend: no such choice"),
        (["out=x", "epsilons=0"], "numbers above 0, or inf"),
        (["out=x", "epsilons=1,,2"], "without empty places"),
        (["out=x", "epsilons=nan"], "numbers above 0"),
        (["out=x", "seeds=1.5"], "whole numbers"),
        (["out=x", "seeds=-1"], "whole numbers"),
        (["out=x", "seed=3"], "use seeds="),
        (["out=x", "privacy.epsilon=3"], "use epsilons="),
        (["out=x", "privacy=none"], "use epsilons="),
        (["out=x", "run_dir=y"], "use out=FOLDER"),
        (["out=x", "arm.lora="], "must read"),
        (["out=x", "arm.lora=finetune"], "must read"),
        (["out=x", "arm.lora=seed=3"], "use seeds="),
        (["out=x", "arm.local=finetune=lora"], "of no other arm"),
        (["out=x", "arm.a=b=c", "arm.a=d=e"], "each name once"),
        (["out=x", "arm.a=b='c"], "quotation"),
    ],
)
def test_bad_words_are_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@given(
    st.lists(st.floats(1e-3, 1e3) | st.just(math.inf), min_size=1, max_size=4),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_a_request_survives_its_file(epsilons: list[float], seeds: list[int]) -> None:
    words = [
        "out=/x",
        f"epsilons={','.join(map(repr, epsilons))}",
        f"seeds={','.join(map(str, seeds))}",
        "arm.lora=finetune=lora",
    ]
    asked = parse(words)
    again = Request.from_json(asked.to_json())
    assert again == asked
    assert again.epsilons == tuple(sorted(set(epsilons)))
