"""Size classes: their shapes, their area, and what of a picture they show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.images.bucket import Bucket, buckets, centre_crop, nearest_bucket

SIDE = st.integers(16, 4096)


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (64, 8), (96, 8)])
def test_buckets_come_in_both_orientations_within_area_and_aspect(
    resolution: int, step: int
) -> None:
    sizes = buckets(resolution, 2.0, step)
    assert Bucket(resolution, resolution) in sizes
    assert set(sizes) == {Bucket(b.height, b.width) for b in sizes}
    assert all(b.width <= 2 * b.height and b.height <= 2 * b.width for b in sizes)
    assert all(b.width * b.height <= resolution**2 for b in sizes)
    assert all(b.width % step == b.height % step == 0 for b in sizes)


def test_the_buckets_of_sd15_are_these() -> None:
    assert [(b.width, b.height) for b in buckets(512, 2.0, 64)] == [
        (384, 640),
        (448, 576),
        (512, 512),
        (576, 448),
        (640, 384),
    ]


def test_an_aspect_of_one_leaves_the_square() -> None:
    assert buckets(64, 1.0, 8) == [Bucket(64, 64)]


@pytest.mark.parametrize(
    ("resolution", "step", "aspect"), [(500, 64, 2.0), (64, 0, 2.0), (64, 8, 0.5)]
)
def test_impossible_buckets_are_refused(resolution: int, step: int, aspect: float) -> None:
    with pytest.raises(ValueError, match=r"bucket_step_px|max_aspect"):
        buckets(resolution, aspect, step)


@given(SIDE, SIDE)
def test_a_picture_and_its_mirror_image_go_to_mirrored_buckets(width: int, height: int) -> None:
    choices = buckets(512, 2.0, 64)
    found, mirrored = (
        nearest_bucket(width, height, choices),
        nearest_bucket(height, width, choices),
    )
    assert found in {mirrored, Bucket(mirrored.height, mirrored.width)}


@given(SIDE, SIDE)
def test_the_crop_is_the_largest_of_its_shape_and_in_the_middle(width: int, height: int) -> None:
    bucket = nearest_bucket(width, height, buckets(512, 2.0, 64))
    left, top, right, bottom = centre_crop(width, height, bucket)
    assert (right - left) / (bottom - top) == pytest.approx(bucket.aspect)
    assert left == pytest.approx(width - right)
    assert top == pytest.approx(height - bottom)
    assert min(left, top) == pytest.approx(0, abs=1e-9)


def test_the_nearest_bucket_is_nearest_in_log_aspect() -> None:
    choices = [Bucket(512, 512), Bucket(640, 384)]
    edge = (640 / 384) ** 0.5
    assert nearest_bucket(1000, round(1000 / edge) + 9, choices) == Bucket(512, 512)
    assert nearest_bucket(1000, round(1000 / edge) - 9, choices) == Bucket(640, 384)
