"""Rig files."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon4d_ros.errors import CalibrationError, OutputError
from recon4d_ros.geometry import se3
from recon4d_ros.rig import CameraTopics, load_rig, load_rig_file, save_rig
from recon4d_ros.types import Camera, Rig

CAMERA = """
name: car
cameras:
  - {name: front, width: 640, height: 480, fx: 400, fy: 401, cx: 320, cy: 240,
     translation: [1, 0, 1.5], rotation_xyzw: [-0.5, 0.5, -0.5, 0.5]}
"""


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([("none", 0), ("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4)]))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, seed: int, model: tuple[str, int]) -> None:
    random = np.random.default_rng(seed)
    cameras = []
    for name in ("a", "b"):
        (fx, fy), (cx, cy) = random.uniform(100, 2000, 2), random.uniform(0, 999, 2)
        k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        pose = se3(Rotation.random(random_state=seed % 1000).as_matrix(), random.normal(size=3))
        cameras.append(Camera(name, 1000, 800, k, pose, model[0], tuple(random.normal(size=model[1]))))
    rig = Rig("car", tuple(cameras))
    path = tmp_path_factory.mktemp("rig") / "rig.yaml"
    save_rig(rig, path, {"b": CameraTopics("/b/image", "/b/info")})
    loaded = load_rig_file(path)
    assert loaded.rig.names == rig.names and loaded.rig.name == "car"
    assert loaded.topics == {"a": CameraTopics(), "b": CameraTopics("/b/image", "/b/info")}
    for before, after in zip(rig.cameras, loaded.rig.cameras, strict=True):
        assert np.array_equal(before.k, after.k) and before.d == after.d and before.distortion_model == after.distortion_model
        assert (before.width, before.height) == (after.width, after.height)
        assert np.allclose(before.T_base_camera, after.T_base_camera, atol=1e-12)


def test_focal_length_and_centre_stand_for_k(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA)
    (camera,) = load_rig(path).cameras
    assert np.array_equal(camera.k, [[400, 0, 320], [0, 401, 240], [0, 0, 1]]) and camera.distortion_model == "none"
    assert np.allclose(camera.T_base_camera[:3, :3] @ [0, 0, 1], [1, 0, 0])  # the optical axis looks ahead


@pytest.mark.parametrize(("change", "sentence"), [
    (("fx: 400, ", ""), "fx is missing"),
    (("fx: 400", "fx: 0"), "focal length is 0"),
    (("fx: 400", "fx: .nan"), "not finite"),
    (("fx: 400", "fx: wide"), "expected 1 number"),
    (("width: 640", "width: 640.5"), "whole number of pixels"),
    (("width: 640", "width: 0"), "image size is 0x480"),
    (("width: 640, ", ""), "width is missing"),
    (("[1, 0, 1.5]", "[1, 0]"), "expected 3 numbers"),
    (("[1, 0, 1.5]", "[1, 0, .nan]"), "not finite"),
    (("-0.5, 0.5, -0.5, 0.5", "1, 1, 1, 1"), "unit quaternion"),
    (("-0.5, 0.5, -0.5, 0.5", ".nan, 0.5, -0.5, 0.5"), "not finite"),
    (("name: front", "name: front, focal: 3"), "'focal' is not known"),
    (("name: front", "name: front, distortion_model: banana, D: [1]"), "'banana' is not known"),
    (("name: front", "name: front, distortion_model: equidistant, D: [1, 2]"), "coefficients"),
    (("cameras:", "cameras: 3\nother:"), "expected `name:` and a list `cameras:`"),
    (("name: car", "name: [car"), "is not YAML"),
])
def test_bad_rig_file_gives_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    path = tmp_path / "rig.yaml"
    assert change[0] in CAMERA
    path.write_text(CAMERA.replace(*change))
    with pytest.raises(CalibrationError) as caught:
        load_rig(path)
    assert sentence in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_doubled_and_unwritable(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        load_rig(tmp_path / "none.yaml")
    doubled = tmp_path / "two.yaml"
    doubled.write_text(CAMERA + CAMERA[CAMERA.index("  - "):])
    with pytest.raises(CalibrationError, match="there twice: front, front"):
        load_rig(doubled)
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA)
    with pytest.raises(OutputError, match="cannot be written"):
        save_rig(load_rig(path), tmp_path / "no_such_folder" / "rig.yaml")
