"""What may be tuned, on whom, and what is refused."""

from __future__ import annotations

import pytest

from common.errors import UsageError
from simulations.comparison.request import Request, parse
from simulations.comparison.search import Search, parse_search


def test_every_combination_is_a_candidate() -> None:
    search = parse_search("private", {"training.learning_rate": "0.1,1,1", "finetune": "all,head"})
    assert search is not None
    assert search.private
    assert search.candidates() == [
        ("training.learning_rate=0.1", "finetune=all"),
        ("training.learning_rate=0.1", "finetune=head"),
        ("training.learning_rate=1", "finetune=all"),
        ("training.learning_rate=1", "finetune=head"),
    ]


def test_a_request_keeps_its_search() -> None:
    asked = parse(["out=x", 'tune_on=data=phantom data.root="a b"', "tune.finetune=all,head"])
    assert asked.search == Search(
        on=("data=phantom", "data.root=a b"), values={"finetune": ("all", "head")}
    )
    assert Request.from_json(asked.to_json()) == asked
    assert parse(["out=x"]).search is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tune.finetune=all,head"], "tune_on is not set"),
        (["tune_on=private"], "nothing to choose from"),
        (["tune_on=data", "tune.finetune=all,head"], "must be private, or settings"),
        (["tune_on=", "tune.finetune=all,head"], "must be private, or settings"),
        (["tune_on='data=x", "tune.finetune=all,head"], "No closing quotation"),
        (["tune_on=private", "tune.finetune=all"], "1 candidates"),
        (["tune_on=private", "tune.finetune=all,,head"], "without empty places"),
        (["tune_on=private", "tune.data.image_size=32,64"], "not tuned"),
        (["tune_on=private", "tune.partition=equal,label_skew"], "not tuned"),
        (["tune_on=private", "tune.seed=1,2"], "the comparison sets it itself"),
        (["tune_on=private", "tune.privacy.epsilon=1,2"], "the comparison sets it itself"),
        (
            ["tune_on=private", "tune.training.learning_rate=" + ",".join(map(str, range(65)))],
            "65 candidates",
        ),
        (["privacy.tuned_on=public"], "the comparison sets it itself"),
    ],
)
def test_what_makes_no_search_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(["out=x", *words])
