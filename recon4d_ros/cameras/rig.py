"""Rig files: the cameras of one car as YAML, for a car whose bag or /tf_static does not say it, and
for the simulator.

name: my_car
cameras:
  - name: front                   # also the topic's namespace and the frame on /tf_static
    width: 1600
    height: 900
    fx: 1266.4                    # or K: [fx, 0, cx, 0, fy, cy, 0, 0, 1]
    fy: 1266.4
    cx: 816.3
    cy: 491.5
    distortion_model: plumb_bob   # none (default), plumb_bob, rational_polynomial, equidistant,
    thin_prism_fisheye, fov, double_sphere, eucm
    D: [0, 0, 0, 0, 0]
    translation: [1.7, 0.0, 1.5]  # of the optical frame in base_link, metres
    rotation_xyzw: [-0.5, 0.5, -0.5, 0.5]
    image_topic: /camera/front/image_raw/compressed   # optional
    camera_info_topic: /camera/front/camera_info      # optional
    ego_vehicle_mask: ego_vehicle_front.png           # optional, beside this file: white where the
    raw image shows the car itself
    rolling_shutter: 0.02         # optional: seconds from the first row's read-out to the last's
    (0, the default: global shutter); the image's stamp is then that of its middle row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from recon4d_ros.cameras.lens_names import lens_model
from recon4d_ros.errors import CalibrationError, OutputError
from recon4d_ros.geometry import quaternion, se3_from_quaternion
from recon4d_ros.paths import user_path
from recon4d_ros.types import Camera, Rig
from recon4d_ros.yaml_text import load_yaml

BASE_FRAME = "base_link"  # what rigs are given in, unless the user says otherwise
_REQUIRED = ("name", "width", "height", "translation", "rotation_xyzw")
_KNOWN = {
    *_REQUIRED,
    "K",
    "fx",
    "fy",
    "cx",
    "cy",
    "distortion_model",
    "D",
    "image_topic",
    "camera_info_topic",
    "ego_vehicle_mask",
    "own_car_mask",  # its name until 2026-11-27
    "rolling_shutter",
}


@dataclass(frozen=True)
class CameraTopics:
    """Where a camera's messages come from; an empty string leaves the topic to discovery."""

    image: str = ""
    camera_info: str = ""


@dataclass(frozen=True)
class RigFile:
    """A rig, and the topics its file names (camera name -> topics, every camera has an entry)."""

    rig: Rig
    topics: Mapping[str, CameraTopics] = field(default_factory=dict)


def load_rig(path: str | Path) -> Rig:
    """The rig of a YAML rig file. Raises CalibrationError with one sentence if it is missing or
    says something impossible."""
    return load_rig_file(path).rig


def load_rig_file(path: str | Path) -> RigFile:
    """The rig and its topics. Raises CalibrationError as `load_rig`."""
    path = user_path(path)
    where = f"rig file {path}"
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"{where} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Mapping) or not isinstance(tree.get("cameras"), list):
        raise CalibrationError(f"{where}: expected `name:` and a list `cameras:`")
    entries = tree["cameras"]
    cameras = tuple(
        _camera(entry, f"{where}, camera {index}", path.parent)
        for index, entry in enumerate(entries)
    )
    topics = {
        camera.name: CameraTopics(
            str(entry.get("image_topic", "")), str(entry.get("camera_info_topic", ""))
        )
        for camera, entry in zip(cameras, entries, strict=True)
    }
    try:
        return RigFile(Rig(str(tree.get("name", path.stem)), cameras), topics)
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from error


def chosen(rig: Rig, names: Sequence[str] | None) -> Rig:
    """The rig's cameras of these names, in this order; all of them without names. Raises
    CalibrationError."""
    if not names:
        return rig
    unknown = [name for name in names if name not in rig.names]
    if unknown:
        raise CalibrationError(
            f"rig {rig.name} has no camera {unknown[0]}: expected one of {', '.join(rig.names)}"
        )
    return Rig(rig.name, tuple(rig.cameras[rig.names.index(name)] for name in names))


def save_rig(rig: Rig, path: str | Path, topics: Mapping[str, CameraTopics] | None = None) -> None:
    """Write a rig file that `load_rig_file` reads back exactly, masks of the ego-vehicle beside it.
    Raises OutputError where it cannot."""
    path = Path(path)
    cameras = []
    masks: dict[Path, NDArray[np.uint8]] = {}
    for camera in rig.cameras:
        entry: dict[str, Any] = {
            "name": camera.name,
            "width": camera.width,
            "height": camera.height,
            "K": [float(value) for value in camera.k.ravel()],
            "distortion_model": camera.distortion_model,
            "D": [float(value) for value in camera.d],
            "translation": [float(value) for value in camera.T_base_camera[:3, 3]],
            "rotation_xyzw": [float(value) for value in quaternion(camera.T_base_camera)],
        }
        named = (topics or {}).get(camera.name, CameraTopics())
        entry |= {
            key: value
            for key, value in (
                ("image_topic", named.image),
                ("camera_info_topic", named.camera_info),
            )
            if value
        }
        if camera.rolling_shutter:
            entry["rolling_shutter"] = camera.rolling_shutter
        if camera.ego_vehicle is not None:
            entry["ego_vehicle_mask"] = (
                f"{path.stem}_ego_vehicle_{camera.name.replace('/', '_')}.png"
            )
            masks[path.parent / entry["ego_vehicle_mask"]] = np.asarray(
                cv2.imencode(".png", camera.ego_vehicle.astype(np.uint8) * 255)[1]
            ).ravel()
        cameras.append(entry)
    text = yaml.safe_dump(
        {"name": rig.name, "cameras": cameras}, sort_keys=False, default_flow_style=None
    )
    try:
        for file, encoded in masks.items():
            file.write_bytes(encoded.tobytes())
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"rig file {path} cannot be written: {error.strerror}") from error


def _camera(entry: Any, where: str, folder: Path) -> Camera:
    if not isinstance(entry, Mapping):
        raise CalibrationError(f"{where}: expected a mapping with {', '.join(_REQUIRED)}")
    if unknown := sorted(set(entry) - _KNOWN, key=str):
        raise CalibrationError(
            f"{where}: {unknown[0]!r} is not known: expected one of {', '.join(sorted(_KNOWN))}"
        )
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise CalibrationError(f"{where}: {missing[0]} is missing")
    where = f"{where} ({entry['name']})"
    rotation = _numbers(entry, "rotation_xyzw", 4, where)
    if abs(np.linalg.norm(rotation) - 1.0) > 1e-3:  # NaN passes on to Camera, which names it
        raise CalibrationError(
            f"{where}: rotation_xyzw has length {np.linalg.norm(rotation):g}: expected a unit"
            " quaternion x y z w"
        )
    pose = (
        np.full((4, 4), np.nan)
        if np.isnan(rotation).any()
        else se3_from_quaternion(_numbers(entry, "translation", 3, where), rotation)
    )
    distortion = entry.get("D") or []
    d = tuple(
        _numbers(
            {"D": distortion},
            "D",
            len(distortion) if isinstance(distortion, Sequence) else 0,
            where,
        ).tolist()
    )
    mask = entry.get("ego_vehicle_mask", entry.get("own_car_mask"))
    ego_vehicle = None if mask is None else _ego_vehicle(folder / user_path(str(mask)), where)
    try:
        return Camera(
            str(entry["name"]),
            _size(entry, "width", where),
            _size(entry, "height", where),
            _matrix(entry, where),
            pose,
            *_lens(str(entry.get("distortion_model", "none")), d),
            ego_vehicle,
            float(
                _numbers(
                    {"rolling_shutter": [entry.get("rolling_shutter", 0.0)]},
                    "rolling_shutter",
                    1,
                    where,
                )[0]
            ),
        )
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from error


def _lens(model: str, d: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """A fisheye without coefficients is one all the same where a person says so."""
    fisheye = model in ("equidistant", "thin_prism_fisheye")
    return (model, d) if fisheye else lens_model(model, d)


def _ego_vehicle(path: Path, where: str) -> NDArray[np.bool_]:
    """[height, width] True where the mask is white (brighter than half)."""
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):  # OpenCV complains of an empty file
        image = None
    if image is None:
        raise CalibrationError(
            f"{where}: the mask of the ego-vehicle {path} cannot be read: expected an image (PNG),"
            " white on the ego-vehicle"
        )
    return np.asarray(image) > 127


def _matrix(entry: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    if "K" in entry:
        return _numbers(entry, "K", 9, where).reshape(3, 3)
    if missing := [key for key in ("fx", "fy", "cx", "cy") if key not in entry]:
        raise CalibrationError(f"{where}: {missing[0]} is missing: expected K or fx, fy, cx, cy")
    fx, fy, cx, cy = (
        _numbers({key: [entry[key]]}, key, 1, where)[0] for key in ("fx", "fy", "cx", "cy")
    )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def _size(entry: Mapping[str, Any], key: str, where: str) -> int:
    if not isinstance(entry[key], int) or isinstance(entry[key], bool):
        raise CalibrationError(
            f"{where}: {key} is {entry[key]!r}: expected a whole number of pixels"
        )
    return int(entry[key])


def _numbers(entry: Mapping[str, Any], key: str, count: int, where: str) -> NDArray[np.float64]:
    value = entry[key]
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty(())
    if array.shape != (count,):
        raise CalibrationError(
            f"{where}: {key} is {value!r}: expected {count} number{'s' if count != 1 else ''}"
        )
    return array
