"""``fedward audit inversion``: pictures of what an update shows, and of what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from simulations.cli import app

SMALL = (
    "model=test_vit",
    "model.patch_size=8",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=4",
    "data.phantom.num_val=2",
    "data.phantom.num_test=2",
    "federation.num_sites=1",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["audit", "inversion", *arguments])


def test_phantoms_come_back_only_without_privacy(
    tmp_path: Path, browser: Callable[[Path], Any]
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    result = invoked(*SMALL, "--count", "2", "--out", str(page), "--json", str(figures))
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())
    assert len(found["rows"]) == 2
    for row in found["rows"]:
        open_update, private, spread = row.values()
        assert open_update["ssim"] > 0.95
        assert private["ssim"] < found["ssim_of_plain_grey"] + 0.1
        assert spread["ssim"] < 0.3
    assert found["noise_multiplier"] > 0.5
    assert 1 < found["epsilon_of_step"] < 8
    assert "all 2 images came back" in result.output
    visit = browser(page)
    assert (visit.console, visit.requests) == ([], [])
    assert visit.dom.count("data:image/png") == 8
    assert "Stays in the hospital" not in visit.dom  # phantoms are public


def test_images_of_a_folder_stay_unless_they_are_public(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows, columns = np.indices((40, 40))
    Image.fromarray((3 * rows + 2 * columns).astype(np.uint8)).save(folder / "a.png")
    page = tmp_path / "page.html"
    arguments = (*SMALL, "--images", str(folder), "--out", str(page))
    assert invoked(*arguments).exit_code == 0
    assert "Stays in the hospital" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert invoked(*arguments, "--public", "drawn by a formula").exit_code == 0
    assert "Stays in the hospital" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("privacy=none",), "privacy=none"),
        (("finetune=head",), "use model=vit_tiny finetune=all"),
        (("--images", "absent"), "--images=absent: no such folder"),
        (("--out", "absent/page.html"), "no such folder"),
        (("--json", "absent/figures.json"), "no such folder"),
        (("--nonsense",), "--nonsense: no such option"),
        (("--run", "absent"), "absent: not the folder of a run"),
        (("privacy.epsiln=4",), "did you mean privacy.epsilon?"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoked(*SMALL, *arguments)
    assert type(result.exception).__name__ in {"UsageError", "DataError"}
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)
    assert list(tmp_path.glob("*.html")) == []


def test_an_empty_folder_and_a_damaged_image_are_refused(tmp_path: Path) -> None:
    result = invoked(*SMALL, "--images", str(tmp_path), "--out", str(tmp_path / "p.html"))
    assert "no PNG or JPEG" in str(result.exception)
    (tmp_path / "a.png").write_bytes(b"no image")
    result = invoked(*SMALL, "--images", str(tmp_path), "--out", str(tmp_path / "p.html"))
    assert "image 1" in str(result.exception)
    assert "a.png" not in str(result.exception)
