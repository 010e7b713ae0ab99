"""Decoded images on disk: made once, mapped into memory ever after.

One file holds the images of a set of records at one size: a NumPy array file (``.npy``, float32)
followed by a SHA-256 checksum. Labels, patients, groups and file names are not in it: they are
taken from the records each time, so that a corrected table needs no new cache, and the file holds
pixels only. It is made with mode 0600 in a folder of mode 0700, for it is as confidential as the
images themselves.

**What a cache is known by.** Its name is a SHA-256 over: each file's path, size, times of last
change (``mtime`` and ``ctime``, nanoseconds) and row; the settings of the study; size and depth;
the versions of this product and of the decoders. The files' bytes are not hashed: a study of 10,000
full-field mammograms is 300 GB, and reading that at each start costs tens of minutes from a
hospital's file server, where decoding is what the cache is there to save. One ``stat`` for each
file costs about 10 µs (1 s for 100,000 files). Whatever writes to a file moves its ``ctime``, which
a program cannot set back, so an edit is missed only if somebody turns the machine's clock back. The
price is that a copied or moved study, or a changed file mode, is decoded again.

**What it costs.** Disk: 4 bytes a pixel (16 KiB an image at 64 px, 200 KiB at 224 px). Each opening
reads the whole file once for its checksum (about 1 GB/s on one core), which also warms the page
cache for the first epoch. A file that fails it (cut, edited, a disk's bad block) is made anew.

**Two processes** that need the same cache wait for each other (``flock`` on a ``.lock`` file beside
it); the second finds it made. Where a file system knows no ``flock`` both decode, and either
result is whole, since a file only ever appears by renaming. Disk space is reserved before the
first image is decoded, so a full disk is said at once, and an array that is mapped later cannot be
short of blocks.

Nothing is removed by itself: the folder may be emptied at any time when no training runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from client.data.cohort import Cohort, assemble, fit, image_shape
from client.data.study import Record, Study
from common.errors import DataError

_VERSION = 1  # of this format and of `fit`; another number makes every cache anew
_DECODERS = (
    "fedward",
    "numpy",
    "pillow",
    "nibabel",
    "pydicom",
    "python-gdcm",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
)
_DTYPE = np.dtype("<f4")
_CHECKSUM_BYTES = 32
_CHUNK_BYTES = 1 << 20


@runtime_checkable
class ManySources(Protocol):
    """A study whose images come from more files than ``record.path``, such as masks."""

    def sources(self, record: Record) -> Sequence[Path]:
        """Every file, or folder of files, that decides the pixels of ``record``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCache:
    """Decoded images in ``folder``, brought to ``image_size`` (and ``depth``).

    Attributes:
        folder: Where the files are; made if absent.
        image_size: S, in pixels.
        depth: D, in slices; for volumes only.
        settings: Whatever else decides the pixels, as text: the study's kind, window, crops.
    """

    folder: Path
    image_size: int
    depth: int | None = None
    settings: str = ""

    def cohort(
        self, study: Study, records: Sequence[Record], *, within: Sequence[Record] | None = None
    ) -> Cohort:
        """The cohort of ``records``; as `load_cohort`, with decoding done at most once.

        Args:
            study: The study that reads them.
            records: At least one record.
            within: More records that share one cache with these, such as all of the study: then
                another split or partition decodes nothing anew, and images that do not stand
                side by side there are copied into memory. By default these records have a cache
                of their own, and ``images`` is its memory map.

        Raises:
            DataError: There are no records, an image cannot be read (named by its row), or the
                cache cannot be written.
        """
        if not records:
            raise DataError("data: a cohort needs at least one image")
        ordered = sorted(records, key=lambda record: record.row)
        if within is None:
            return assemble(study, ordered, self.images(study, ordered))
        together = sorted(within, key=lambda record: record.row)
        position = {record.row: place for place, record in enumerate(together)}
        places = np.array([position[record.row] for record in ordered])
        images = self.images(study, together)
        side_by_side = bool((np.diff(places) == 1).all())
        chosen = images[places[0] : places[-1] + 1] if side_by_side else images[places]
        return assemble(study, ordered, chosen)

    def images(self, study: Study, records: Sequence[Record]) -> npt.NDArray[np.float32]:
        """The images of ``records`` in row order, (N, 1, S, S) or (N, 1, D, S, S), mapped.

        Raises:
            DataError: As `cohort`.
        """
        ordered = sorted(records, key=lambda record: record.row)
        shape = image_shape(study.image_kind, image_size=self.image_size, depth=self.depth)
        key = self._key(study, ordered, shape)
        path = self.folder / f"{key[:32]}.npy"
        full = (len(ordered), 1, *shape)
        try:
            found = _open(path, key, full)
            if found is not None:
                return found
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(path.with_suffix(".lock")) as locked:
                found = _open(path, key, full)  # another process may have been faster
                if found is None:
                    if locked:
                        _remove_unfinished(path)
                    _write(path, key, full, (fit(study.read(r), shape) for r in ordered))
                    found = _open(path, key, full)
        except OSError as error:
            need = (4 * int(np.prod(full)) >> 20) + 1
            raise DataError(
                f"data.cache_dir={self.folder}: {error.strerror}; the cache needs {need} MiB; name "
                "another folder, or do without by data.cache_dir=null"
            ) from None
        if found is None:
            raise DataError(
                f"data.cache_dir={self.folder}: what was written there does not read back; the "
                "disk may be failing, name another folder"
            )
        return found

    def _key(self, study: Study, ordered: Sequence[Record], shape: tuple[int, ...]) -> str:
        """Hexadecimal SHA-256 over everything that decides the pixels."""
        digest = hashlib.sha256()
        head = [_VERSION, study.name, study.image_kind.value, shape, self.settings, _versions()]
        digest.update(json.dumps(head).encode())
        for record in ordered:
            sources = study.sources(record) if isinstance(study, ManySources) else [record.path]
            digest.update(json.dumps([record.row, _stamps(record, sources)]).encode())
        return digest.hexdigest()


def _versions() -> list[str]:
    found: list[str] = []
    for name in _DECODERS:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("absent")
    return found


def _stamps(record: Record, sources: Sequence[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size and times of each file, and of every file in a folder."""
    try:
        paths = [path for source in sources for path in _files(source)]
        stats = [(os.fspath(path.absolute()), path.stat()) for path in paths]
    except OSError as error:
        kind = type(error).__name__
        raise DataError(f"data: the image of row {record.row} cannot be opened ({kind})") from None
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    return sorted(path for path in source.rglob("*") if path.is_file())


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Waits until no other process is at the same cache; false where files cannot be locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: renaming alone keeps files whole
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _remove_unfinished(path: Path) -> None:
    """Removes what killed processes left; for the holder of the lock, who alone writes here."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    described = {"descr": _DTYPE.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _write(
    path: Path, key: str, shape: tuple[int, ...], images: Iterator[npt.NDArray[np.float32]]
) -> None:
    """Writes the images under a temporary name, flushes them to disk, then moves the file."""
    header = _header(shape)
    length = len(header) + _DTYPE.itemsize * int(np.prod(shape)) + _CHECKSUM_BYTES
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, length)
            digest = hashlib.sha256(key.encode() + header)
            file.write(header)
            for image in images:
                block = np.ascontiguousarray(image, dtype=_DTYPE).tobytes()
                digest.update(block)
                file.write(block)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _open(path: Path, key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Maps a cache after checking every byte of it; ``None`` where there is no sound one."""
    header = _header(shape)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        size = os.fstat(file.fileno()).st_size
        expected = len(header) + _DTYPE.itemsize * int(np.prod(shape)) + _CHECKSUM_BYTES
        if size != expected or not _is_sound(file, key, header, size):
            return None
        # The same open file, not the path: another may stand there by now. Copy on write: torch
        # takes no array that cannot be written, and what is written never reaches the file.
        return np.memmap(file, dtype=_DTYPE, mode="c", offset=len(header), shape=shape)


def _is_sound(file: BinaryIO, key: str, header: bytes, size: int) -> bool:
    if file.read(len(header)) != header:
        return False
    digest = hashlib.sha256(key.encode() + header)
    left = size - len(header) - _CHECKSUM_BYTES
    while left:
        block = file.read(min(left, _CHUNK_BYTES))
        if not block:
            return False
        digest.update(block)
        left -= len(block)
    return file.read(_CHECKSUM_BYTES) == digest.digest()
