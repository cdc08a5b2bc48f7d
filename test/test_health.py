"""What is wrong with a camera's images is told, and a sound camera is left alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from recon4d_ros.cameras.health import THRESHOLDS, CameraHealth, edge_width, told

SIZE = (120, 240)


def scene(index: int, rng: np.random.Generator) -> np.ndarray:
    """A texture that goes by, below a sky, with noise."""
    wide = np.random.default_rng(3).normal(0, 30, (SIZE[0] // 4, 1000))
    at = wide[:, 7 * index : 7 * index + SIZE[1] // 4]
    image = 120 + np.kron(at, np.ones((4, 4)))
    image[:30] = 210
    return np.clip(image + rng.normal(0, 2, SIZE), 0, 255).astype(np.uint8)


def watch(change, frames: int = 40, travel: float = 1.6) -> tuple[str, ...]:
    rng, health, last = np.random.default_rng(0), CameraHealth(1), ()
    for index in range(frames):
        (last,) = health.look([change(scene(index, rng), index)], travel)
    return last


def drops(image: np.ndarray, _: int) -> np.ndarray:
    """Dirt over half of the lens."""
    out = image.copy()
    dirt = np.kron(np.random.default_rng(5).normal(90, 25, (15, 30)), np.ones((8, 8)))
    out[:, :140] = np.clip(dirt[:, :140], 0, 255)
    return out


def torn(image: np.ndarray, index: int) -> np.ndarray:
    """The rows from somewhere on are another image's."""
    soft = cv2.GaussianBlur(image, (0, 0), 1.5)
    other = np.roll(soft, 9, axis=1)
    row = 50 + 7 * (index % 8)
    soft[row:] = other[row:]
    return soft


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda image, _: image, ()),
        (lambda image, _: image // 12, ("too dark",)),
        (lambda image, _: np.maximum(image, np.uint8(252)), ("glare",)),
        (drops, ("lens blocked",)),
        (lambda image, index: scene(min(index, 20), np.random.default_rng(1)), ("frozen",)),
        (lambda image, _: cv2.GaussianBlur(image, (0, 0), 5.0), ("blurred",)),
        (lambda image, index: torn(image, index), ("torn image",)),
    ],
    ids=["sound", "dark", "glare", "covered", "frozen", "blurred", "torn"],
)
def test_what_is_wrong_is_told(change, trouble):
    assert watch(change) == trouble


def test_a_car_that_stands_has_no_dirt_on_its_lens():
    assert watch(lambda _, index: scene(0, np.random.default_rng(index)), travel=0.0) == ()


def test_an_absent_camera_keeps_what_was_said_of_it_and_it_recovers():
    rng, health = np.random.default_rng(0), CameraHealth(2)
    dark = scene(0, rng) // 12
    assert health.look([dark, scene(0, rng)], 1.0) == (("too dark",), ())
    assert health.look([None, scene(1, rng)], 1.0) == (("too dark",), ())
    assert health.look([scene(2, rng), scene(2, rng)], 1.0) == ((), ())


def test_a_bridge_is_no_tear_and_an_image_that_never_came_is():
    """Other things below an edge than above; and grey from somewhere on."""
    rng = np.random.default_rng(0)

    def bridges(image: np.ndarray, index: int) -> np.ndarray:
        row = 40 + 5 * (index % 9)
        out = cv2.GaussianBlur(image, (0, 0), 1.5)
        out[row : row + 20] = np.clip(rng.normal(60, 12, (20, SIZE[1])), 0, 255)
        return out

    def truncated(image: np.ndarray, index: int) -> np.ndarray:
        out = cv2.GaussianBlur(image, (0, 0), 1.5)
        out[60 + 4 * (index % 9) :] = 16
        return out

    assert "torn image" not in watch(bridges)
    assert "torn image" in watch(truncated)


def test_an_edge_of_the_car_itself_is_no_tear():
    """A bonnet's edge is there in every image."""

    def bonnet(image: np.ndarray, _: int) -> np.ndarray:
        out = image.copy()
        out[110:] = 20
        return out

    assert "torn image" not in watch(bonnet)


@pytest.mark.parametrize("width", [1.0, 2.0, 4.0, 12.0])
def test_the_width_of_edges_is_measured(width):
    """Ramps of a known width under noise."""
    ramp = np.clip(np.abs(np.arange(400) % 80 - 40) / width - 20 / width, 0, 1) * 120 + 60
    rows = np.broadcast_to(ramp, (160, 400))
    noisy = rows + np.random.default_rng(0).normal(0, 2, rows.shape)
    found = edge_width(np.clip(noisy, 0, 255).astype(np.uint8), 16, 1.5)
    assert found is not None and (found > THRESHOLDS.blurred) == (width > THRESHOLDS.blurred)
    assert width > 5.0 or found == pytest.approx(width, rel=0.35, abs=0.7)


def test_noise_in_the_dark_is_no_blur():
    """What is hard to see is no fault of the camera; out of focus it is."""
    rng = np.random.default_rng(0)
    dim = scene(0, rng).astype(np.float32) * 0.25
    wide = edge_width((dim + rng.normal(0, 6, SIZE)).clip(0, 255).astype(np.uint8), 16, 1.5)
    assert wide is None or wide < 4.0
    soft = cv2.GaussianBlur(dim, (0, 0), 6.0) + rng.normal(0, 1, SIZE)
    wide = edge_width(soft.clip(0, 255).astype(np.uint8), 16, 1.5)
    assert wide is None or wide > THRESHOLDS.blurred


def test_the_phrase_names_two_cameras_and_counts_more():
    names = ("left", "right", "front", "back")
    assert told(names, ((), (), (), ())) == ""
    assert (
        told(names, (("too dark",), (), ("too dark",), ("glare",)))
        == "too dark: left, front; glare: back"
    )
    assert told(names, (("too dark",),) * 3 + ((),)) == "too dark: 3 of 4 cameras"
