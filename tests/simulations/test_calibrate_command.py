from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from common.errors import UsageError
from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps
from simulations.cli import app

ASKED = ("--epsilon", "8", "--delta", "1e-5", "--sampling-rate", "0.25", "--steps", "40")


def read(noise: float, accountant: str) -> float:
    event = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=noise, steps=40)
    return build(accountant).epsilon([event], 1e-5)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_noise_is_the_least_that_reaches_the_target(accountant: str) -> None:
    done = CliRunner().invoke(app, ["calibrate", *ASKED, "--accountant", accountant, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    noise = found["noise_multiplier"]
    assert 0.99 * 8 < read(noise, accountant) <= 8 < read(0.995 * noise, accountant)
    assert found["epsilon"] == {name: read(noise, name) for name in ("pld", "rdp")}
    assert found["accountant"] == accountant


def test_lines_for_people_are_never_below_the_figure() -> None:
    done = CliRunner().invoke(app, ["calibrate", *ASKED])
    assert done.exit_code == 0
    first, pld, rdp = done.stdout.splitlines()
    assert first.startswith("noise multiplier 1.2352 ")
    for line, name in ((pld, "pld"), (rdp, "rdp")):
        shown = float(line.rpartition(" ")[2])
        assert line.startswith(f"{name}: epsilon ")
        assert 0 <= shown - read(1.2352, name) < 1.1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--epsilon": "0"}, "epsilon=0.0"),
        ({"--epsilon": "nan"}, "epsilon=nan"),
        ({"--delta": "1"}, "delta=1.0"),
        ({"--sampling-rate": "1.5"}, "sampling_rate=1.5"),
        ({"--steps": "0"}, "steps=0"),
        ({"--accountant": "gdp"}, "underestimates"),
        ({"--accountant": "prv"}, "must be one of pld, rdp"),
    ],
)
def test_bad_values_are_named(change: dict[str, str], words: str) -> None:
    given = dict(zip(ASKED[::2], ASKED[1::2], strict=True)) | change
    arguments = [word for pair in given.items() for word in pair]
    done = CliRunner().invoke(app, ["calibrate", *arguments])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)


def test_prv_is_read_on_demand() -> None:
    done = CliRunner().invoke(app, ["calibrate", *ASKED, "--prv", "--json"])
    assert done.exit_code == 0, done.output
    epsilon = json.loads(done.stdout)["epsilon"]
    assert epsilon["pld"] < epsilon["prv"] < epsilon["pld"] + 0.03
