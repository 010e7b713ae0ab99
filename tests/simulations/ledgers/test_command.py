from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from common.config import Unit
from common.privacy.book import LedgerBook
from common.privacy.budget import Budget
from common.privacy.chain import dump_events
from common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
    patient_level,
)
from common.privacy.ledger import Ledger
from common.privacy.verification import verify
from simulations.cli import main
from simulations.ledgers import reading
from simulations.ledgers.view import rounded_up

BUDGET = Budget(epsilon=6.0, delta=1e-5)
STEPS = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.5, steps=5)
RELEASE = GaussianRelease(noise_multiplier=20.0)
PATIENTS = ("patient-a", "patient-b", "patient-c")


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def ledgers(self) -> list[dict[str, Any]]:
        fields = json.loads(self.out)
        assert fields["schema"] == "fedward.ledger/1"
        return fields["ledgers"]


class Command:
    """``fedward ledger`` in this process; every call must leave every file as it was."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys

    def __call__(self, *arguments: object, wrote: str | None = None) -> Said:
        before = hashes(self.folder)
        words = ["fedward", "ledger", *map(str, arguments)]
        self._monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        after = hashes(self.folder)
        assert set(after) - set(before) == ({wrote} if wrote else set())
        assert {name: digest for name, digest in after.items() if name != wrote} == before
        out, err = self._capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, out, err)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("COLUMNS", "200")
    return Command(tmp_path, monkeypatch, capsys)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Two trainings, one release given back, one training left open."""
    path = tmp_path / "ledger" / "north.sqlite"
    with Ledger.open(path, cohort="c" * 64) as book:
        for number in (1, 2):
            charge(book, f"run/{number}/train", STEPS)
        book.reserve(request_id="quantile", events=[RELEASE], purpose="metrics", budget=BUDGET)
        book.abandon("quantile", "no data was read")
        book.reserve(request_id="run/3/train", events=[STEPS], purpose="train", budget=BUDGET)
    return path


def charge(book: Any, request_id: str, event: Any, budget: Budget = BUDGET) -> None:
    book.reserve(request_id=request_id, events=[event], purpose="train", budget=budget)
    book.commit(request_id)


def test_show_tells_each_request_and_the_total(command: Command, ledger: Path) -> None:
    said = command("show", ledger)
    assert said.code == 0, said.err
    for words in ("run/1/train", "quantile", "abandoned", "reserved", "noise multiplier 1.5"):
        assert words in said.out
    spent = BUDGET.spent([STEPS] * 3)
    total = next(line for line in said.out.splitlines() if line.startswith("total: "))
    shown = float(total.split("epsilon ")[1].split(",")[0])
    assert 0 <= shown - spent < 0.0011
    for words in ("delta 1e-05", "unit patient", "accountant pld", "adjacency zero-out", "cap 6"):
        assert words in total
    assert "4 requests, 1 of them open" in total


def test_show_as_json_has_epsilon_after_each_request(command: Command, ledger: Path) -> None:
    (found,) = command("show", ledger.parent, "--json").ledgers
    assert found["name"] == "north"
    assert [one["state"] for one in found["requests"]] == [
        "committed", "committed", "abandoned", "reserved",
    ]  # fmt: skip
    expected = [BUDGET.spent([STEPS] * count) for count in (1, 2, 2, 3)]
    assert [one["epsilon"] for one in found["requests"]] == expected
    assert (found["epsilon"], found["private"]) == (expected[-1], True)
    assert (found["epsilon_budget"], found["delta"], found["num_open"]) == (6.0, 1e-5, 1)
    assert found["requests"][3]["closed"] is None
    assert found["requests"][0]["time"] <= found["requests"][0]["closed"]
    (recent,) = command("show", ledger, "--json", "--last", 1).ledgers
    assert recent["requests"] == found["requests"][-1:]
    (rdp,) = command("show", ledger, "--json", "--accountant", "rdp", "--delta", "1e-4").ledgers
    by_rdp = Budget(epsilon=6.0, delta=1e-4, accountant="rdp")
    assert rdp["epsilon"] == by_rdp.spent([STEPS] * 3)


def test_an_infinite_epsilon_is_null_and_said_in_words(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "open.sqlite"
    uncapped = Budget(epsilon=float("inf"), delta=1e-5)
    with Ledger.open(path, cohort="c") as book:
        charge(book, "r", STEPS, uncapped)
        charge(book, "s", NonPrivateRelease(reason="a [red]public[/] study\x1b[31m"), uncapped)
    (found,) = command("show", path, "--json").ledgers
    assert (found["epsilon"], found["private"], found["epsilon_budget"]) == (None, False, None)
    assert found["requests"][0]["epsilon"] is not None
    said = command("show", path)
    assert "NOT private" in said.out
    assert "no cap" in said.out
    assert "\x1b[31m" not in said.out


def test_image_level_ledgers_tell_the_patient_level(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "images.sqlite"
    by_image = Budget(epsilon=9.0, delta=1e-5, unit=Unit.image)
    with Ledger.open(path, cohort="c", unit=Unit.image, images_per_patient=3) as book:
        charge(book, "r", STEPS, by_image)
        statement = book.statement(by_image)
    (found,) = command("show", path, "--json").ledgers
    assert found["epsilon"] == statement.epsilon
    assert found["epsilon_patient"] == by_image.spent([patient_level(STEPS, 3)]) > statement.epsilon
    assert "patient level" in command("show", path).out


def test_all_commands_work_while_the_ledger_is_in_use(command: Command, ledger: Path) -> None:
    with Ledger.open(ledger, cohort="c" * 64) as book:
        charge(book, "run/4/train", STEPS)
        assert Path(f"{ledger}-wal").stat().st_size > 0
        (found,) = command("show", ledger, "--json").ledgers
        assert found["requests"][-1]["request_id"] == "run/4/train"
        for words in (("verify", ledger), ("forecast", ledger), ("export", ledger)):
            assert command(*words).code == 0
        charge(book, "run/5/train", STEPS)
    (found,) = command("show", ledger, "--json").ledgers
    assert found["num_requests"] == 6


def test_a_row_written_between_two_files_is_not_half_seen(
    command: Command, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading._content
    with Ledger.open(ledger, cohort="c" * 64) as book:

        def read_and_write(path: Path) -> bytes | None:
            content = read(path)
            if path.name.endswith("-wal") and (number := len(book.entries()) - 4) < 2:
                charge(book, f"late {number}", RELEASE)
            return content

        monkeypatch.setattr(reading, "_content", read_and_write)
        with reading._copy(ledger) as copy:
            found = verify(copy, public_key=reading.known_key(ledger))
    assert found.problems == ()
    assert found.entries[-1].request_id == "late 1"


WRITER = """
import sys
from pathlib import Path
from common.privacy.budget import Budget
from common.privacy.events import GaussianRelease
from common.privacy.ledger import Ledger
budget = Budget(epsilon=1e9, delta=1e-5)
event = GaussianRelease(noise_multiplier=1000.0)
with Ledger.open(Path(sys.argv[1]), cohort="busy") as book:
    print("ready", flush=True)
    for number in range(100_000):
        book.reserve(request_id=f"r{number}", events=[event], purpose="x", budget=budget)
        book.commit(f"r{number}")
"""


@pytest.fixture
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ledger that another process writes to without a pause."""
    path = tmp_path_factory.mktemp("busy") / "busy.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    yield path
    assert writer.poll() is None, "the writer broke off"
    writer.kill()
    writer.wait()
    writer.stdout.close()


def test_a_ledger_is_sound_at_any_moment_of_writing(
    busy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulations.ledgers.reading._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("simulations.ledgers.reading._ATTEMPTS", 2000)
    lengths: list[int] = []
    for _ in range(8):
        monkeypatch.setattr(sys, "argv", ["fedward", "ledger", "show", str(busy), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code in (0, None), said.err
        lengths.append(json.loads(said.out)["ledgers"][0]["length"])
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_verify_says_a_line_for_each_ledger(command: Command, ledger: Path) -> None:
    with LedgerBook.at(ledger.parent / "south").open(PATIENTS) as book:
        charge(book, "r", STEPS)
    said = command("verify", ledger.parent)
    assert said.code == 0, said.out
    north, south = said.out.splitlines()
    assert north.startswith("north: sound, 8 rows, 4 requests")
    assert south.startswith("south/")
    assert ": sound, 3 rows, 1 requests" in south


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'"steps":5') + 8] ^= 1
    path.write_bytes(bytes(content))


def damage_delete(path: Path) -> None:
    path.unlink()


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_head(path: Path) -> None:
    path.with_suffix(".head").unlink()


def damage_key(path: Path) -> None:
    path.with_suffix(".key").write_bytes(bytes(32))


def damage_key_mode(path: Path) -> None:
    path.with_suffix(".key").chmod(0o644)


DAMAGES = [
    damage_truncate,
    damage_flip,
    damage_delete,
    damage_empty,
    damage_head,
    damage_key,
    damage_key_mode,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unsound_ledger_fails_verification_and_shows_no_figure(
    damage: Any, command: Command, ledger: Path
) -> None:
    with Ledger.open(ledger.with_name("other.sqlite"), cohort="o") as book:
        charge(book, "r", STEPS)
    damage(ledger)
    said = command("verify", ledger.parent)
    assert said.code == 1
    north, other = said.out.splitlines()
    assert north.startswith("north: ")
    assert "sound" not in north
    assert other.startswith("other: sound")
    for words in ("show", "forecast", "export"):
        said = command(words, ledger)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("Error: ")
        assert said.err.count("\n") == 1


def test_another_place_needs_the_public_key(command: Command, ledger: Path) -> None:
    key = ledger.with_suffix(".key")
    with Ledger.open(ledger, cohort="c" * 64) as book:
        public_key = book.statement(BUDGET).public_key
    key.unlink()
    said = command("verify", ledger)
    assert said.code == 2
    assert "--public-key" in said.err
    assert command("verify", ledger, "--public-key", public_key).code == 0
    assert command("verify", ledger, "--public-key", "ab" * 32).code == 1
    assert command("show", ledger, "--public-key", "xyz").code == 2


def test_forecast_says_where_the_cap_stops_it(command: Command, ledger: Path) -> None:
    (ahead,) = command("forecast", ledger, "--json", "--rounds", 9).ledgers
    left = ahead["rounds_left"]
    spent = [STEPS] * 3
    assert 1 <= left < 9
    assert BUDGET.allows([*spent, *[STEPS] * left])
    assert not BUDGET.allows([*spent, *[STEPS] * (left + 1)])
    assert ahead["epsilon"] == [BUDGET.spent([STEPS] * (3 + more)) for more in range(10)]
    said = command("forecast", ledger, "--rounds", 9)
    assert f"the cap of 6 stops it in round {left + 1} from now" in said.out
    rows = [line for line in said.out.splitlines() if "#" in line]
    assert len(rows) == 10
    assert ["x" in row for row in rows] == [value > 6.0 for value in ahead["epsilon"]]


def test_forecast_takes_another_recipe_and_cap(command: Command, ledger: Path) -> None:
    (ahead,) = command(
        "forecast", ledger, "--json", "--noise-multiplier", 4, "--budget", 30, "--rounds", 1
    ).ledgers
    other = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=4.0, steps=5)
    assert ahead["epsilon"][1] == BUDGET.spent([*[STEPS] * 3, other])
    assert ahead["epsilon_budget"] == 30.0
    assert ahead["recipe"][0]["noise_multiplier"] == 4.0


def test_forecast_of_an_empty_ledger_needs_the_whole_recipe(
    command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "new.sqlite"
    Ledger.open(path, cohort="c").close()
    said = command("forecast", path, "--steps", 5)
    assert said.code == 2
    assert "--sampling-rate" in said.err
    recipe = ("--steps", 5, "--sampling-rate", 0.25, "--noise-multiplier", 1.5)
    (ahead,) = command("forecast", path, *recipe, "--rounds", 2, "--json").ledgers
    assert ahead["epsilon"] == [BUDGET.spent([STEPS] * count) for count in range(3)]
    assert ahead["rounds_left"] is None
    assert "no cap stops it" in command("forecast", path, *recipe).out
    assert command("forecast", path, *recipe[:-1], 0, "--rounds", 1).code == 0


SUM = SummedDiscreteGaussianSteps(
    sampling_rate=0.25, clip=1 << 20, num_weights=100, share_std=2_500_000, num_shares=2, steps=1
)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A ledger that has events of secure sums and no others."""
    path = tmp_path / "shared.sqlite"
    with Ledger.open(path, cohort="c") as ledger:
        for number in range(3):
            charge(ledger, f"r{number}", SUM)
    return path


def test_where_noise_is_shared_both_figures_are_shown(command: Command, shared: Path) -> None:
    (found,) = command("show", shared, "--json").ledgers
    assert found["epsilon"] == BUDGET.spent([SUM] * 3)
    assert found["epsilon_alone"] == BUDGET.spent_alone([SUM] * 3) > found["epsilon"]
    said = command("show", shared).out
    assert f"({rounded_up(found['epsilon_alone'])} if no other hospital can be trusted)" in said
    (exported,) = command("export", shared).ledgers
    assert exported["epsilon_alone"] == found["epsilon_alone"]


def test_where_it_is_not_there_is_one_figure(command: Command, ledger: Path) -> None:
    assert "epsilon_alone" not in command("show", ledger, "--json").ledgers[0]
    assert "no other hospital" not in command("show", ledger).out
    assert "epsilon_alone" not in command("forecast", ledger, "--json").ledgers[0]
    assert "alone" not in command("forecast", ledger).out


def test_forecast_goes_on_from_a_ledger_of_sums_alone(command: Command, shared: Path) -> None:
    (ahead,) = command("forecast", shared, "--json", "--rounds", 2).ledgers
    assert ahead["recipe"] == dump_events([SUM])
    assert ahead["epsilon"] == [BUDGET.spent([SUM] * count) for count in (3, 4, 5)]
    assert ahead["epsilon_alone"] == [BUDGET.spent_alone([SUM] * count) for count in (3, 4, 5)]
    left = ahead["rounds_left"]
    assert BUDGET.allows([SUM] * (3 + left))
    assert not BUDGET.allows([SUM] * (4 + left))
    said = command("forecast", shared, "--rounds", 2).out
    assert "of 2 sites together" in said
    assert "alone: if no other hospital can be trusted" in said
    for figure in (*ahead["epsilon"], *ahead["epsilon_alone"]):
        assert rounded_up(figure) in said


def test_forecast_of_sums_takes_another_recipe(command: Command, shared: Path) -> None:
    (ahead,) = command("forecast", shared, "--json", "--steps", 4, "--rounds", 1).ledgers
    assert ahead["epsilon"][1] == BUDGET.spent([*[SUM] * 3, replace(SUM, steps=4)])
    assert ahead["epsilon_alone"][1] == BUDGET.spent_alone([*[SUM] * 3, replace(SUM, steps=4)])
    own = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=4.0, steps=1)
    words = ("forecast", shared, "--json", "--noise-multiplier", 4, "--rounds", 1)
    (ahead,) = command(*words).ledgers
    assert ahead["epsilon"][1] == BUDGET.spent([*[SUM] * 3, own])
    assert ahead["epsilon_alone"][1] == BUDGET.spent_alone([*[SUM] * 3, own])
    assert command("forecast", shared, "--steps", 4, "--sampling-rate", 2).code == 2


def test_export_holds_every_request_and_no_patient(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    with LedgerBook.at(folder).open(PATIENTS) as book:
        charge(book, "r", STEPS)
        hashes_of_patients = book.own.patient_hashes()
    assert len(hashes_of_patients) == 3
    said = command("export", folder)
    (found,) = said.ledgers
    assert [one["request_id"] for one in found["requests"]] == ["r"]
    assert found["requests"][0]["events"] == [
        {
            "kind": "poisson_gaussian_steps",
            "sampling_rate": 0.25,
            "noise_multiplier": 1.5,
            "steps": 5,
        }
    ]
    assert found["num_patients"] == 3
    for command_name in ("export", "show"):
        text = command(command_name, folder, *(["--json"] if command_name == "show" else [])).out
        assert not any(one in text for one in (*hashes_of_patients, *PATIENTS))


def test_export_writes_a_file_whole(command: Command, ledger: Path) -> None:
    said = command("export", ledger, "-o", ledger.with_name("out.json"), wrote="ledger/out.json")
    assert (said.code, said.out) == (0, "")
    written = json.loads(ledger.with_name("out.json").read_text())
    assert len(written["ledgers"][0]["requests"]) == 4
    table = ledger.with_name("out.csv")
    command("export", ledger, "--csv", "--output", table, wrote="ledger/out.csv")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["state"] for row in rows] == ["committed", "committed", "abandoned", "reserved"]
    assert {row["ledger"] for row in rows} == {"north"}
    assert rows[2]["events"] == "nothing"
    assert rows[2]["reserved"].startswith("1 Gaussian releases")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "absent"),
        ("show", "absent.sqlite"),
        ("verify", "."),
        ("show", "ledger/north.head"),
        ("show", "ledger", "--accountant", "gdp"),
        ("show", "ledger", "--delta", "2"),
        ("forecast", "ledger", "--sampling-rate", "2"),
        ("forecast", "ledger", "--budget", "0"),
        ("export", "ledger", "--output", "ledger/north.sqlite"),
        ("export", "ledger", "--output", "ledger/north.key", "--csv"),
        ("export", "ledger", "--output", "absent/out.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    command: Command,
    ledger: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = arguments[1] == "."
    monkeypatch.chdir(tmp_path_factory.mktemp("empty") if empty else ledger.parent.parent)
    said = command(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("name", ["show", "verify", "forecast", "export"])
def test_starts_without_torch_flower_or_ray(name: str, ledger: Path) -> None:
    program = (
        "import sys\n"
        "from simulations.cli import app\n"
        f"app(['ledger', {name!r}, {str(ledger)!r}], standalone_mode=False)\n"
        "print([m for m in ('torch', 'flwr', 'ray', 'timm') if m in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=1200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
