"""Rig files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.calibration import OUTSIDE, make_calibration
from recon4d_ros.cameras.lens import ego_vehicle_at
from recon4d_ros.cameras.rig import CameraTopics, load_rig, load_rig_file, save_rig
from recon4d_ros.egomotion import klt as features
from recon4d_ros.errors import CalibrationError, OutputError
from recon4d_ros.geometry import inverse, se3, transform
from recon4d_ros.reconstructor import Reconstructor
from recon4d_ros.runs.replay import frame_sets
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import Camera, Rig

CAMERA = """
name: car
cameras:
  - {name: front, width: 640, height: 480, fx: 400, fy: 401, cx: 320, cy: 240,
     translation: [1, 0, 1.5], rotation_xyzw: [-0.5, 0.5, -0.5, 0.5]}
"""


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [("none", 0), ("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4)]
    ),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, seed: int, model: tuple[str, int]
) -> None:
    random = np.random.default_rng(seed)
    cameras = []
    for name in ("a", "b"):
        (fx, fy), (cx, cy) = random.uniform(100, 2000, 2), random.uniform(0, 999, 2)
        k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        pose = se3(Rotation.random(random_state=seed % 1000).as_matrix(), random.normal(size=3))
        cameras.append(
            Camera(name, 1000, 800, k, pose, model[0], tuple(random.normal(size=model[1])))
        )
    rig = Rig("car", tuple(cameras))
    path = tmp_path_factory.mktemp("rig") / "rig.yaml"
    save_rig(rig, path, {"b": CameraTopics("/b/image", "/b/info")})
    loaded = load_rig_file(path)
    assert loaded.rig.names == rig.names and loaded.rig.name == "car"
    assert loaded.topics == {"a": CameraTopics(), "b": CameraTopics("/b/image", "/b/info")}
    for before, after in zip(rig.cameras, loaded.rig.cameras, strict=True):
        assert (
            np.array_equal(before.k, after.k)
            and before.d == after.d
            and before.distortion_model == after.distortion_model
        )
        assert (before.width, before.height) == (after.width, after.height)
        assert np.allclose(before.T_base_camera, after.T_base_camera, atol=1e-12)


def test_focal_length_and_centre_stand_for_k(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA)
    (camera,) = load_rig(path).cameras
    assert (
        np.array_equal(camera.k, [[400, 0, 320], [0, 401, 240], [0, 0, 1]])
        and camera.distortion_model == "none"
    )
    assert np.allclose(
        camera.T_base_camera[:3, :3] @ [0, 0, 1], [1, 0, 0]
    )  # the optical axis looks ahead


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
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
        (("name: car", "name: " + "[" * 40_000), "nested deeper than 50"),
    ],
)
def test_bad_rig_file_gives_one_sentence(
    tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    path = tmp_path / "rig.yaml"
    assert change[0] in CAMERA
    path.write_text(CAMERA.replace(*change))
    with pytest.raises(CalibrationError) as caught:
        load_rig(path)
    assert (
        sentence in str(caught.value)
        and str(path) in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_missing_doubled_and_unwritable(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        load_rig(tmp_path / "none.yaml")
    doubled = tmp_path / "two.yaml"
    doubled.write_text(CAMERA + CAMERA[CAMERA.index("  - ") :])
    with pytest.raises(CalibrationError, match="there twice: front, front"):
        load_rig(doubled)
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA)
    with pytest.raises(OutputError, match="cannot be written"):
        save_rig(load_rig(path), tmp_path / "no_such_folder" / "rig.yaml")


# ---- the ego-vehicle


def test_a_mask_by_its_former_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "car.yaml"
    path.write_text(CAMERA.replace("name: front", "name: front, own_car_mask: bonnet.png"))
    cv2.imwrite(str(tmp_path / "bonnet.png"), np.full((480, 640), 255, np.uint8))
    mask = load_rig(path).cameras[0].ego_vehicle
    assert mask is not None and mask.all()


def test_a_mask_of_the_ego_vehicle_lies_beside_the_rig_file(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA.replace("name: front", "name: front, ego_vehicle_mask: bonnet.png"))
    grey = np.zeros((480, 640), np.uint8)
    grey[400:, 100:500] = 255
    grey[399, 100:500] = 90  # the soft edge of a brush
    cv2.imwrite(str(tmp_path / "bonnet.png"), grey)
    rig = load_rig(path)
    assert rig.cameras[0].ego_vehicle is not None and np.array_equal(
        rig.cameras[0].ego_vehicle, grey > 127
    )
    (tmp_path / "copy").mkdir()
    save_rig(rig, tmp_path / "copy" / "car.yaml")
    again = load_rig(tmp_path / "copy" / "car.yaml").cameras[0].ego_vehicle
    assert again is not None and np.array_equal(again, grey > 127)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (None, "ego_vehicle.png cannot be read"),
        (b"", "ego_vehicle.png cannot be read"),
        (b"no image", "ego_vehicle.png cannot be read"),
        (np.zeros((100, 200), np.uint8), "is 200x100 pixels: expected 640x480"),
    ],
    ids=["missing", "empty", "no image", "size"],
)
def test_a_bad_mask_gives_one_sentence(
    tmp_path: Path, mask: bytes | np.ndarray | None, sentence: str
) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(CAMERA.replace("name: front", "name: front, ego_vehicle_mask: ego_vehicle.png"))
    if mask is not None:
        data = (
            mask if isinstance(mask, bytes) else np.asarray(cv2.imencode(".png", mask)[1]).tobytes()
        )
        (tmp_path / "ego_vehicle.png").write_bytes(data)
    with pytest.raises(CalibrationError) as caught:
        load_rig(path)
    assert (
        sentence in str(caught.value)
        and str(path) in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_where_the_ego_vehicle_is_there_is_no_working_image_and_no_corner() -> None:
    ego_vehicle = np.zeros((480, 640), bool)
    ego_vehicle[300:] = True
    pose = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], np.float64)
    camera = Camera(
        "front",
        640,
        480,
        np.array([[400.0, 0, 319.5], [0, 400, 239.5], [0, 0, 1]]),
        pose,
        ego_vehicle=ego_vehicle,
    )
    bare = make_calibration(
        Rig("car", (replace(camera, ego_vehicle=None),)), (240, 320), (120, 160)
    ).grid
    grid = make_calibration(Rig("car", (camera,)), (240, 320), (120, 160)).grid
    assert (
        np.all(grid[0, 75:] == OUTSIDE)
        and np.array_equal(grid[0, :75], bare[0, :75])
        and np.all(bare > -1)
    )
    at_input = ego_vehicle_at(camera, (250, 330))  # the input has room for a larger camera beside
    assert (
        at_input is not None
        and at_input.shape == (250, 330)
        and at_input[150:240, :320].all()
        and at_input.sum() == 90 * 320
    )
    image = np.random.default_rng(0).integers(0, 255, (250, 330)).astype(np.uint8)
    nothing = np.zeros((0, 2), np.float32)
    assert features.detect(image, nothing, 300, 6.0)[:, 1].max() > 200
    corners = features.detect(image, nothing, 300, 6.0, at_input)
    assert len(corners) > 50 and np.all(
        (corners[:, 1] < 151) | (corners[:, 1] > 238) | (corners[:, 0] > 318)
    )


def test_nothing_is_said_of_the_ego_vehicle(small_bag: Path, stereo_engine: Path) -> None:
    """No depth and no map where the mask is; depth as before elsewhere."""
    with BagReader(small_bag) as reader:
        rig = reader.rig()
        sets = list(frame_sets(reader, Synchronizer(rig.names)))[:3]
    ego_vehicle = np.zeros((rig.cameras[0].height, rig.cameras[0].width), bool)
    ego_vehicle[125:, :350] = True
    masked = Rig(
        rig.name, tuple(replace(camera, ego_vehicle=ego_vehicle) for camera in rig.cameras)
    )
    depths = []
    for one in (rig, masked):
        reconstructor = Reconstructor(one, stereo_engine)
        results = [reconstructor.step(frame_set) for frame_set in sets]
        depths.append(
            np.stack(
                [
                    reconstructor.preprocessor.to_source(results[-1].geometry.depth[n], n)
                    for n in range(2)
                ]
            )
        )
        if one is masked:
            camera = results[-1].pose.T_map_camera[0]
            points = transform(inverse(camera), reconstructor.mapper.points()[0].astype(np.float64))
            u, v, _ = masked.cameras[0].k @ (points / points[:, 2:]).T
            assert len(points) > 1000 and np.mean((v > 132) & (u < 343) & (points[:, 2] > 0)) < 0.01
        reconstructor.close()
    inner = np.zeros_like(ego_vehicle)
    inner[127:, :347] = True
    assert (
        np.isfinite(depths[0][:, inner]).mean() > 0.5 and not np.isfinite(depths[1][:, inner]).any()
    )
    far_off = np.zeros_like(ego_vehicle)
    far_off[:, 450:] = True
    far_off[:100] = True
    both = np.isfinite(depths[0]) & np.isfinite(depths[1]) & far_off
    assert both.sum() > 0.9 * (np.isfinite(depths[0]) & far_off).sum()
    assert np.median(np.abs(depths[1] / depths[0] - 1)[both]) < 0.01
