from __future__ import annotations

import dataclasses
import logging
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import configs
from common.config import (
    AugmentMode,
    Config,
    FinetuneMode,
    GeneratorKind,
    Mechanism,
    PartitionKind,
    StrategyName,
    StudyKind,
)
from common.errors import UsageError

GROUPS = ("data", "privacy", "partition", "strategy", "model", "finetune", "augment", "experiment")
NEEDED = (
    "data.root=study",
    "partition.by=sex",
    "augment.pool=images",
)  # some choices cannot do without


def choices(group: str) -> list[str]:
    folder = files("configs") / group
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def run(*arguments: str) -> tuple[int, list[Config]]:
    seen: list[Config] = []

    def task(config: Config) -> int:
        seen.append(config)
        return 0

    return configs.run(task, arguments, program="fedward simulate"), seen


def names(value: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        name = prefix + field.name
        found += names(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [name]
    return found


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_composes(group: str, choice: str) -> None:
    config = configs.load([f"{group}={choice}", *NEEDED])
    match group:
        case "data":
            assert config.data.name == choice
        case "privacy":
            assert config.privacy.mechanism is Mechanism[choice]
        case "partition":
            assert config.partition.kind is PartitionKind[choice]
        case "strategy":
            assert config.strategy.name is StrategyName[choice]
        case "model":
            assert config.model.name == choice
            assert set(choice.split("_")) <= set(config.model.architecture.split("_"))
        case "finetune":
            assert config.finetune.mode is FinetuneMode[choice]
        case "augment":
            assert config.augment.mode is AugmentMode[choice]
        case _:
            assert config.title == choice


def test_every_folder_of_choices_is_tried() -> None:
    folder = Path(str(files("configs")))
    there = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert {*GROUPS, "gan"} == there


@pytest.mark.parametrize("kind", choices("gan"))
def test_every_generator_composes(kind: str) -> None:
    config = configs.load([f"gan={kind}"], primary="synthesize")
    assert config.gan.kind is GeneratorKind[kind]
    assert config.title == "synthesis"
    assert (config.federation.rounds == 1) == (kind == "moments")


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.columns.groups={sex: Sex}", "data.columns.groups.age=Age"),
        ("+data.columns.groups={sex: Sex}", "++data.columns.groups.age=Age"),
    ],
)
def test_tables_of_own_names_take_new_ones(overrides: tuple[str, ...]) -> None:
    words = (*overrides, "data.labels.values={No Finding: '', MALIGNANT: 1}")
    config = configs.load(words)
    assert config.data.columns.groups == {"sex": "Sex", "age": "Age"}
    assert config.data.labels.values == {"No Finding": "", "MALIGNANT": "1"}
    assert run(*words)[1] == [config]


def test_an_experiment_of_real_data_needs_only_its_folder() -> None:
    config = configs.load(["experiment=cbis_masses", "data.root=x"])
    assert (config.data.kind, config.data.root) == (StudyKind.table, Path("x"))
    assert config.data.columns.label == "malignant"
    assert config.federation.num_sites == 5
    assert (
        configs.load(
            ["experiment=cbis_masses", "data.root=x", "federation.num_sites=4"]
        ).federation.num_sites
        == 4
    )


def test_overrides_reach_the_dataclasses() -> None:
    config = configs.load(
        ["privacy.epsilon=3", "seed=7", "privacy.site_budgets=[hospital-1:2.5]", "run_dir=a/b"]
    )
    assert (config.privacy.epsilon, config.seed) == (3.0, 7)
    assert config.privacy.budget_of("hospital-1") == 2.5
    assert config.run_dir == Path("a/b")


BAD = [
    ("privacy.epsilom=3", r"privacy\.epsilom: no such setting; did you mean privacy\.epsilon\?"),
    ("federation.num_site=3", r"did you mean federation\.num_sites\?"),
    ("zzzzzzzz=1", "zzzzzzzz: no such setting"),
    ("+privacy.epsilom=3", r"privacy\.epsilom: no such setting; did you mean privacy\.epsilon\?"),
    ("++other=3", "other: no such setting"),
    ("privacy=dpsgd", "privacy=dpsgd: no such choice; there are dp_sgd, none"),
    ("model=resnet", "model=resnet: no such choice; there are .*swin_tiny, .*vit_tiny"),
    ("experiment=x", "experiment=x: no such choice; there are .*cbis_masses, .*demo"),
    ("privacy.epsilon=abc", r"privacy\.epsilon=abc: .*'abc'.* Float"),
    ("federation.rounds=1.5", r"federation\.rounds=1\.5: .*Integer"),
    ("data.kind=other", r"data\.kind=other: .*phantom, table"),
    ("privacy.unit=null", r"privacy\.unit=null: .*not Optional"),
    ("privacy.epsilon=0", r"privacy\.epsilon=0\.0: must be a finite number above 0"),
    ("privacy.epsilon=[1", "no viable alternative|extraneous|mismatched"),
    ("privacy.epsilon", "missing EQUAL"),
    ("data.root=${nowhere}", "nowhere"),
    ("data.root=Mär z", "data.root=Mär z: quote this value"),
    ("data=table", r"data\.root is not set"),
]


@pytest.mark.parametrize(("override", "text"), BAD)
def test_bad_input_is_one_line(
    override: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=text) as loaded:
        configs.load([override])
    with pytest.raises(UsageError, match=text) as ran:
        run(override)
    for caught in (loaded, ran):
        assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [("--nope",), ("--cfg", "nope"), ("--multirun", "--cfg", "job"), ("seed=1", "--nope"), ("-c",)],
)
def test_bad_flags_are_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cfg", "job", "seed=5"),
        ("seed=5", "--cfg", "job"),
        ("-c", "job", "seed=5", "privacy=none"),
    ],
)
def test_cfg_job_prints_what_read_yaml_reads(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == (0, [])
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    config = configs.read_yaml(path)
    assert config.seed == 5
    assert config == configs.load([word for word in arguments if "=" in word])


def test_help_lists_every_setting_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == (0, [])
    text = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group}: {', '.join(choices(group))}" in text
    missing = [
        n
        for n in names(Config())
        if f" {n.rpartition('.')[2]}:" not in f" {text}".replace("\n", " ")
    ]
    assert not missing
    assert "fedward simulate" in text


def test_one_run_gets_the_configuration() -> None:
    code, seen = run("seed=9", "run_dir=x")
    assert code == 0
    assert seen == [configs.load(["seed=9", "run_dir=x"])]


@pytest.mark.parametrize("flag_first", [True, False])
def test_a_multirun_gives_each_job_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag_first: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["seed=1,2", "privacy.epsilon=3,4", "run_dir=out"]
    code, seen = run(*(["-m", *words] if flag_first else [*words, "--multirun"]))
    assert code == 0
    assert [(config.seed, config.privacy.epsilon) for config in seen] == [
        (1, 3.0),
        (1, 4.0),
        (2, 3.0),
        (2, 4.0),
    ]
    assert [config.run_dir for config in seen] == [Path("out") / str(n) for n in range(4)]
    assert not list(tmp_path.iterdir())


def test_the_largest_exit_code_counts() -> None:
    codes = iter([0, 2, 1])
    ended = configs.run(lambda config: next(codes), ["-m", "seed=1,2,3"], program="p")
    assert ended == 2
    assert not list(codes)


def test_a_defect_of_the_task_is_not_called_bad_input() -> None:
    def task(config: Config) -> int:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect") as caught:
        configs.run(task, ["seed=1"], program="p")
    assert not isinstance(caught.value, UsageError)


def test_the_process_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (list(sys.argv), dict(os.environ))
    run("seed=1")
    with pytest.raises(UsageError):
        run("seed=x")
    assert (sys.argv, dict(os.environ)) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_a_stored_configuration_is_read_back(experiment: str, tmp_path: Path) -> None:
    config = configs.load(
        [
            f"experiment={experiment}",
            "data.root='a folder/ä'",
            "privacy.budget=3.5",
            "privacy.site_budgets=[hospital-1:2.5]",
            "data.public='yes: # \"it\" is'",
            "run_dir=${data.root}/x",
            "privacy.delta=1e-7",
        ]
    )
    path = tmp_path / "config.yaml"
    path.write_text(configs.dump_yaml(config))
    assert configs.read_yaml(path) == config
    plain = configs.to_dict(config)
    assert plain["data"]["root"] == "a folder/ä"
    assert plain["run_dir"] == "a folder/ä/x"
    assert plain["privacy"]["mechanism"] == "dp_sgd"
    assert plain["privacy"]["delta"] == 1e-7


@pytest.mark.parametrize(
    "text",
    ["", "seed: 1\n", None, "new: 1\n", "- 1\n", "seed: x\n", "a: [\n", "data: {kind: table}\n"],
)
def test_a_strange_file_is_not_a_configuration(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    if text in {"", "seed: 1\n"}:
        assert configs.read_yaml(path).title == "demo"  # defaults fill what is absent
        return
    with pytest.raises(UsageError) as caught:
        configs.read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ([], 1e-3),
        (["finetune=head"], 2.0),
        (["finetune=head", "privacy=none"], 0.2),
        (["finetune=head", "privacy=none", "training.learning_rate=2.0"], 2.0),
        (["finetune=head", "training.learning_rate=0.5"], 0.5),
        (["finetune=head", "training.optimizer=adam"], 1e-3),
        (["finetune=lora", "training.optimizer=sgd"], 1e-3),
    ],
)
def test_learning_rate_follows_the_optimiser_and_the_clipping(
    overrides: list[str], rate: float
) -> None:
    assert configs.load([*overrides, "experiment=demo"]).learning_rate == rate


def test_a_run_leaves_the_loggers_of_its_process_alone() -> None:
    """Warnings of a run that Hydra began must be seen."""
    log, handler = logging.getLogger("fedward.client"), logging.NullHandler()
    root, level = logging.getLogger(), logging.getLogger().level
    log.addHandler(handler)
    try:
        assert run("seed=3")[0] == 0
        assert (root.level, log.disabled, log.isEnabledFor(logging.WARNING)) == (level, False, True)
        assert log.handlers == [handler]
    finally:
        log.removeHandler(handler)
