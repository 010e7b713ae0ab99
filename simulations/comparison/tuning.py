"""Before anything is compared: every candidate setting is tried in every arm, and one chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import configs
from common.config import Config, StudyKind, TunedOn
from common.errors import FedwardError, UsageError
from common.privacy.events import Event
from common.provenance import Provenance, combined
from simulations.comparison.folder import Folder
from simulations.comparison.measured import read_result
from simulations.comparison.plan import Cell, Chosen, Plan, Trial, plan
from simulations.comparison.request import Request
from simulations.comparison.search import Search
from simulations.report.page import flattened

# Of the compared study, or of no study.
_LEFT = ("data", "partition", "run_dir", "resume", "job", "title", "seed", "gan", "augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Settings, and how well an arm did with them at one epsilon.

    Attributes:
        words: the settings.
        auroc: on validation patients after the last round, the mean over hospitals alone;
            ``None`` without one.
        trials: the runs behind it.
    """

    words: tuple[str, ...]
    auroc: float | None
    trials: tuple[Trial, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What an arm was offered at one epsilon, and took: the first of the best."""

    arm: str
    epsilon: float
    candidates: tuple[Candidate, ...]

    @property
    def taken(self) -> Candidate:
        """The best on validation patients."""
        return max(self.candidates, key=lambda one: -math.inf if one.auroc is None else one.auroc)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """A search that is done.

    Attributes:
        search: what was asked for.
        study: whose patients decided.
        plan: of the first candidate: who these patients are.
        choices: of each arm at each epsilon.
        folder: where its runs lie.
    """

    search: Search
    study: Config = field(repr=False)
    plan: Plan = field(repr=False)
    folder: Folder
    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> Chosen:
        """As `plan` takes it."""
        return Chosen(
            on=TunedOn.private if self.search.private else TunedOn.public,
            words={(one.arm, one.epsilon): one.taken.words for one in self.choices},
        )

    def epsilon(
        self, cell: Cell, result: Mapping[str, Any], of: Callable[[Event], Event] = lambda e: e
    ) -> float:
        """What a run cost its patients together with the runs that chose its settings.

        ``of`` says what each release is taken for, such as `common.privacy.events.alone`.

        Exact composition by hospital of everything that was released: the run's own result is one
        more of them.
        """
        made = [result["provenance"]]
        if self.search.private:
            made += [
                read_result(self.folder.finished(trial.name))["provenance"]
                for trial in self._tried(cell)
            ]
        return _together(map(Provenance.from_dict, made), of)

    def _tried(self, cell: Cell) -> Iterator[Trial]:
        for choice in self.choices:
            if (choice.arm, choice.epsilon) == (cell.arm, cell.epsilon):
                for candidate in choice.candidates:
                    yield from candidate.trials

    def to_dict(self) -> dict[str, Any]:
        """As ``comparison.json`` has it."""
        survey, data = self.plan.survey, self.study.data
        return {
            "on": self.chosen.on.value,
            "study": data.name,
            "public": None if self.search.private else _public(self.study),
            "num_train_patients": sum(survey.sites.values()),
            "num_sites": len(survey.sites),
            "values": {name: list(some) for name, some in self.search.values.items()},
            "num_candidates": len(self.search.candidates()),
            "seed": self.plan.trials[0].seed,
            "choices": [
                {
                    "arm": one.arm,
                    "epsilon": one.epsilon if math.isfinite(one.epsilon) else None,
                    "taken": list(one.taken.words),
                    "auroc": one.taken.auroc,
                    "candidates": [
                        {"settings": list(each.words), "auroc": each.auroc}
                        for each in one.candidates
                    ],
                }
                for one in self.choices
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """The trials of a search: a plan for each candidate."""

    search: Search
    plans: tuple[Plan, ...]

    @classmethod
    def of(cls, request: Request, search: Search, folder: Folder) -> SearchPlan:
        """Every arm at every epsilon with every candidate, once, without synthetic images.

        Raises:
            UsageError: a setting is wrong, or the study that decides cannot be read or is not
                public.
        """
        shared = (*_carried(request), *search.on) if search.on else request.overrides
        plans = tuple(
            plan(
                replace(
                    request,
                    overrides=(*shared, *words),
                    augments=("none",),
                    seeds=request.seeds[:1],
                    search=None,
                ),
                folder,
            )
            for words in search.candidates()
        )
        if not search.private and _public(plans[0].config) is None:
            raise UsageError(
                f"tune_on: nothing says that {plans[0].config.data.name} is public; say why by "
                "data.public=REASON in tune_on, or use tune_on=private, which costs"
            )
        return cls(search=search, plans=plans)

    @property
    def trials(self) -> dict[str, Trial]:
        """By name; candidates that an arm's own settings make alike are one trial."""
        return {trial.name: trial for one in self.plans for trial in one.trials}

    def choose(self, folder: Folder, problems: Mapping[str, str]) -> Tuning:
        """Read what the candidates have reached.

        Raises:
            FedwardError: a trial has no result: candidates would not have been treated alike.
        """
        for name, trial in self.trials.items():
            if not folder.finished(name).result.is_file():
                raise FedwardError(
                    f"the search for settings is not whole: {trial.title} has no result "
                    f"({problems.get(name, 'unknown')}); the same command tries it again"
                )
        cells = list(dict.fromkeys(trial.cell for trial in self.plans[0].trials))
        choices = [
            Choice(
                arm=cell.arm,
                epsilon=cell.epsilon,
                candidates=tuple(self._candidates(cell, folder)),
            )
            for cell in cells
        ]
        return Tuning(
            search=self.search,
            study=self.plans[0].config,
            plan=self.plans[0],
            choices=tuple(choices),
            folder=folder,
        )

    def _candidates(self, cell: Cell, folder: Folder) -> Iterator[Candidate]:
        for words, planned in zip(self.search.candidates(), self.plans, strict=True):
            trials = tuple(trial for trial in planned.trials if trial.cell == cell)
            reached = [_validation(read_result(folder.finished(one.name))) for one in trials]
            told = [auroc for auroc in reached if auroc is not None]
            auroc = float(np.mean(told)) if len(told) == len(reached) else None
            yield Candidate(words=words, auroc=auroc, trials=trials)


def _validation(result: Mapping[str, Any]) -> float | None:
    """AUROC on validation patients of the model after the last round that changed it."""
    looked_at = [record["evaluation"] for record in result["rounds"] if record["evaluation"]]
    return looked_at[-1]["auroc"] if looked_at else None


def _together(made: Iterable[Provenance], of: Callable[[Event], Event]) -> float:
    """Trials have ledgers of their own, each with its own name for the same patients."""

    def renamed(one: Provenance) -> Provenance:
        charges = [
            replace(each, cohort=each.site, events=tuple(map(of, each.events)))
            for each in one.charges
        ]
        return replace(one, charges=tuple(charges))

    return combined([renamed(one) for one in made]).epsilon


def _public(config: Config) -> str | None:
    if config.data.kind is StudyKind.phantom:
        return "generated phantoms, nobody's images"
    return config.data.public


def _carried(request: Request) -> tuple[str, ...]:
    """The comparison's settings beside its study, spelled out: those that are not the default."""
    asked, plain = (
        dict(flattened(configs.to_dict(configs.load(words)))) for words in (request.overrides, ())
    )
    names = [name for name in asked if name.partition(".")[0] not in _LEFT]
    return tuple(
        f"{name}={_literal(asked[name])}"
        for name in ("data.image_size", *names)
        if asked[name] != plain[name]
    )


def _literal(value: object) -> str:
    """As Hydra reads it back.

    >>> _literal(None), _literal(True), _literal(["a b"])
    ('null', 'true', "['a b']")
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace("'", "\\'")
        return f"'{escaped}'"
    return json.dumps(value)
