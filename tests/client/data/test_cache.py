from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.cache import ImageCache
from client.data.cohort import load_cohort
from client.data.study import ImageKind, Record
from common.config import TaskKind
from common.errors import DataError
from common.task import Task

TASK = Task(kind=TaskKind.binary, names=("finding",))

# From Python 3.12 on; the children here only read and write files.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A study of NumPy files that writes down each decoding beside them."""

    records: tuple[Record, ...]
    diary: Path
    name: str = "counted"
    task: Task = TASK
    image_kind: ImageKind = ImageKind.image
    slow_row: int | None = None

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        with self.diary.open("a") as diary:
            diary.write(f"{record.row}\n")
        if record.row == self.slow_row:
            time.sleep(60)
        try:
            return np.load(record.path)
        except ValueError:
            raise DataError(f"data: the image of row {record.row} cannot be decoded") from None

    @property
    def decoded(self) -> int:
        return len(self.diary.read_text().splitlines()) if self.diary.exists() else 0


Make = Callable[..., Counted]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(
        count: int = 6, shape: tuple[int, ...] = (12, 12), slow_row: int | None = None
    ) -> Counted:
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        generator = np.random.default_rng(5)
        records = []
        for row in range(1, count + 1):
            path = folder / f"secret-name-{row}.npy"
            np.save(path, generator.random(shape, dtype=np.float32))
            patient = f"secret-patient-{row // 2}"
            records.append(Record(row=row, path=path, patient=patient, labels=(row % 2,)))
        kind = ImageKind.volume if len(shape) == 3 else ImageKind.image
        return Counted(
            records=tuple(records), diary=tmp_path / "diary", image_kind=kind, slow_row=slow_row
        )

    return build


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(folder=tmp_path / "cache", image_size=8)


def _file(cache: ImageCache) -> Path:
    (path,) = cache.folder.glob("*.npy")
    return path


def test_a_cached_cohort_is_the_cohort_and_is_decoded_once(make: Make, cache: ImageCache) -> None:
    study = make()
    plain = load_cohort(study, study.records, image_size=8)
    assert study.decoded == 6
    for _ in range(3):
        cached = cache.cohort(study, study.records[::-1])
        assert isinstance(cached.images, np.memmap)
        np.testing.assert_array_equal(cached.images, plain.images)
        np.testing.assert_array_equal(cached.labels, plain.labels)
        np.testing.assert_array_equal(cached.patients, plain.patients)
        assert (cached.num_patients, cached.patient_ids) == (
            plain.num_patients,
            plain.patient_ids,
        )
    assert study.decoded == 12


def test_torch_takes_a_cached_image_and_cannot_change_the_file(
    make: Make, cache: ImageCache
) -> None:
    import torch

    study = make()
    tensor = torch.from_numpy(cache.images(study, study.records))
    before = tensor.clone()
    tensor.zero_()
    assert torch.equal(torch.from_numpy(cache.images(study, study.records)), before)
    assert study.decoded == 6


def test_volumes_are_cached_too(make: Make, cache: ImageCache) -> None:
    study = make(count=3, shape=(5, 12, 12))
    cached = replace(cache, depth=4).cohort(study, study.records)
    assert cached.images.shape == (3, 1, 4, 8, 8)
    plain = load_cohort(study, study.records, image_size=8, depth=4)
    np.testing.assert_array_equal(cached.images, plain.images)


def test_numpy_reads_the_file(make: Make, cache: ImageCache) -> None:
    study = make()
    images = cache.images(study, study.records)
    np.testing.assert_array_equal(np.load(_file(cache)), images)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(rows=st.sets(st.integers(0, 5), min_size=1))
def test_any_part_of_a_study_comes_from_one_cache(
    rows: set[int], make: Make, cache: ImageCache
) -> None:
    study = make()
    cache.images(study, study.records)
    before = study.decoded
    part = [study.records[row] for row in rows]
    cached = cache.cohort(study, part, within=study.records)
    assert study.decoded == before
    plain = load_cohort(study, part, image_size=8)
    np.testing.assert_array_equal(cached.images, plain.images)
    np.testing.assert_array_equal(cached.patients, plain.patients)


def test_rows_side_by_side_are_mapped_and_not_copied(make: Make, cache: ImageCache) -> None:
    study = make()
    cohort = cache.cohort(study, study.records[2:5], within=study.records)
    assert isinstance(cohort.images.base, np.memmap)


def test_the_file_holds_no_names_and_is_its_owners_alone(make: Make, cache: ImageCache) -> None:
    study = make()
    cache.cohort(study, study.records)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    for path in cache.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"secret" not in path.read_bytes()
        assert "secret" not in path.name


def _touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def _edit_in_secret(path: Path) -> None:
    """Other pixels, the same size, and the old time put back."""
    stat = path.stat()
    np.save(path, np.zeros((12, 12), dtype=np.float32))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [_touch, _edit_in_secret])
def test_a_changed_file_is_decoded_again(
    change: Callable[[Path], None], make: Make, cache: ImageCache
) -> None:
    study = make()
    cache.cohort(study, study.records)
    change(study.records[3].path)
    cached = cache.cohort(study, study.records)
    assert study.decoded == 12
    np.testing.assert_array_equal(
        cached.images, load_cohort(study, study.records, image_size=8).images
    )


def test_other_settings_have_other_caches(make: Make, cache: ImageCache) -> None:
    study = make()
    others = [
        cache,
        replace(cache, image_size=9),
        replace(cache, settings="paper_crops"),
    ]
    for other in others:
        other.cohort(study, study.records)
    cache.cohort(study, study.records[:5])
    cache.cohort(replace(study, name="another"), study.records)
    assert len(list(cache.folder.glob("*.npy"))) == 5


def test_a_corrected_label_needs_no_new_cache(make: Make, cache: ImageCache) -> None:
    study = make()
    cache.cohort(study, study.records)
    mended = tuple(replace(record, labels=(1,)) for record in study.records)
    cohort = cache.cohort(study, mended)
    assert study.decoded == 6
    assert cohort.labels.tolist() == [1] * 6


def test_files_of_a_series_count(make: Make, cache: ImageCache, tmp_path: Path) -> None:
    study = make(count=1)
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "slice").write_bytes(b"1")

    @dataclass(frozen=True, kw_only=True)
    class Series(Counted):
        def read(self, record: Record) -> npt.NDArray[np.float32]:
            value = len((record.path / "slice").read_bytes()) / 10
            return np.full((12, 12), value, dtype=np.float32)

    series = Series(records=(replace(study.records[0], path=folder),), diary=study.diary)
    assert cache.images(series, series.records).max() == np.float32(0.1)
    (folder / "slice").write_bytes(b"12")
    assert cache.images(series, series.records).max() == np.float32(0.2)


def test_every_source_of_an_image_counts(make: Make, cache: ImageCache, tmp_path: Path) -> None:
    mask = tmp_path / "mask"
    mask.write_bytes(b"1")

    @dataclass(frozen=True, kw_only=True)
    class Masked(Counted):
        def sources(self, record: Record) -> list[Path]:
            return [record.path, mask]

    plain = make()
    study = Masked(records=plain.records, diary=plain.diary)
    cache.images(study, study.records)
    cache.images(study, study.records)
    assert study.decoded == 6
    _touch(mask)
    cache.images(study, study.records)
    assert study.decoded == 12


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _flip_bit(place: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return flip


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "damage", [_cut, _empty, _lengthen, _zeros, _flip_bit(3), _flip_bit(200), _flip_bit(-1)]
)
def test_a_damaged_cache_is_found_and_made_anew(
    damage: Callable[[Path], None], make: Make, cache: ImageCache
) -> None:
    study = make()
    cache.cohort(study, study.records)
    damage(_file(cache))
    cached = cache.cohort(study, study.records)
    assert study.decoded == 12
    np.testing.assert_array_equal(
        cached.images, load_cohort(study, study.records, image_size=8).images
    )
    cache.cohort(study, study.records)
    assert study.decoded == 18  # the second loading without a cache, and no more


def test_the_cache_of_other_records_under_this_name_is_not_believed(
    make: Make, cache: ImageCache
) -> None:
    study = make()
    cache.images(study, study.records[:3])
    other = _file(cache).read_bytes()
    cache.images(study, study.records[3:])
    first, second = sorted(cache.folder.glob("*.npy"))
    first.write_bytes(other)
    second.write_bytes(other)
    np.testing.assert_array_equal(
        cache.images(study, study.records[3:]),
        load_cohort(study, study.records[3:], image_size=8).images,
    )


def test_an_unreadable_image_leaves_nothing_and_names_its_row(
    make: Make, cache: ImageCache
) -> None:
    study = make()
    study.records[4].path.write_bytes(b"not an array at all")
    with pytest.raises(DataError, match="row 5 cannot be decoded") as error:
        cache.cohort(study, study.records)
    assert "secret" not in str(error.value)
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]
    study.records[4].path.unlink()
    with pytest.raises(DataError, match=r"row 5 cannot be opened \(FileNotFoundError\)"):
        cache.cohort(study, study.records)


def test_no_records_are_refused(make: Make, cache: ImageCache) -> None:
    with pytest.raises(DataError, match="at least one image"):
        cache.cohort(make(), [])


def test_a_folder_that_cannot_be_made_is_one_clear_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ImageCache(folder=tmp_path / "file" / "cache", image_size=8)
    study = make()
    with pytest.raises(DataError, match=r"data\.cache_dir=.*the cache needs 1 MiB.*=null"):
        cache.cohort(study, study.records)


def _with_little_space(cache: ImageCache, study: Counted) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(DataError, match=r"data\.cache_dir=.*File too large"):
        cache.cohort(study, study.records)


def test_too_little_space_is_said_before_anything_is_decoded(make: Make, cache: ImageCache) -> None:
    study = make()
    _run(_with_little_space, cache, study)
    assert study.decoded == 0
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def _cohort(cache: ImageCache, study: Counted) -> None:
    cache.cohort(study, study.records)


def _start(action: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=action, args=arguments)
    process.start()
    return process  # pyright: ignore[reportReturnType]


def _run(action: Callable[..., None], *arguments: object) -> None:
    process = _start(action, *arguments)
    process.join(60)
    assert process.exitcode == 0


def test_several_processes_decode_once(make: Make, cache: ImageCache) -> None:
    study = make(count=30)
    processes = [_start(_cohort, cache, study) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert study.decoded == 30


def test_what_a_killed_process_left_does_no_harm(make: Make, cache: ImageCache) -> None:
    study = make(slow_row=4)
    process = _start(_cohort, cache, study)
    while study.decoded < 4:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert len(list(cache.folder.glob(".*.npy.*"))) == 1
    quick = replace(study, slow_row=None)
    cached = cache.cohort(quick, quick.records)
    assert not list(cache.folder.glob(".*.npy.*"))
    np.testing.assert_array_equal(
        cached.images, load_cohort(quick, quick.records, image_size=8).images
    )


def test_a_mapped_cache_outlives_its_replacement(make: Make, cache: ImageCache) -> None:
    study = make()
    images = cache.images(study, study.records)
    before = np.array(images)
    _file(cache).unlink()
    cache.images(study, study.records)
    np.testing.assert_array_equal(images, before)


def test_the_module_needs_no_torch() -> None:
    code = "import sys, client.data.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
