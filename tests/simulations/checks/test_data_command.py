"""`fedward check-data` on studies with planted defects: what it says, writes and returns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import configs
from client.data.study import build
from common.errors import UsageError
from simulations.checks.data_command import _dealt
from simulations.cli import app
from simulations.progress_bar import ProgressBar
from simulations.sites import dealt

NUM_PATIENTS = 60
COLUMNS = (
    *("image=file", "patient=patient_id", "label=malignant", "split=split", "site=hospital"),
    *("groups={sex: sex, age: age}", "bins={age: [0, 40, 60]}"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixty patients with two images each; a page must name none of them."""
    root = tmp_path / "study"
    root.mkdir()
    generator = np.random.default_rng(0)
    rows = [["file", "patient_id", "malignant", "split", "sex", "age", "hospital", "score"]]
    for number in range(2 * NUM_PATIENTS):
        patient = number // 2
        pixels = generator.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"secretfile{number}.png")
        split = ("train", "train", "train", "val", "test")[patient // 2 % 5]
        rows.append(
            [
                f"secretfile{number}.png",
                f"<secret&{patient}>",
                str(patient % 2),
                split,
                "FM"[patient % 2],
                str(20 + patient),
                f"hospital-{1 + patient // 30}",
                str(1 + 4 * (patient % 2)),
            ]
        )
    _save(root, rows)
    return root


def _save(root: Path, rows: list[list[str]]) -> None:
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _rows(root: Path) -> list[list[str]]:
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.reader(file))


def _settings(root: Path, *more: str) -> list[str]:
    return [
        "data=table",
        f"data.root={root}",
        "data.name='planted <b>study</b>'",
        *(f"data.columns.{column}" for column in COLUMNS),
        "data.image_size=16",
        "model.patch_size=8",
        "federation.num_sites=2",
        *more,
    ]


def _check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check-data", *arguments])


class Outline(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += " " + data


def test_a_sound_study(root: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "check.html", tmp_path / "check.json"
    done = _check(*_settings(root), "--out", str(out), "--json", str(figures))
    assert done.exit_code == 0, done.output
    assert "planted <b>study</b>: 120 images, 60 patients" in done.stdout
    assert "Nothing blocks training" in done.stdout
    for path in (out, figures):
        assert path.stat().st_mode & 0o777 == 0o600
        text = path.read_text()
        assert "secret" not in text
        assert str(root) not in text
    result = json.loads(figures.read_text())
    assert result["stays_in_the_hospital"] is True
    assert result["blocked"] is False
    assert (result["num_images"], result["num_patients"]) == (120, 60)
    assert [one["images"] for one in result["groups"]["sex"]] == [60, 60]
    page = Outline(out.read_text())
    assert page.text.count("STAYS IN THE HOSPITAL") == 2
    assert "planted <b>study</b>" in page.text
    assert ("b", {}) not in page.elements
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}


def test_without_options_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert _check(*_settings(root)).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_noise_over_signal_is_that_of_the_recipe(root: Path, tmp_path: Path) -> None:
    figures = tmp_path / "check.json"
    settings = ("privacy.epsilon=null", "privacy.noise_multiplier=2", "privacy.sampling_rate=0.5")
    _check(*_settings(root, *settings, "finetune=head"), "--json", str(figures))
    folder, smallest, together = json.loads(figures.read_text())["noise_to_signal"]
    assert [one["num_patients"] for one in (folder, smallest, together)] == [36, 18, 36]
    weights = 192 * 2 + 2  # ViT-Tiny's head
    assert folder["num_weights"] == weights
    assert folder["ratio"] == pytest.approx(2 * weights**0.5 / (0.5 * 36 * 40**0.5))
    assert smallest["ratio"] == pytest.approx(2 * folder["ratio"])
    assert together["ratio"] == pytest.approx(2**0.5 * folder["ratio"])


def test_without_privacy_there_is_no_noise(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.html"
    done = _check(*_settings(root, "privacy=none"), "--out", str(out))
    assert done.exit_code == 0
    assert "noise over signal" not in done.stdout
    assert "No privacy is asked for" in out.read_text()


def test_what_blocks_training_is_said_and_the_page_is_written(root: Path, tmp_path: Path) -> None:
    (root / "secretfile4.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    out, figures = tmp_path / "check.html", tmp_path / "check.json"
    done = _check(*_settings(root), "--out", str(out), "--json", str(figures))
    assert done.exit_code == 2
    last = done.stdout.splitlines()[-3]
    assert last.startswith("Training is blocked: 1 image cannot be used: it cannot be decoded")
    assert json.loads(figures.read_text())["findings"][0]["rows"] == [5]
    assert "Training is blocked" in out.read_text()


def test_patients_on_two_sides_are_said_once(root: Path, tmp_path: Path) -> None:
    rows = _rows(root)
    rows[1][3] = "test"
    _save(root, rows)
    figures = tmp_path / "check.json"
    done = _check(*_settings(root), "--json", str(figures))
    assert done.exit_code == 2
    blocking = [
        one for one in json.loads(figures.read_text())["findings"] if one["severity"] == "blocks"
    ]
    assert [(one["code"], one["rows"]) for one in blocking] == [("patients_across_splits", [1, 2])]


def test_a_study_that_cannot_be_dealt_out_is_blocked(root: Path) -> None:
    done = _check(*_settings(root, "federation.num_sites=37"))
    assert done.exit_code == 2
    assert (
        "Training is blocked: Patients cannot be split or dealt out: federation.num_sites=37"
        in (done.stdout)
    )


def test_rules_about_labels(root: Path, tmp_path: Path) -> None:
    rows = _rows(root)
    rows[3][7] = "1"
    _save(root, rows)
    figures = tmp_path / "check.json"
    rule = "data.label_rules=['1: score >= 3']"
    assert _check(*_settings(root, rule), "--json", str(figures)).exit_code == 0
    found = {one["code"]: one["rows"] for one in json.loads(figures.read_text())["findings"]}
    assert found["label_rule"] == [3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.root=absent", "data.root=absent: is not a folder"),
        ("data.columns.label=nope", "data.columns.label=nope: there is no such column"),
        ("data.label_rules=['what']", "must read LABEL: COLUMN"),
        ("privacy.epsilom=3", "did you mean privacy.epsilon?"),
    ],
)
def test_bad_input_is_a_usage_error(change: str, words: str, root: Path) -> None:
    done = _check(*_settings(root, change))
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_a_browser_shows_the_page_without_requests(
    root: Path, tmp_path: Path, browser: Callable[[Path], Any]
) -> None:
    out = tmp_path / "check.html"
    (root / "secretfile4.png").write_bytes((root / "secretfile9.png").read_bytes())
    assert _check(*_settings(root), "--out", str(out)).exit_code == 0
    visit = browser(out)
    assert visit.console == []
    assert [url for url in visit.requests if not url.startswith(("data:", "file:"))] == []
    pictures = [attributes for tag, attributes in Outline(visit.dom).elements if tag == "img"]
    assert len(pictures) == 26  # a sample of 24 and the two that are equal
    assert all(re.match(r"data:image/png;base64,", one["src"] or "") for one in pictures)
    assert all(one["alt"] for one in pictures)


def test_phantoms_are_checked_without_a_folder(tmp_path: Path) -> None:
    figures = tmp_path / "check.json"
    few = ["data.phantom.num_train_per_site=6", "data.phantom.num_val=4", "data.phantom.num_test=4"]
    done = _check(*few, "data.phantom.size=16", "--json", str(figures))
    assert done.exit_code == 0, done.output
    result = json.loads(figures.read_text())
    assert result["num_patients"] == 26
    # Phantoms say that nobody's identity is in them, and that nothing is written on them.
    codes = {one["code"] for one in result["findings"]}
    assert not codes & {"identifying_tags", "burned_in_annotation", "burned_in_unknown"}


def test_progress_tells_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Console(file=io.StringIO())
    with ProgressBar(plain, seconds_between_lines=0.0) as progress:
        progress("decoding images", 1, 4)
        progress("decoding images", 2, 4)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"decoding images: 2 of 4, about \d+ s left", lines[-1])
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressBar(terminal) as progress:
        progress("decoding images", 1, 4)
        progress("reading DICOM headers", 4, 4)
    shown = terminal.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "decoding images" in shown
    assert "reading DICOM headers" in shown


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_page_that_cannot_be_written_is_refused_before_the_study_is_read(
    option: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.checks.data_command.check", lambda _: pytest.fail("work"))
    absent = tmp_path / "absent" / "x.html"
    for path, words in ((absent, "no such folder"), (tmp_path, "is a folder")):
        done = _check(*_settings(root), option, str(path))
        assert isinstance(done.exception, UsageError)
        assert str(done.exception).startswith(f"{option}={path}: {words}")


def test_patients_are_dealt_out_by_the_seeds_of_a_run(root: Path) -> None:
    """As `dealt` of a simulation, whose seeds may be set apart from the run's."""
    rows = [row[:3] + row[4:] for row in _rows(root)]
    _save(root, rows)
    columns = ["image=file", "patient=patient_id", "label=malignant"]
    words = ["data=table", f"data.root={root}", "data.test_fraction=0.2", "partition=equal"]
    words += [f"data.columns.{column}" for column in columns]

    def shares(*more: str) -> dict[str, set[str]]:
        config = configs.load([*words, *more])
        study = build(config.data, num_sites=2, phantom_dir=root / "none", secret=b"0" * 32)
        found, problems = _dealt(study, config, blocked=False)
        assert problems == []
        return {name: {one.patient for one in members} for name, members in found.items()}

    fixed = ("data.split_seed=3", "partition.seed=4")
    assert shares("seed=1", *fixed) == shares("seed=2", *fixed)
    assert shares("seed=1", *fixed) == {
        name: {one.patient for one in members}
        for name, members in dealt(
            configs.load([*words, "seed=1", *fixed]), root / "none", secret=b"0" * 32
        )[2].items()
    }
    assert shares("seed=1") != shares("seed=2")
