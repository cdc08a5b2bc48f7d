"""What is wrong with a camera's images is told, and a sound camera is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from recon4d_ros.cameras.health import CameraHealth, told

SIZE = (120, 240)


def scene(index: int, rng: np.random.Generator) -> np.ndarray:
    """A texture that goes by, below a sky, with noise."""
    wide = np.random.default_rng(3).normal(0, 30, (SIZE[0] // 4, 1000))
    at = wide[:, 7 * index : 7 * index + SIZE[1] // 4]
    image = 120 + np.kron(at, np.ones((4, 4)))
    image[:30] = 210
    return np.clip(image + rng.normal(0, 2, SIZE), 0, 255).astype(np.uint8)


def watch(change, frames: int = 40, travel: float = 0.8) -> tuple[str, ...]:
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


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda image, _: image, ()),
        (lambda image, _: image // 12, ("dark",)),
        (lambda image, _: np.maximum(image, np.uint8(252)), ("glare",)),
        (drops, ("covered (drops, dirt)",)),
        (lambda image, index: scene(min(index, 20), np.random.default_rng(1)), ("frozen",)),
    ],
    ids=["sound", "dark", "glare", "covered", "frozen"],
)
def test_what_is_wrong_is_told(change, trouble):
    assert watch(change) == trouble


def test_a_car_that_stands_has_no_dirt_on_its_lens():
    assert watch(lambda _, index: scene(0, np.random.default_rng(index)), travel=0.0) == ()


def test_an_absent_camera_keeps_what_was_said_of_it_and_it_recovers():
    rng, health = np.random.default_rng(0), CameraHealth(2)
    dark = scene(0, rng) // 12
    assert health.look([dark, scene(0, rng)], 1.0) == (("dark",), ())
    assert health.look([None, scene(1, rng)], 1.0) == (("dark",), ())
    assert health.look([scene(2, rng), scene(2, rng)], 1.0) == ((), ())


def test_the_phrase_names_two_cameras_and_counts_more():
    names = ("left", "right", "front", "back")
    assert told(names, ((), (), (), ())) == ""
    assert told(names, (("dark",), (), ("dark",), ("glare",))) == "dark: left, front; glare: back"
    assert told(names, (("dark",),) * 3 + ((),)) == "dark: 3 of 4 cameras"
