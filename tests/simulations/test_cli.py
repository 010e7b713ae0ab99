from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from common.errors import UsageError
from simulations.cli import app, main


def fedward(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from simulations.cli import main; sys.argv[0] = 'fedward'; main()"
    return subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def call(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """`main` in this process."""
    monkeypatch.setattr(sys, "argv", ["fedward", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0), out, err


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    commands = [
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    ]
    assert set(commands) >= {"simulate", "report"}
    for command in commands:
        assert f"  {command} " in result.output


def test_help_says_what_a_commands_words_are() -> None:
    """typer 0.20 loses this text with click 8.5, hence the bound in pyproject.toml."""
    result = CliRunner().invoke(app, ["consortium", "run", "--help"])
    assert "Of a prepared run; one that failed goes on." in result.output
    assert "The consortium's folder." in result.output


def test_help_of_simulate_is_hydras(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call("simulate", "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    for words in ("privacy: dp_sgd, none", "--multirun", "num_sites: 3", "Exit codes"):
        assert words in out


def test_hydras_flags_pass_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(
        "simulate", "privacy.epsilon=3", "--cfg", "job", monkeypatch=monkeypatch, capsys=capsys
    )
    assert (code, err) == (0, "")
    assert "epsilon: 3.0" in out


def test_the_configuration_that_is_shown_can_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=cbis_masses", "data.root=/srv/images", "privacy.budget=inf")
    code, out, err = call(
        "simulate", *words, "--cfg", "job", monkeypatch=monkeypatch, capsys=capsys
    )
    assert (code, err) == (0, "")
    assert "  root: /srv/images\n" in out
    assert "!!python" not in out
    (tmp_path / "config.yaml").write_text(out)
    assert configs.read_yaml(tmp_path / "config.yaml") == configs.load(words)


@pytest.mark.parametrize("command", ["simulate", "synthesize"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run_id", None, "has no run_id"),
        ("run_id", "", "has no run_id"),
        ("config.yaml", "privacy: [", "not the configuration of a run"),
        ("result.json", "", "result.json: damaged; remove it"),
        ("result.json", '{"state": "comp', "result.json: damaged; remove it"),
        ("result.json", "[]", "result.json: damaged; remove it"),
        ("result.json", "{}", "result.json: damaged; remove it"),
        ("result.json", '{"state": []}', "result.json: damaged; remove it"),
        ("result.json", '{"state": "odd"}', "result.json: damaged; remove it"),
    ],
)
def test_a_damaged_run_folder_is_one_line_and_stays_as_it_is(
    command: str,
    name: str,
    content: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text(configs.dump_yaml(configs.load()))
    (tmp_path / "run_id").write_text("ab" * 8)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = call(command, f"resume={tmp_path}", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("simulate", "privacy.epsilom=3"), "did you mean privacy.epsilon?"),
        (("simulate", "privacy.epsilon=0"), "must be a finite number above 0"),
        (("simulate", "--nope"), "--nope"),
        (("simulate", "data=table", "data.root=absent"), "data.root=absent: no such folder"),
        (("simulate", "resume=absent"), "resume=absent: not the folder of a run"),
        (("report", "absent"), "no result of a run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "fedward.result/0"}', "3"])
def test_a_strange_result_has_no_report(
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "result.json").write_text(content)
    code, _, err = call("report", str(tmp_path), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_report_writes_the_page_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(
        json.dumps({"schema": "fedward.result/1", "title": "of a test", "state": "failed"})
    )
    code, out, err = call("report", str(tmp_path), monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.strip() == str(tmp_path / "report.html")
    assert "of a test" in (tmp_path / "report.html").read_text()


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    ended = fedward("simulat", cwd=tmp_path)
    assert ended.returncode == 2
    assert "simulat" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ended.stdout


def test_no_command_shows_help(tmp_path: Path) -> None:
    ended = fedward(cwd=tmp_path)
    assert ended.returncode == 2
    assert "simulate" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("simulate", "--help"), ("simulate", "privacy.epsilom=3"), ("report", "absent")],
)
def test_starts_without_torch_flower_or_ray(arguments: tuple[str, ...], tmp_path: Path) -> None:
    heavy = ("torch", "flwr", "ray", "timm", "opacus", "dp_accounting")
    command = (
        "import atexit, sys\n"
        f"report = lambda: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)\n"
        "atexit.register(report)\n"
        "from simulations.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert ended.returncode == (0 if "--help" in arguments else 2)
    assert ended.stderr.splitlines()[-1] == "[]"


def test_usage_errors_are_raised_not_printed_by_the_commands(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
