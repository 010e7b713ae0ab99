"""Phantoms: synthetic mammographic masses as real DICOM files, for demos and tests.

No person is in them, which makes them public. They are drawn by `client.data.mass`, exposed by the
scanner of their hospital and stored as Digital Mammography X-Ray Images (For Presentation), beside
a ``metadata.csv`` that makes them an ordinary table study.

How hard the default study is (three hospitals, scores averaged over a phantom's images): a linear
probe of 16 x 16 pixels reaches a test AUROC of 0.81 to 0.84; ViT-Tiny at 64 px from random weights,
centralized and without privacy (AdamW 3e-4, batches of 32, flips), 0.91 after 9 epochs.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from client.data.mass import draw_mass, draw_view
from client.data.patient import PatientHash
from client.data.scanner import Scanner, expose, scanner_of
from client.data.table import TableStudy, read_table
from common.config import ColumnsConfig, DataConfig, PhantomConfig, StudyKind
from common.errors import DataError

_TABLE = "metadata.csv"
_MARKER = "phantoms.json"
_VERSION = 1  # changes with the drawing, so that old folders are not taken for new ones
_COLUMNS: tuple[str, ...] = (
    "file",
    "patient_id",
    "malignant",
    "split",
    "hospital",
    "age",
    "density",
    "side",
    "view",
)
_VIEW_SHARES = (0.40, 0.40, 0.12, 0.08)  # of phantoms with 1, 2, 3 and 4 images
_DENSITY_SHARES = (0.10, 0.40, 0.40, 0.10)  # of breast density 1, 2, 3 and 4
_VIEW_CODES = {"CC": ("R-10242", "cranio-caudal"), "MLO": ("R-10226", "medio-lateral oblique")}


def phantom_study(
    config: DataConfig, *, num_sites: int, phantom_dir: Path, hashed: PatientHash
) -> TableStudy:
    """Writes the phantoms of ``config`` unless they are there, and opens them as a table study.

    Raises:
        DataError: The folder cannot be written or holds something else.
    """
    digest = sha256(_recipe(config.phantom, num_sites).encode()).hexdigest()[:12]
    root = phantom_dir / f"phantoms-{digest}"
    write_phantoms(config.phantom, root, num_sites=num_sites)
    columns = ColumnsConfig(
        image="file", patient="patient_id", label="malignant", split="split", site="hospital"
    )
    return read_table(
        replace(config, kind=StudyKind.table, root=root, table=_TABLE, columns=columns), hashed
    )


def write_phantoms(config: PhantomConfig, root: Path, *, num_sites: int) -> None:
    """Writes a study of ``num_sites`` hospitals into ``root``, or leaves the one that is there.

    Each hospital has ``num_train_per_site`` training phantoms; the validation and test phantoms
    come from all hospitals in turn. Half of each group are malignant. The same recipe gives the
    same pixels. A folder appears whole or not at all, also when several processes write it.

    Raises:
        DataError: ``root`` holds something else, or cannot be written.
    """
    recipe = _recipe(config, num_sites)
    if root.exists():
        _check_marker(root, recipe)
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"phantoms: cannot write to {root.parent} ({error.strerror})") from None
    try:
        _write_study(config, unfinished, num_sites)
        (unfinished / _MARKER).write_text(recipe + "\n")
        unfinished.chmod(0o755)  # mkdtemp keeps others out, but no person is in these images
        _move(unfinished, root, recipe)
    except OSError as error:
        raise DataError(f"phantoms: cannot write to {root.parent} ({error.strerror})") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _recipe(config: PhantomConfig, num_sites: int) -> str:
    values = {"version": _VERSION, "num_sites": num_sites, **asdict(config)}
    return json.dumps(values, sort_keys=True)


def _check_marker(root: Path, recipe: str) -> None:
    marker = root / _MARKER
    if not marker.is_file() or marker.read_text().strip() != recipe:
        raise DataError(f"phantoms: {root} holds something else; name another folder or remove it")


def _move(unfinished: Path, root: Path, recipe: str) -> None:
    try:
        unfinished.rename(root)
    except OSError:
        # Another process was faster; what it wrote has the same pixels.
        _check_marker(root, recipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """One phantom: everything that its images share."""

    number: int
    malignant: bool
    split: str
    hospital: int
    seed: int

    @property
    def name(self) -> str:
        return f"PHANTOM-{self.number:05d}"


def _subjects(config: PhantomConfig, num_sites: int) -> Iterator[_Subject]:
    """Lists phantoms; class and hospital alternate at different paces, so they are unrelated."""
    plan = [
        (split, 1 + index % num_sites, index // num_sites % 2 == 1)
        for split, count in (
            ("train", config.num_train_per_site * num_sites),
            ("val", config.num_val),
            ("test", config.num_test),
        )
        for index in range(count)
    ]
    for number, (split, hospital, malignant) in enumerate(plan, start=1):
        yield _Subject(
            number=number, malignant=malignant, split=split, hospital=hospital, seed=config.seed
        )


def _write_study(config: PhantomConfig, root: Path, num_sites: int) -> None:
    scanners = {number: scanner_of(number, config.seed) for number in range(1, num_sites + 1)}
    with (root / _TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for subject in _subjects(config, num_sites):
            folder = root / f"hospital-{subject.hospital}"
            folder.mkdir(exist_ok=True)
            for row in _write_subject(subject, scanners[subject.hospital], folder, config.size):
                writer.writerow(row)


def _write_subject(
    subject: _Subject, scanner: Scanner, folder: Path, size: int
) -> Iterator[dict[str, object]]:
    """Writes the images of one phantom and yields their rows of the table."""
    generator = np.random.default_rng([subject.seed, 3, subject.number])
    mass = draw_mass(generator, malignant=subject.malignant)
    age = int(np.clip(generator.normal(60 if subject.malignant else 54, 11), 35, 89))
    density = 1 + int(generator.choice(4, p=_DENSITY_SHARES))
    side = "LR"[generator.integers(2)]
    num_images = 1 + int(generator.choice(4, p=_VIEW_SHARES))
    for index in range(num_images):
        view = ("CC", "MLO")[index % 2]
        picture = draw_view(generator, mass, density=density, size=size, field_mm=scanner.field_mm)
        dataset = _describe(subject, scanner, instance=index + 1)
        dataset.PatientAge = f"{age:03d}Y"
        _add_view(dataset, side=side, view=view, density=density)
        _add_pixels(dataset, expose(picture, scanner, generator), scanner)
        path = folder / f"{subject.name}-{index + 1}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        yield {
            "file": path.relative_to(folder.parent).as_posix(),
            "patient_id": subject.name,
            "malignant": int(subject.malignant),
            "split": subject.split,
            "hospital": f"hospital-{subject.hospital}",
            "age": age,
            "density": density,
            "side": side,
            "view": view,
        }


def _describe(subject: _Subject, scanner: Scanner, *, instance: int) -> Dataset:
    """The part of the header that says whose and what the image is."""
    entropy = ["fedward phantom", str(_VERSION), str(subject.seed), subject.name]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, str(instance)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=entropy)
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*entropy, "series"])
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = scanner.manufacturer
    dataset.InstitutionName = f"PHANTOM HOSPITAL {subject.hospital}"
    dataset.PatientName = f"PHANTOM^{subject.number:05d}"
    dataset.PatientID = subject.name
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "F"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic phantom: no person was imaged"
    dataset.ImageComments = "PHANTOM: synthetic, not for diagnosis"
    dataset.BurnedInAnnotation = "NO"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance
    return dataset


def _add_view(dataset: Dataset, *, side: str, view: str, density: int) -> None:
    dataset.ImageLaterality = side
    dataset.ViewPosition = view
    dataset.BodyPartExamined = "BREAST"
    dataset.AnatomicRegionSequence = [_code("T-04000", "Breast")]
    dataset.ViewCodeSequence = [_code(*_VIEW_CODES[view])]
    # No attribute of the mammography module holds breast density.
    block = dataset.private_block(0x0011, "FEDWARD PHANTOM", create=True)
    block.add_new(0x01, "US", density)


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = "SRT"
    code.CodeMeaning = meaning
    return code


def _add_pixels(dataset: Dataset, stored: npt.NDArray[np.uint16], scanner: Scanner) -> None:
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if scanner.inverted else "IDENTITY"
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.ImagerPixelSpacing = [round(scanner.field_mm / stored.shape[0], 4)] * 2
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    dataset.WindowCenter = scanner.window_center
    dataset.WindowWidth = scanner.window_width
    dataset.PixelData = stored.astype("<u2").tobytes()
