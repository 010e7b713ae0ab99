from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from client.data.rows import read_rows
from common.errors import DataError


def test_parquet_reads_as_the_same_csv(tmp_path: Path) -> None:
    columns = {
        "file": ["a.png", "b.png", None],
        "number": [1, 0, None],
        "float": [1.0, 0.5, float("nan")],
        "truth": [True, False, None],
    }
    parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    (tmp_path / "table.csv").write_text(
        "file,number,float,truth\na.png,1,1,1\nb.png,0,0.5,0\n,,,\n"
    )
    read = read_rows(tmp_path, "table.parquet")
    assert read.lines == read_rows(tmp_path, "table.csv").lines
    assert read.header == ("file", "number", "float", "truth")


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"secret": [1, 2]}), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"cannot be read as Parquet \(\w+\)") as caught:
        read_rows(tmp_path, "table.parquet")
    assert "secret" not in str(caught.value)


def test_only_the_columns_that_are_asked_for_are_handed_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    rows = list(read_rows(tmp_path, "t.csv").rows({"data.columns.image": "b"}))
    assert [dict(row.cells) for row in rows] == [{"b": "2"}, {"b": "5"}]
    assert [row.number for row in rows] == [1, 2]
    assert "5" not in repr(rows[1]).replace("number=2", "")
