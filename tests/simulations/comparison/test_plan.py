"""From what was asked to single runs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from common.config import Mechanism, PartitionKind, StrategyName, Trust
from common.errors import UsageError
from simulations.comparison.folder import Folder
from simulations.comparison.plan import Plan, plan
from simulations.comparison.request import Kind, parse
from simulations.sites import dealt


def planned(tmp_path: Path, *words: str) -> Plan:
    asked = parse([f"out={tmp_path}", *words])
    return plan(asked, Folder(path=asked.out))


def test_a_trial_for_each_arm_epsilon_seed_and_lone_hospital(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    found = planned(tmp_path, *tiny, "epsilons=1,8,inf", "seeds=1,2")
    assert Counter(trial.kind for trial in found.trials) == {
        Kind.centralized: 6,
        Kind.federated: 6,
        Kind.local: 12,
    }
    assert len({trial.name for trial in found.trials}) == 24
    for trial in found.trials:
        privacy = trial.config.privacy
        assert privacy.private is math.isfinite(trial.cell.epsilon)
        assert not privacy.private or privacy.epsilon == trial.cell.epsilon
        assert trial.config.seed == trial.seed
        assert trial.config.federation.sites == ([trial.site] if trial.site else [])


def test_no_two_trials_share_draws_and_noise(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """Of two releases with the same noise the difference is free of it."""
    words = (*tiny, "epsilons=1,8", "seeds=1,2")
    found = [trial.config.simulation.noise_seed for trial in planned(tmp_path, *words).trials]
    again = [trial.config.simulation.noise_seed for trial in planned(tmp_path, *words).trials]
    faster = planned(tmp_path, *words, "training.learning_rate=0.5").trials
    assert None not in found
    assert len(set(found)) == len(found)
    assert found == again
    assert not set(found) & {trial.config.simulation.noise_seed for trial in faster}


def test_all_arms_have_the_same_patients(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found = planned(tmp_path, *tiny, "epsilons=inf", "seeds=1,2")

    def parts(number: int) -> tuple[dict[str, set[str]], set[str], set[str]]:
        config = found.trials[number].config
        _, split, shares = dealt(config, tmp_path / "never", bytes(16))
        return (
            {name: {record.patient for record in some} for name, some in shares.items()},
            {record.patient for record in split.val},
            {record.patient for record in split.test},
        )

    every = [parts(number) for number in range(len(found.trials))]
    assert not (tmp_path / "never").exists()
    for shares, val, test in every[1:]:
        assert (val, test) == every[0][1:]
        assert set.union(*shares.values()) == set.union(*every[0][0].values())
    by_kind = {
        kind: [
            shares
            for trial, (shares, _, _) in zip(found.trials, every, strict=True)
            if trial.kind is kind
        ]
        for kind in Kind
    }
    assert [len(shares) for shares in by_kind[Kind.centralized]] == [1, 1]
    for shares in by_kind[Kind.local] + by_kind[Kind.federated]:
        assert shares == by_kind[Kind.federated][0]
    assert found.survey.sites == {n: len(p) for n, p in by_kind[Kind.federated][0].items()}


def test_a_study_without_a_split_is_dealt_out_once_for_all_seeds(
    tmp_path: Path, table_study: Path
) -> None:
    words = ("data=table", f"data.root={table_study}", "federation.num_sites=2", "size=smoke")
    found = planned(tmp_path, *words, "arms=federated", "epsilons=inf", "seeds=1,2,3")
    seen = set()
    for trial in found.trials:
        _, split, shares = dealt(trial.config, tmp_path, bytes(16))
        parts = (split.val, split.test, *shares.values())
        seen.add(tuple(tuple(record.row for record in part) for part in parts))
    assert len(seen) == 1


def test_delta_is_the_same_however_few_train(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found = planned(tmp_path, *tiny)
    assert {trial.config.privacy.delta for trial in found.trials} == {found.survey.delta}


def test_one_hospital_has_nobody_to_average_with(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found = planned(
        tmp_path, *tiny, "strategy=trimmed_mean", "federation.min_sites=2", "partition=size_skew"
    )
    for trial in found.trials:
        if trial.kind is Kind.federated:
            assert trial.config.strategy.name is StrategyName.trimmed_mean
            assert trial.config.federation.min_sites == 2
        else:
            assert trial.config.strategy.name is StrategyName.fedavg
            assert trial.config.strategy.learning_rate == 1.0
            assert trial.config.federation.min_sites == 1
        pooled = trial.kind is Kind.centralized
        kind = PartitionKind.equal if pooled else PartitionKind.size_skew
        assert trial.config.partition.kind is kind


def test_an_optimiser_of_the_server_takes_the_same_steps_for_one_hospital(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    found = planned(
        tmp_path,
        *tiny,
        "strategy=fedadam",
        "strategy.server_learning_rate=0.05",
        "federation.sites_per_round=1",
    )
    for trial in found.trials:
        alone = trial.kind is not Kind.federated
        assert trial.config.federation.sites_per_round == (None if alone else 1)
        assert trial.config.strategy.name is StrategyName.fedadam
        assert trial.config.strategy.learning_rate == 0.05


def test_shared_noise_is_an_arm_and_without_noise_there_is_none_to_share(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    found = planned(
        tmp_path,
        *tiny,
        "federation.steps_per_round=1",
        "training.optimizer=sgd",
        "training.momentum=0",
        "arm.shared=federation.trust=secure_aggregation",
    )
    secure = [trial for trial in found.trials if trial.config.federation.trust is not Trust.local]
    assert [(trial.cell.arm, trial.cell.epsilon) for trial in secure] == [("shared", 8.0)]
    plain = {
        trial.name
        for trial in found.trials
        if trial.cell.arm in ("federated", "shared") and math.isinf(trial.cell.epsilon)
    }
    assert len(plain) == 1  # one trial speaks for both


def test_an_arm_of_the_users_differs_in_what_it_says(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found = planned(
        tmp_path, *tiny, "arms=federated", "arm.slow=training.learning_rate=1e-5", "epsilons=inf"
    )
    plain, slow = found.trials
    assert slow.cell.arm == "slow"
    assert slow.config.learning_rate == 1e-5
    assert plain.config.learning_rate == 1e-3
    assert slow.config.privacy.mechanism is plain.config.privacy.mechanism is Mechanism.none


def test_paths_hold_wherever_a_trial_runs(
    tmp_path: Path, table_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "it's a folder, (really)"
    table_study.rename(odd)
    monkeypatch.chdir(tmp_path)
    found = planned(
        tmp_path / "out", "data=table", "'data.root=\"it's a folder, (really)\"'".strip("'"),
        "federation.num_sites=2", "size=smoke", "epsilons=inf", "arms=federated",
    )  # fmt: skip
    assert found.trials[0].config.data.root == odd
    assert found.trials[0].config.data.cache_dir == tmp_path / "out" / "cache"


def test_paths_start_where_the_command_was_given(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = (*tiny, "epsilons=8", "arms=federated", "data.cache_dir=kept", "seeds=1")
    asked = parse([f"out={tmp_path / 'out'}", *words, 'arm.other="simulation.ledger_dir=books"'])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = type(asked).from_json(asked.to_json())
    first, *_, other = plan(asked, Folder(path=asked.out)).trials
    assert first.config.data.cache_dir == tmp_path / "here" / "kept"
    assert other.config.simulation.ledger_dir == tmp_path / "here" / "books"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("augments=mix", "augment.pool is not set"),
        ("model=resnet", "there are"),
        ("federation.num_sites=500", "federation.num_sites=500"),
        ("arm.a=training.learning_rat=1", "did you mean training.learning_rate"),
    ],
)
def test_bad_settings_are_said_before_anything_runs(
    word: str, says: str, tmp_path: Path, table_study: Path
) -> None:
    with pytest.raises(UsageError) as error:
        planned(tmp_path, "data=table", f"data.root={table_study}", "size=quick", word)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
