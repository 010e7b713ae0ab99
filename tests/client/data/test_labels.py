from __future__ import annotations

from collections.abc import Mapping

import pytest

from client.data.labels import LabelReader
from client.data.rows import Row
from common.config import ColumnsConfig, DataConfig, LabelsConfig, TaskKind
from common.errors import DataError


def _labels(cells: Mapping[str, str], **values: object) -> tuple[int, ...]:
    labels = LabelsConfig(**values)  # pyright: ignore[reportArgumentType]
    reader = LabelReader.of(DataConfig(columns=ColumnsConfig(label="label"), labels=labels))
    assert set(reader.columns.values()) == set(cells)
    return reader.labels(Row(number=7, cells=cells, table="t.csv"))


def test_binary_labels_may_be_words() -> None:
    words = {"MALIGNANT": "1", "BENIGN": "0"}
    assert _labels({"label": "1"}) == (1,)
    assert _labels({"label": "MALIGNANT"}, values=words) == (1,)
    assert _labels({"label": "BENIGN"}, values=words) == (0,)
    assert _labels({"label": ""}, values={"": "0"}) == (0,)


def test_classes_are_numbered_in_the_order_of_their_names() -> None:
    settings = {
        "kind": TaskKind.multiclass,
        "names": ["normal", "bacteria", "virus"],
        "values": {"": "normal"},
    }
    cells = ["", "normal", "bacteria", "virus"]
    assert [_labels({"label": cell}, **settings) for cell in cells] == [(0,), (0,), (1,), (2,)]


def test_findings_of_one_column() -> None:
    settings = {
        "kind": TaskKind.multilabel,
        "names": ["Mass", "Nodule", "Edema"],
        "values": {"No Finding": ""},
    }
    assert _labels({"label": "Nodule | Mass"}, **settings) == (1, 1, 0)
    assert _labels({"label": "No Finding"}, **settings) == (0, 0, 0)
    assert _labels({"label": "Edema;Mass"}, separator=";", **settings) == (1, 0, 1)


def test_findings_of_a_column_each_may_be_unknown() -> None:
    settings = {"kind": TaskKind.multilabel, "columns": ["a", "b", "c"]}
    assert _labels({"a": "1", "b": "0.0", "c": ""}, **settings) == (1, 0, -1)
    grades = {"3": "1", "4": "1", "2": "0", "-1": "unknown"}
    assert _labels({"a": "3", "b": "2", "c": "-1"}, values=grades, **settings) == (1, 0, -1)


@pytest.mark.parametrize(
    ("cell", "settings", "message"),
    [
        ("secret", {}, "row 7 must hold 0 or 1 in column label"),
        ("", {}, "row 7 has no value in column label"),
        ("secret", {"values": {"yes": "1"}}, "column label, or a value of data.labels.values"),
        ("1", {"values": {"1": "2"}}, "must hold 0 or 1"),
        (
            "secret",
            {"kind": TaskKind.multiclass, "names": ["a", "b"]},
            "row 7 must hold one of a, b in column label",
        ),
        (
            "a|secret",
            {"kind": TaskKind.multilabel, "names": ["a", "b"]},
            "row 7 names a finding in column label that is not in data.labels.names",
        ),
        ("", {"kind": TaskKind.multilabel, "names": ["a", "b"]}, "row 7 has no value"),
        (
            "secret",
            {"kind": TaskKind.multilabel, "columns": ["label"]},
            "row 7 must hold 0, 1 or nothing in column label",
        ),
    ],
)
def test_other_cells_are_refused_and_not_shown(
    cell: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        _labels({"label": cell}, **settings)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
