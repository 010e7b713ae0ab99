"""Stored numbers of the frames of a DICOM file, from any of the supported transfer syntaxes.

Codecs, all under permissive licences: Pillow (JPEG baseline), GDCM (JPEG lossless and 12-bit
extended), CharLS through pyjpegls (JPEG-LS), OpenJPEG through pylibjpeg (JPEG 2000), pylibjpeg-rle.
They are C, C++ or Rust, so this runs in the decoder's process and never in the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.data.dicom_codestream import check_codestream
from client.data.dicom_header import DicomHeader
from common.errors import DataError

Stored = npt.NDArray[np.integer[Any]]

_NATIVE = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
}
_PLUGINS = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    RLELossless: "pylibjpeg",
}


def stored_frames(
    dataset: Dataset, header: DicomHeader, frames: Sequence[int]
) -> Iterator[tuple[Stored, str]]:
    """Decodes frames one after the other.

    Args:
        dataset: With its pixel data.
        header: Of ``dataset``, checked.
        frames: Which, counted from 0, in ascending order.

    Yields:
        (H, W) or (H, W, 3) stored numbers, and their photometric interpretation, which a codec
        may have changed.

    Raises:
        DataError: There are more or fewer pixels or frames than the header says, or a frame is
            damaged or not what it should be.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if "PixelData" not in dataset:
        raise DataError("has no integer pixel data")
    if syntax in _NATIVE:
        if header.bits_allocated == 1 and header.samples != 1:
            raise DataError("stores colours in single bits")
        yield from _native_frames(dataset, header, frames)
    elif syntax in _PLUGINS:
        if header.bits_allocated == 1:
            raise DataError("stores single bits compressed, which is not supported")
        yield from _compressed_frames(dataset, header, frames, syntax)
    else:
        raise DataError("is in a transfer syntax that is not supported")


def _native_frames(
    dataset: Dataset, header: DicomHeader, frames: Sequence[int]
) -> Iterator[tuple[Stored, str]]:
    actual = len(dataset.PixelData)
    if actual not in {header.pixel_bytes, header.pixel_bytes + header.pixel_bytes % 2}:
        raise DataError(f"has {actual} bytes of pixels where its header says {header.pixel_bytes}")
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    for array, facts in decoder.iter_array(dataset, indices=frames, raw=True):
        yield _checked(array, header), str(facts["photometric_interpretation"])


def _compressed_frames(
    dataset: Dataset, header: DicomHeader, frames: Sequence[int], syntax: UID
) -> Iterator[tuple[Stored, str]]:
    precision = 0
    num_found = 0
    wanted = set(frames)
    for source in _sources(dataset, header):
        if num_found in wanted:
            precision = max(precision, check_codestream(source, syntax, header))
        num_found += 1
    if num_found != header.num_frames:
        raise DataError("has another number of compressed frames than its header says")
    if syntax == JPEGExtended12Bit and precision > 8:
        for frame, source in enumerate(_sources(dataset, header)):
            if frame in wanted:
                yield _deep_jpeg(source, header, precision), header.photometric
        return
    plugin = _PLUGINS[syntax]
    decoder = get_decoder(syntax)
    if plugin not in decoder.available_plugins:
        raise DataError(f"needs the codec {plugin}, which is not installed")
    options: dict[str, Any] = {"bits_stored": 8} if syntax == JPEGExtended12Bit else {}
    for array, facts in decoder.iter_array(
        dataset, indices=frames, raw=True, decoding_plugin=plugin, **options
    ):
        yield _checked(array, header), str(facts["photometric_interpretation"])


def _sources(dataset: Dataset, header: DicomHeader) -> Iterator[bytes]:
    """Compressed frames, at most one more than there should be."""
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    found = generate_frames(
        dataset.PixelData, number_of_frames=header.num_frames, extended_offsets=offsets
    )
    for number, source in enumerate(found):
        if number > header.num_frames:
            return
        yield source


def _deep_jpeg(source: bytes, header: DicomHeader, precision: int) -> Stored:
    """Decodes a grey JPEG of 9 to 12 bits with GDCM, which pydicom does not ask for it."""
    import gdcm  # only for this rare kind of file

    if header.samples != 1 or header.bits_allocated != 16:
        raise DataError("has a JPEG of more than 8 bits that is not grey in 16 bits")
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(source)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((header.columns, header.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, precision, precision - 1, 0))
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")
    return _checked(np.frombuffer(decoded, dtype="<u2"), header)


def _checked(array: npt.NDArray[Any], header: DicomHeader) -> Stored:
    shape: tuple[int, ...] = (header.rows, header.columns)
    if header.samples > 1:
        shape = (*shape, header.samples)
    if array.size != int(np.prod(shape)):
        raise DataError("has a compressed frame of another size than its header says")
    return array.reshape(shape)
