"""A simulated drive to and fro, for runs of any length: the car starts, drives some ten metres,
stops and comes back, so that images, pose and time go on without a jump wherever it is."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.errors import Recon4dError
from recon4d_ros.paths import rigs
from recon4d_ros.sim.scenario import scenario
from recon4d_ros.sim.simulate import Drive, make_camera
from recon4d_ros.types import Camera, Rig

SPEED = 0.05
"""Seconds of the simulated drive from frame to frame, in the mean: half a metre."""
QUALITY = 90


@dataclass(frozen=True)
class Shuttle:
    """jpegs: of the way out, per frame and camera. poses: [K, 4, 4] T_world_base of its frames."""

    rig: Rig
    jpegs: Sequence[Sequence[bytes]]
    poses: NDArray[np.float64]

    def place(self, index: int) -> int:
        """The frame of the way out that the drive's frame `index` shows."""
        last = len(self.jpegs) - 1
        turn = index % (2 * last)
        return turn if turn <= last else 2 * last - turn

    def images(self, index: int) -> Sequence[bytes]:
        return self.jpegs[self.place(index)]

    def pose(self, index: int) -> NDArray[np.float64]:
        return self.poses[self.place(index)]


def scaled(rig: Rig, names: Sequence[str], width: int) -> Rig:
    """Some cameras of a rig, with images of another width."""

    def smaller(camera: Camera) -> Camera:
        share = width / camera.width
        k = np.diag([share, share, 1.0]) @ camera.k
        k[:2, 2] += (share - 1) / 2  # (0, 0) is the centre of the first pixel
        return replace(camera, width=width, height=round(camera.height * share), k=k)

    cameras = [smaller(camera) for camera in rig.cameras if not names or camera.name in names]
    return Rig(f"{rig.name}_{width}", tuple(cameras))


def shuttle(names: Sequence[str], width: int, frames: int, seed: int = 5) -> Shuttle:
    """The drive with these cameras of nuscenes_like (none: all). It is rendered once, and kept in
    the temporary folder."""
    rig = scaled(load_rig(rigs() / "nuscenes_like.yaml"), names, width)
    key = f"{SPEED} {QUALITY} {frames} {seed} {rig.names} {width} {sources()}"
    folder = Path(tempfile.gettempdir()) / "recon4d_shuttle"
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        jpegs, poses = render(rig, frames, seed)
        data = np.frombuffer(b"".join(jpeg for images in jpegs for jpeg in images), np.uint8)
        sizes = np.array([[len(jpeg) for jpeg in images] for images in jpegs])
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
            np.savez(out, data=data, sizes=sizes, poses=poses)
        os.replace(out.name, file)  # whoever renders beside us finds a whole file or none
    with np.load(file) as kept:
        data, sizes, poses = kept["data"], kept["sizes"], kept["poses"]
    ends = sizes.cumsum().reshape(sizes.shape)
    jpegs = [
        [data[end - size : end].tobytes() for end, size in zip(*pair, strict=True)]
        for pair in zip(ends, sizes, strict=True)
    ]
    return Shuttle(rig, jpegs, poses)


def sources() -> str:
    """What the images depend on beside the arguments: the simulator's files."""
    from recon4d_ros import sim

    files = sorted(Path(next(iter(sim.__path__))).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def render(rig: Rig, frames: int, seed: int) -> tuple[list[list[bytes]], NDArray[np.float64]]:
    drive = Drive(scenario("city", seed))
    cameras = [
        make_camera(camera, index, drive.scenario) for index, camera in enumerate(rig.cameras)
    ]
    jpegs, poses = [], []
    for phase in np.linspace(0.0, np.pi, frames):
        scene = drive.scene(SPEED * frames * (1.0 - np.cos(phase)) / 2)
        images = []
        for camera in cameras:
            picture = cv2.cvtColor(drive.render(scene, camera).image, cv2.COLOR_RGB2BGR)
            ok, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            if not ok:
                raise Recon4dError("an image could not be encoded as .jpg")
            images.append(jpeg.tobytes())
        jpegs.append(images)
        poses.append(drive.T_world_base(scene.time))
    return jpegs, np.stack(poses)
