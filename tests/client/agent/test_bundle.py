"""Bundles as Flower builds them, and such as it never would."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent import bundle as bundles
from common.errors import UsageError

Fab = Callable[..., bytes]


def rebuilt(content: bytes, **files: bytes | None) -> bytes:
    """The bundle with files replaced, added or (``None``) left out, its list as it was."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        kept = {name: old.read(name) for name in old.namelist()}
        for name, data in {**kept, **files}.items():
            if data is not None:
                new.writestr(name, data)
    return out.getvalue()


def test_a_bundle_of_flower_is_read_as_it_is(fab: Fab) -> None:
    content = fab("app = 1\n", helper="x = 2\n")
    found = bundles.parse(content)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.name == "consortium/fedward-app 1.0.0"
    assert set(found.files) == {"pyproject.toml", "run.py", "helper.py"}
    assert found.files["run.py"] == b"app = 1\n"
    assert found.components == {"serverapp": "run:app", "clientapp": "run:app"}


def test_the_hash_is_the_one_that_flower_names_the_bundle_by(fab: Fab, tmp_path) -> None:
    from flwr.cli.install import install_from_fab

    content = fab("app = 1\n")
    installed = install_from_fab(content, install_dir=tmp_path, skip_prompt=True)
    assert installed.name.split(".")[-1] == bundles.parse(content).sha256[:8]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"run.py": b"app = 2\n"}, "run.py: not what the list says"),
        ({"hidden.py": b""}, "hidden.py: in the list or in the zip"),
        ({"run.py": None}, "run.py: in the list or in the zip"),
        ({".info/CONTENT": None}, "CONTENT or pyproject.toml is missing"),
        ({"../run.py": b""}, "not a plain file"),
        ({"/run.py": b""}, "not a plain file"),
    ],
)
def test_a_bundle_whose_list_is_not_its_content_is_none(
    fab: Fab, files: dict[str, bytes | None], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        bundles.parse(rebuilt(fab("app = 1\n"), **files))


def test_a_file_that_is_in_the_zip_twice_is_refused(fab: Fab) -> None:
    content = io.BytesIO(fab("app = 1\n"))
    with (
        zipfile.ZipFile(content, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("run.py", b"app = 1\n")
    with pytest.raises(UsageError, match="twice"):
        bundles.parse(content.getvalue())


def test_a_link_and_a_bomb_are_refused(fab: Fab) -> None:
    content = io.BytesIO(fab("app = 1\n"))
    with zipfile.ZipFile(content, "a") as archive:
        link = zipfile.ZipInfo("link.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(UsageError, match=r"link\.py: not a plain file"):
        bundles.parse(content.getvalue())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.py", bytes(101 * 1024 * 1024))
    with pytest.raises(UsageError, match="too large when unpacked"):
        bundles.parse(bomb.getvalue())


def test_differences_are_shown_line_by_line(fab: Fab) -> None:
    old = bundles.parse(fab("a = 1\nb = 2\n", gone="g = 1\n"))
    new = bundles.parse(fab("a = 1\nb = 3\n", more="m = '\u202e\x1b[2J'\n"))
    lines = bundles.differences(old, new)
    assert {"-b = 2", "+b = 3", "removed: gone.py", "added: more.py"} <= set(lines)
    assert "+m = '\\u202e\\x1b[2J'" in lines
    assert bundles.differences(old, old) == []


@given(st.text())
def test_nothing_that_is_shown_can_move_the_cursor(text: str) -> None:
    assert not set(bundles.shown(text)) & {
        *map(chr, range(9)),
        "\n",
        "\r",
        "\x1b",
        "\x9b",
        "\u202e",
    }


@given(st.binary(max_size=200))
def test_any_bytes_are_a_bundle_or_a_complaint(content: bytes) -> None:
    with pytest.raises(UsageError):
        bundles.parse(content)


@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_damaged_bundle_is_another_bundle_or_a_complaint(place: int, value: int) -> None:
    content = bytearray(SOUND)
    content[place % len(content)] = value
    try:
        found = bundles.parse(bytes(content))
    except UsageError:
        return
    assert found.files["run.py"] == b"app = 1\n"


def _sound() -> bytes:
    """A bundle written by hand as Flower writes it."""
    files = {"pyproject.toml": b"[project]\nname = 'a'\n", "run.py": b"app = 1\n"}
    listing = "\n".join(
        f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items()
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, ".info/CONTENT": listing.encode()}.items():
            archive.writestr(name, data)
    return out.getvalue()


SOUND = _sound()
