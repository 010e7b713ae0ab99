from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import (
    AugmentationConfig,
    AugmentConfig,
    AugmentMode,
    ColumnsConfig,
    Config,
    DataConfig,
    FederationConfig,
    FinetuneConfig,
    GanConfig,
    Job,
    LabelsConfig,
    LateReplies,
    Mechanism,
    ModelConfig,
    PartitionConfig,
    Personal,
    PhantomConfig,
    PrivacyConfig,
    SimulationConfig,
    SiteDpConfig,
    StrategyConfig,
    StrategyName,
    StudyKind,
    TaskKind,
    TrainingConfig,
    VolumeConfig,
)
from common.errors import UsageError

NOT_POSITIVE = (0.0, -1.0, math.inf, math.nan)
OUT_OF_BOUNDS: list[tuple[type[Any], str, str, tuple[Any, ...]]] = [
    (PhantomConfig, "data.phantom.", "num_train_per_site", (1, -5)),
    (PhantomConfig, "data.phantom.", "num_val", (1,)),
    (PhantomConfig, "data.phantom.", "num_test", (1,)),
    (PhantomConfig, "data.phantom.", "size", (15, 513)),
    (DataConfig, "data.", "image_size", (7, 1025)),
    (VolumeConfig, "data.volume.", "depth", (0, 513)),
    (VolumeConfig, "data.volume.", "slice_spacing_mm", (0.0, 51.0, math.nan)),
    (VolumeConfig, "data.volume.", "pixel_spacing_mm", (0.0, 51.0, math.nan)),
    (VolumeConfig, "data.volume.", "window_center", (-10_001.0, 10_001.0, math.nan)),
    (VolumeConfig, "data.volume.", "window_width", (0.0, 20_001.0, math.nan)),
    (DataConfig, "data.", "val_fraction", (0.0, 0.5, -0.1, math.nan)),
    (DataConfig, "data.", "test_fraction", (0.0, 0.5, -0.1, math.nan)),
    (DataConfig, "data.", "split_seed", (-1,)),
    (PhantomConfig, "data.phantom.", "num_hospitals", (0,)),
    (PrivacyConfig, "privacy.", "epsilon", NOT_POSITIVE),
    (PrivacyConfig, "privacy.", "noise_multiplier", NOT_POSITIVE),
    (PrivacyConfig, "privacy.", "budget", (0.0, -1.0, -math.inf, math.nan)),
    (PrivacyConfig, "privacy.", "max_grad_norm", NOT_POSITIVE),
    (PrivacyConfig, "privacy.", "delta", (0.0, 1.0, -1e-5, math.nan)),
    (PrivacyConfig, "privacy.", "sampling_rate", (0.0, 1.01, -0.1, math.nan)),
    (PrivacyConfig, "privacy.", "images_per_patient", (0,)),
    (
        PrivacyConfig,
        "privacy.",
        "site_budgets",
        (["a"], [":3"], ["a:"], ["a:b"], ["a:-1"], ["a:inf"]),
    ),
    (FederationConfig, "federation.", "num_sites", (0,)),
    (FederationConfig, "federation.", "rounds", (0,)),
    (FederationConfig, "federation.", "steps_per_round", (0,)),
    (FederationConfig, "federation.", "timeout_seconds", NOT_POSITIVE),
    (FederationConfig, "federation.", "wait_seconds", NOT_POSITIVE),
    (FederationConfig, "federation.", "min_sites", (0, 4)),
    (FederationConfig, "federation.", "sites_per_round", (0, 4)),
    (FederationConfig, "federation.", "min_patient_share", (-0.1, 1.1, math.nan)),
    (FederationConfig, "federation.", "retries", (-1,)),
    (FederationConfig, "federation.", "retry_seconds", (-1.0, math.inf, math.nan)),
    (FederationConfig, "federation.", "evaluate_every", (0,)),
    (FederationConfig, "federation.", "max_dropouts", (-1, 1)),
    (FederationConfig, "federation.", "max_colluders", (-1, 1)),
    (StrategyConfig, "strategy.", "server_learning_rate", NOT_POSITIVE),
    (StrategyConfig, "strategy.", "server_momentum", (-0.1, 1.0, math.nan)),
    (StrategyConfig, "strategy.", "beta_1", (-0.1, 1.0, math.nan)),
    (StrategyConfig, "strategy.", "beta_2", (-0.1, 1.0, math.nan)),
    (StrategyConfig, "strategy.", "tau", NOT_POSITIVE),
    (StrategyConfig, "strategy.", "proximal_mu", (-0.1, math.inf, math.nan)),
    (StrategyConfig, "strategy.", "trim", (-0.1, 0.5, math.nan)),
    (StrategyConfig, "strategy.", "num_malicious", (-1,)),
    (StrategyConfig, "strategy.", "local_steps_after", (-1,)),
    (SiteDpConfig, "strategy.site_dp.", "noise_multiplier", NOT_POSITIVE),
    (SiteDpConfig, "strategy.site_dp.", "clip_norm", NOT_POSITIVE),
    (SiteDpConfig, "strategy.site_dp.", "delta", (0.0, 1.0, math.nan)),
    (TrainingConfig, "training.", "learning_rate", NOT_POSITIVE),
    (TrainingConfig, "training.", "optimizer", ("rmsprop", "")),
    (TrainingConfig, "training.", "momentum", (-0.1, 1.0, math.nan, 0.5)),  # adam takes none
    (TrainingConfig, "training.", "physical_batch", (0,)),
    (TrainingConfig, "training.", "memory_gb", NOT_POSITIVE),
    (TrainingConfig, "training.", "augmentation_multiplicity", (0,)),
    (FinetuneConfig, "finetune.", "rank", (0,)),
    (FinetuneConfig, "finetune.", "blocks", (0,)),
    (PartitionConfig, "partition.", "alpha", NOT_POSITIVE),
    (PartitionConfig, "partition.", "seed", (-1,)),
    (PartitionConfig, "partition.", "ratio", (0.99, math.inf, math.nan)),
    (AugmentationConfig, "training.augmentation.", "rotation_degrees", (-1.0, 181.0, math.nan)),
    (AugmentationConfig, "training.augmentation.", "shift", (-0.1, 0.51, math.nan)),
    (AugmentationConfig, "training.augmentation.", "scale", (-0.1, 0.51, math.nan)),
    (AugmentationConfig, "training.augmentation.", "brightness", (-0.1, 1.1, math.nan)),
    (AugmentationConfig, "training.augmentation.", "contrast", (-0.1, 0.91, math.nan)),
    (AugmentConfig, "augment.", "ratio", NOT_POSITIVE),
    (AugmentConfig, "augment.", "learning_rate", NOT_POSITIVE),
    (AugmentConfig, "augment.", "epochs", (0,)),
    (AugmentConfig, "augment.", "batch_size", (0,)),
    (GanConfig, "gan.", "num_images", (0,)),
    (GanConfig, "gan.", "width", (0.0, 4.1, math.nan)),
    (GanConfig, "gan.", "loss", ("wasserstein", "")),
    (GanConfig, "gan.", "steps_per_generator_step", (0,)),
    (GanConfig, "gan.", "generator_learning_rate", (0.0, 1.0, math.nan)),
    (GanConfig, "gan.", "generator_batch", (0,)),
    (GanConfig, "gan.", "ema", (-0.1, 1.0, math.nan)),
    (GanConfig, "gan.", "detail", (1, 129)),
    (GanConfig, "gan.", "texture", (-1, 9)),
    (SimulationConfig, "simulation.", "cpus_per_site", NOT_POSITIVE),
    (SimulationConfig, "simulation.", "gpus_per_site", (-0.5, math.nan)),
    (SimulationConfig, "simulation.", "open_sites", (0,)),
    (SimulationConfig, "simulation.", "noise_seed", (-1,)),
]


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        pytest.param(group, prefix + name, value, id=f"{prefix}{name}={value}")
        for group, prefix, name, values in OUT_OF_BOUNDS
        for value in values
    ],
)
def test_a_value_out_of_bounds_is_named_in_one_line(
    group: type[Any], name: str, value: object
) -> None:
    with pytest.raises(UsageError) as caught:
        group(**{name.rpartition(".")[2]: value})
    text = str(caught.value)
    assert text.startswith(name)
    assert "\n" not in text
    assert ": " in text  # what to do about it


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (PhantomConfig, {"num_train_per_site": 2, "num_val": 2, "num_test": 2, "size": 16}),
        (PhantomConfig, {"size": 512}),
        (DataConfig, {"image_size": 8}),
        (DataConfig, {"image_size": 1024, "val_fraction": 0.49, "test_fraction": 1e-9}),
        (PrivacyConfig, {"sampling_rate": 1.0, "images_per_patient": 1, "delta": 0.999}),
        (FederationConfig, {"num_sites": 1, "rounds": 1, "steps_per_round": 1}),
        (TrainingConfig, {"optimizer": "sgd", "physical_batch": 1, "momentum": 0.999}),
        (TrainingConfig, {"optimizer": "adam", "momentum": 0.0}),
        (SimulationConfig, {"gpus_per_site": 0.0, "cpus_per_site": 0.1}),
    ],
)
def test_values_at_the_bounds_are_taken(group: type[Any], values: dict[str, Any]) -> None:
    taken = group(**values)
    assert {name: getattr(taken, name) for name in values} == values


def test_no_bounded_number_is_forgotten() -> None:
    """Every number of the configuration has a line in the table above, or any value will do."""
    bounded = {prefix + name for _, prefix, name, _ in OUT_OF_BOUNDS}
    any_value = {"seed", "data.phantom.seed", "model.patch_size", "model.window_size"}
    any_value.add("data.columns.bins")  # a list of edges, which a test of its own looks at

    def numbers(group: Any, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                found |= numbers(value, f"{prefix}{field.name}.")
            elif "int" in str(field.type) or "float" in str(field.type):
                found.add(prefix + field.name)
        return found

    assert numbers(Config()) <= bounded | any_value


def test_a_table_study_needs_its_folder() -> None:
    with pytest.raises(UsageError, match=r"data\.root is not set"):
        DataConfig(kind=StudyKind.table)
    assert DataConfig(kind=StudyKind.table, root=Path("x")).root == Path("x")


def test_initial_weights_need_a_word_on_why_they_are_public() -> None:
    for word in (None, ""):
        with pytest.raises(UsageError, match=r"model\.weights_public is not set"):
            ModelConfig(weights=Path("w"), weights_public=word)
    assert ModelConfig(weights=Path("w"), weights_public="ImageNet").weights == Path("w")


def test_private_training_needs_a_noise() -> None:
    with pytest.raises(UsageError, match="both unset"):
        PrivacyConfig(epsilon=None)
    assert not PrivacyConfig(epsilon=None, mechanism=Mechanism.none).private
    assert PrivacyConfig(epsilon=None, noise_multiplier=1.0).epsilon_target is None


caps = st.none() | st.floats(0.1, 100)


@given(site=caps, budget=caps, epsilon=st.floats(0.1, 100), noise=caps)
def test_the_nearest_cap_wins(
    site: float | None, budget: float | None, epsilon: float, noise: float | None
) -> None:
    privacy = PrivacyConfig(
        epsilon=epsilon,
        noise_multiplier=noise,
        budget=budget,
        site_budgets=[] if site is None else [f"a:{site!r}"],
    )
    target = epsilon if noise is None else math.inf
    everywhere = target if budget is None else budget
    assert privacy.budget_of("a") == (everywhere if site is None else site)
    assert privacy.budget_of("b") == everywhere


def test_without_privacy_nothing_is_capped() -> None:
    privacy = PrivacyConfig(mechanism=Mechanism.none, budget=3.0, site_budgets=["a:1"])
    assert privacy.budget_of("a") == privacy.budget_of("b") == math.inf
    assert privacy.epsilon_target is None


def test_a_site_name_may_hold_a_colon() -> None:
    assert PrivacyConfig(site_budgets=["ward:7:2.5"]).caps() == {"ward:7": 2.5}


@pytest.mark.parametrize("edges", [[], [30, 30], [60, 30], [0, math.inf], ["a"]])
def test_edges_of_groups_are_numbers_that_rise(edges: list[Any]) -> None:
    groups = {"age": "Patient Age"}
    with pytest.raises(UsageError, match=r"data\.columns\.bins\.age=.* must be finite numbers"):
        ColumnsConfig(groups=groups, bins={"age": edges})
    assert ColumnsConfig(groups=groups, bins={"age": [0, 30.5]}).bins == {"age": [0, 30.5]}


def test_bins_of_no_group_are_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.columns\.bins=age: not in data\.columns\.groups"):
        ColumnsConfig(bins={"age": [30]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"separator": ""}, "data.labels.separator=''"),
        ({"columns": ["a"]}, "kind=multilabel only"),
        ({"kind": TaskKind.multilabel, "columns": ["a"], "names": ["b", "c"]}, "2 names for 1"),
    ],
)
def test_labels_that_contradict_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LabelsConfig(**values)
    assert message in str(caught.value)


def test_one_spacing_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="set both or none"):
        VolumeConfig(slice_spacing_mm=1.0)


def test_only_a_public_study_may_do_without_patients() -> None:
    columns = ColumnsConfig(patient=None)
    with pytest.raises(UsageError, match=r"data\.columns\.patient=null: only a public study"):
        DataConfig(columns=columns)
    assert DataConfig(columns=columns, public="drawn by a program").columns.patient is None


@pytest.mark.parametrize(
    ("strategy", "federation", "training", "remedy"),
    [
        ({"name": StrategyName.fedadam}, {"late_replies": LateReplies.use}, {}, "discard"),
        ({"name": StrategyName.krum}, {"min_sites": 2}, {}, "min_sites=3"),
        ({"name": StrategyName.krum, "num_malicious": 1}, {"min_sites": 3}, {}, "min_sites=5"),
        ({"name": StrategyName.scaffold}, {}, {"optimizer": "adam"}, "optimizer=sgd"),
        (
            {"name": StrategyName.scaffold},
            {},
            {"optimizer": "sgd", "momentum": 0.9},
            r"without momentum; set .*training\.momentum=0",
        ),
    ],
)
def test_a_strategy_that_cannot_do_what_is_asked_is_refused(
    strategy: dict[str, Any], federation: dict[str, Any], training: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(UsageError, match=remedy):
        Config(
            strategy=StrategyConfig(**strategy),
            federation=FederationConfig(**federation),
            training=TrainingConfig(**training),
        )


@pytest.mark.parametrize(
    "no_training",
    [
        {"job": Job.synthesize},
        {"augment": AugmentConfig(mode=AugmentMode.pretrain, pool=Path("pool"))},
    ],
    ids=["generator", "pretrain"],
)
def test_where_no_hospital_trains_none_trains_on(no_training: dict[str, Any]) -> None:
    strategy = StrategyConfig(local_steps_after=3)
    assert Config(strategy=strategy).strategy.local_steps_after == 3
    with pytest.raises(UsageError, match=r"strategy\.local_steps_after=3: no hospital"):
        Config(strategy=strategy, **no_training)


@pytest.mark.parametrize(
    "name", [StrategyName.fedmedian, StrategyName.trimmed_mean, StrategyName.krum]
)
def test_noise_for_a_mean_is_refused_where_there_is_none(name: StrategyName) -> None:
    with pytest.raises(UsageError, match=f"{name.value} is none"):
        StrategyConfig(name=name, site_dp=SiteDpConfig(noise_multiplier=1.0))


def test_approved_sites_are_named_once() -> None:
    with pytest.raises(UsageError, match=r"federation\.sites"):
        FederationConfig(sites=["a", "b", "a"])
    with pytest.raises(UsageError, match=r"federation\.min_sites=3: at most the 2"):
        FederationConfig(sites=["a", "b"], min_sites=3)


@pytest.mark.parametrize(
    "strategy", [{"name": StrategyName.fedprox}, {"personal": Personal.norms}], ids=str
)
def test_a_generator_is_trained_without_what_only_classifiers_have(
    strategy: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match="a generator is trained without"):
        Config(job=Job.synthesize, strategy=StrategyConfig(**strategy))


def test_seeds_of_split_and_partition_are_the_runs_unless_they_are_set() -> None:
    config = Config(seed=5)
    assert (config.split_seed, config.partition_seed) == (5, 5)
    config = Config(seed=5, data=DataConfig(split_seed=0), partition=PartitionConfig(seed=7))
    assert (config.split_seed, config.partition_seed) == (0, 7)
