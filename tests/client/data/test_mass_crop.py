from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.mass_crop import (
    Box,
    box_of_mass,
    nearest,
    paper_boxes,
    paper_square,
    square_around,
)

SHAPE = (600, 500)


def _mask(*boxes: Box) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    for box in boxes:
        box.cut(mask)[:] = True
    return mask


boxes = st.builds(
    Box,
    x=st.integers(0, 420),
    y=st.integers(0, 520),
    width=st.integers(1, 80),
    height=st.integers(1, 80),
)


@given(boxes)
def test_the_box_of_a_mass_is_found(box: Box) -> None:
    assert box_of_mass(_mask(box)) == box


def test_the_largest_part_is_the_mass_and_nothing_is_none() -> None:
    small, large = (
        Box(x=10, y=10, width=20, height=20),
        Box(x=200, y=300, width=30, height=15),
    )
    assert box_of_mass(_mask(small, large)) == large
    assert box_of_mass(_mask()) is None


def test_pixels_that_touch_at_a_corner_are_one_part() -> None:
    mask = _mask(Box(x=10, y=10, width=5, height=5), Box(x=15, y=15, width=5, height=5))
    assert box_of_mass(mask) == Box(x=10, y=10, width=10, height=10)


@given(boxes)
def test_a_square_holds_its_mass_and_lies_in_the_image(box: Box) -> None:
    square = square_around(box, SHAPE)
    assert square.width == square.height == max(128, max(box.width, box.height) + 120)
    assert 0 <= square.x <= box.x
    assert box.x + box.width <= square.x + square.width <= SHAPE[1]
    assert 0 <= square.y <= box.y
    assert box.y + box.height <= square.y + square.height <= SHAPE[0]


def test_a_mass_away_from_the_border_is_in_the_middle() -> None:
    square = square_around(Box(x=200, y=300, width=40, height=60), SHAPE)
    assert square == Box(x=130, y=240, width=180, height=180)


def test_a_mass_as_large_as_the_image() -> None:
    assert square_around(Box(x=0, y=0, width=90, height=100), (100, 90)) == Box(
        x=0, y=5, width=90, height=90
    )


def test_a_mask_of_another_size_is_stretched() -> None:
    mask = _mask(Box(x=100, y=200, width=50, height=100))
    twice = nearest(mask, (1200, 1000))
    assert box_of_mass(twice) == Box(x=200, y=400, width=100, height=200)
    assert np.array_equal(nearest(twice, SHAPE), mask)


def test_the_paper_joins_what_is_near_and_separates_what_is_far() -> None:
    near = _mask(Box(x=80, y=80, width=40, height=40), Box(x=140, y=80, width=40, height=40))
    assert paper_boxes(near) == (Box(x=80, y=80, width=100, height=40),)
    far = _mask(Box(x=80, y=80, width=40, height=40), Box(x=200, y=80, width=40, height=40))
    assert set(paper_boxes(far)) == {
        Box(x=80, y=80, width=40, height=40),
        Box(x=200, y=80, width=40, height=40),
    }


def test_the_paper_finds_a_mass_at_the_border_whole() -> None:
    box = Box(x=0, y=0, width=40, height=80)
    assert paper_boxes(_mask(box)) == (box,)


def test_the_paper_takes_the_outline_of_a_hole_for_a_mass() -> None:
    ring = _mask(Box(x=80, y=80, width=200, height=200))
    Box(x=120, y=140, width=80, height=60).cut(ring)[:] = False
    assert set(paper_boxes(ring)) == {
        Box(x=80, y=80, width=200, height=200),
        Box(x=119, y=139, width=82, height=62),
    }
    assert paper_boxes(_mask()) == ()


@pytest.mark.parametrize(
    ("box", "square"),
    [
        # the side is the width and two margins; the upper margin is subtracted twice
        (Box(x=200, y=300, width=40, height=40), Box(x=140, y=180, width=160, height=160)),
        # the width alone decides, so this mass is cut off at the bottom
        (Box(x=200, y=200, width=20, height=300), Box(x=140, y=220, width=140, height=140)),
        # narrow ones get 128 pixels
        (Box(x=200, y=300, width=4, height=4), Box(x=138, y=178, width=128, height=128)),
        # moved into the image
        (Box(x=0, y=0, width=40, height=40), Box(x=0, y=0, width=160, height=160)),
        (Box(x=480, y=580, width=20, height=20), Box(x=360, y=460, width=140, height=140)),
    ],
)
def test_the_square_of_the_paper_without_jitter(box: Box, square: Box) -> None:
    assert paper_square(box, SHAPE) == square


@given(boxes, st.integers(0, 2**32))
def test_the_jitter_of_the_paper(box: Box, seed: int) -> None:
    square = paper_square(box, SHAPE, np.random.default_rng(seed))
    assert square == paper_square(box, SHAPE, np.random.default_rng(seed))
    assert square.width == square.height >= 128
    assert 0 <= square.x <= SHAPE[1] - square.width
    assert 0 <= square.y <= SHAPE[0] - square.height


def test_the_jitter_zooms_out_and_shifts_up_and_left() -> None:
    box = Box(x=250, y=350, width=40, height=40)
    generator = np.random.default_rng(0)
    squares = [paper_square(box, (4000, 4000), generator) for _ in range(2000)]
    sides = np.array([square.width for square in squares])
    assert 160 + 4 - 0.5 < sides.mean() + 0.25 < 160 + 4 + 0.5  # half of 5 %
    assert 3.5 < sides.std() < 4.5  # half of 5 %
    shifts = np.array([square.x for square in squares]) - (190 - (sides - 160))
    assert (shifts <= -np.floor(0.05 * sides)).all()
    assert 0.1 < (shifts < -np.floor(0.05 * sides)).mean() < 0.2  # beyond one deviation of 5 %
