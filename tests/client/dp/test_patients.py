"""Batches of whole patients: every image is counted for its own patient, once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.dp.patients import PatientBatch

COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def _batch(counts: list[int]) -> PatientBatch:
    num_images = sum(counts)
    return PatientBatch(
        images=torch.arange(num_images, dtype=torch.float32).view(-1, 1, 1, 1),
        labels=torch.arange(num_images) % 2,
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        num_patients=len(counts),
    )


@given(COUNTS)
def test_each_patient_weighs_one(counts: list[int]) -> None:
    batch = _batch(counts)
    by_patient = batch.fold(batch.image_weights())
    assert torch.allclose(by_patient, torch.ones(len(counts)))


@given(COUNTS)
def test_fold_is_the_sum_over_a_patients_images(counts: list[int]) -> None:
    batch = _batch(counts)
    values = torch.randn(sum(counts), 2, 3, generator=torch.Generator().manual_seed(1))
    expected = [part.sum(0) for part in values.split(counts)]
    assert torch.allclose(batch.fold(values), torch.stack(expected), atol=1e-6)


@given(COUNTS, st.integers(1, 3))
def test_gather_puts_images_side_by_side_and_pads_with_zeros(
    counts: list[int], positions: int
) -> None:
    batch = _batch(counts)
    values = 1 + torch.rand(sum(counts), positions, 2)
    side = batch.gather(values)
    assert side.shape == (len(counts), max(counts) * positions, 2)
    for patient, part in enumerate(values.split(counts)):
        own = part.flatten(0, 1)
        assert torch.equal(side[patient, : len(own)], own)
        assert not side[patient, len(own) :].any()


@given(COUNTS)
def test_alike_splits_by_numbers_of_images_and_loses_nobody(counts: list[int]) -> None:
    batch = _batch(counts)
    batches = list(batch.alike())
    found = [torch.bincount(part.patients) for part in batches]
    assert all(int(each.max()) < 2 * int(each.min()) for each in found)
    assert sorted(torch.cat(found).tolist()) == sorted(counts)
    images = torch.cat([part.images for part in batches])
    assert sorted(images.flatten().tolist()) == sorted(batch.images.flatten().tolist())


@given(COUNTS, st.integers(1, 4))
def test_parts_are_whole_patients_in_order(counts: list[int], at_once: int) -> None:
    batch = _batch(counts)
    parts = list(batch.parts(at_once))
    assert all(part.num_patients <= at_once for part in parts)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    found = torch.cat([torch.bincount(part.patients) for part in parts])
    assert found.tolist() == counts


@given(COUNTS, st.data())
def test_only_keeps_whole_patients_and_renumbers(counts: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    keep[data.draw(st.integers(0, len(counts) - 1))] = True
    batch = _batch(counts)
    kept = batch.only(torch.tensor(keep))
    images = [part for part, wanted in zip(batch.images.split(counts), keep, strict=True) if wanted]
    assert torch.equal(kept.images, torch.cat(images))
    assert torch.equal(kept.labels, kept.images.flatten().long() % 2)
    assert kept.num_patients == sum(keep)
    kept_counts = [count for count, wanted in zip(counts, keep, strict=True) if wanted]
    assert torch.bincount(kept.patients).tolist() == kept_counts


@given(st.integers(1, 20), st.integers(1, 25))
def test_pieces_are_all_images_in_turn(in_pieces: Any, num_images: int, at_once: int) -> None:
    batch = _batch([num_images])
    patient = in_pieces(batch, at_once)
    for _ in range(2):  # asked again, they come again
        pieces, shares = zip(*patient.pieces(), strict=True)
        sizes = [len(piece.labels) for piece in pieces]
        assert max(sizes) <= at_once
        assert shares == pytest.approx([size / num_images for size in sizes])
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    assert list(patient.parts(1)) == [patient]
    assert list(batch.pieces()) == [(batch, 1.0)]


def test_a_change_meets_every_piece(in_pieces: Any) -> None:
    batch = _batch([5])

    def darker(piece: PatientBatch) -> PatientBatch:
        return replace(piece, images=piece.images - 9)

    pieces = [piece for piece, _ in in_pieces(batch, 2).changed(darker).pieces()]
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images - 9)
    assert torch.equal(batch.changed(darker).images, batch.images - 9)


@pytest.mark.parametrize(
    ("patients", "num_patients"),
    [([0, 0], 2), ([1, 1], 2), ([0, 1, 0], 2), ([0, 2], 3), ([0, 1], 1)],
)
def test_a_batch_that_would_mix_patients_up_is_refused(
    patients: list[int], num_patients: int
) -> None:
    num_images = len(patients)
    with pytest.raises(ValueError, match="must ascend, and each patient must have an image"):
        PatientBatch(
            images=torch.zeros(num_images, 1, 1, 1),
            labels=torch.zeros(num_images, dtype=torch.int64),
            patients=torch.tensor(patients),
            num_patients=num_patients,
        )
