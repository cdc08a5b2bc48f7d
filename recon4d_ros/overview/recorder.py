"""What the picture of a run shows, gathered while it runs at a bounded cost: one telling frame, the
trajectory, the dynamic objects' trails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.calibration import upright
from recon4d_ros.cameras.decode import decode, in_shown_byte_order
from recon4d_ros.cameras.distortion import to_pixels
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.evaluation.evaluator import History
from recon4d_ros.geometry import box_corners, inverse, se3, transform
from recon4d_ros.mapping import Cloud
from recon4d_ros.overview.data import CameraView, ObjectView, OverviewData, Trail
from recon4d_ros.types import Camera, DynamicObject, Reconstruction, Rig

_EDGES = 8  # points along each edge of a box: a lens bends it
_TRAILS = 400  # dynamic objects whose trails are kept: those of a long drive's last part


class OverviewRecorder:
    """`add` every result; `data` at the end."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._poses: list[NDArray[np.float64]] = []
        self._trails: dict[int, list[NDArray[np.float64]]] = {}
        self._last: dict[int, DynamicObject] = {}
        self._shown: tuple[float, int, Reconstruction, Preprocessor] | None = None

    def add(self, result: Reconstruction, preprocessor: Preprocessor) -> None:
        index = len(self._poses)
        self._poses.append(result.pose.T_map_base)
        for o in result.motion.objects:
            if o.missed == 0:
                trail = self._trails.pop(o.id, [])
                trail.append(o.position)
                self._trails[o.id] = trail  # last in, last out
                self._last[o.id] = o
        while len(self._trails) > _TRAILS:
            oldest = next(iter(self._trails))
            del self._trails[oldest], self._last[oldest]
        interest = _interest(result)
        # A frame that tells as much but comes later, by half, is taken: the picture is then of a
        # map that has grown.
        if (
            self._shown is None
            or interest > self._shown[0]
            or (interest >= 0.9 * self._shown[0] and index >= 1.5 * self._shown[1])
        ):
            self._shown = (interest, index, result, preprocessor)

    def data(
        self, cloud: Cloud, summary: Mapping[str, Any], history: History | None
    ) -> OverviewData:
        trails = [
            Trail(
                identity,
                np.stack(points),
                self._last[identity].velocity,
                self._last[identity].size,
                self._last[identity].yaw,
            )
            for identity, points in self._trails.items()
        ]
        poses = np.stack(self._poses) if self._poses else np.zeros((0, 4, 4))
        shown = self._shown
        return OverviewData(
            cameras=[self._view(n, shown[2], shown[3]) for n in range(len(self._rig.cameras))]
            if shown
            else [],
            points=cloud.xyz,
            colors=cloud.rgb,
            trajectory=poses,
            trails=trails,
            summary=summary,
            shown_pose=shown[2].pose.T_map_base if shown else None,
            truth=history.truth if history else None,
            distance=history.trajectory.distance if history else None,
            errors=history.trajectory.errors if history else None,
        )

    def _view(self, n: int, result: Reconstruction, preprocessor: Preprocessor) -> CameraView:
        camera = self._rig.cameras[n]
        black = np.zeros((camera.height, camera.width, 3), np.uint8)
        if not result.frame.present[n]:
            return CameraView(
                camera.name,
                black,
                black[..., 0] > 0,
                np.full(black.shape[:2], np.nan, np.float32),
                (),
            )
        objects = [o for o in result.motion.objects if o.missed == 0]
        T_camera_map = inverse(result.pose.T_map_camera[n])
        if (turn := upright(camera)) is not None:  # the source image is not turned
            T_camera_map = se3(turn, np.zeros(3)) @ T_camera_map
        raw = result.frame_set.images.get(
            camera.name
        )  # a recording may have a camera's depth and not its picture
        return CameraView(
            camera.name,
            black if raw is None else decode(in_shown_byte_order(raw), 3),
            preprocessor.to_source(result.motion.mask[n], n),
            preprocessor.to_source(result.geometry.depth[n], n),
            tuple(
                view for o in objects if (view := _object_view(o, T_camera_map, camera)) is not None
            ),
        )


def _interest(result: Reconstruction) -> float:
    """How much there is to see: dynamic objects now seen, and pixels on them (a tenth of the view
    counts as much as two dynamic objects)."""
    seen = sum(o.missed == 0 for o in result.motion.objects)
    return seen + 20.0 * min(float(result.motion.mask.mean()), 0.1) + 1e-3


def _object_view(
    o: DynamicObject, T_camera_map: NDArray[np.float64], camera: Camera
) -> ObjectView | None:
    """The box's twelve edges as the lens shows them; None where the box is not in view."""
    corners = box_corners(o.position, o.size, o.yaw)
    pairs = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
    fraction = np.linspace(0, 1, _EDGES)[:, None]
    lines = np.stack(
        [corners[a] * (1 - fraction) + corners[b] * fraction for a, b in pairs]
    )  # [12, _EDGES, 3]
    local = transform(T_camera_map, lines)
    if (local[..., 2] < 0.5).any():
        return None
    pixels = to_pixels(camera, local[..., :2] / local[..., 2:])
    if not np.isfinite(pixels).all():
        return None
    middle = pixels.reshape(-1, 2).mean(axis=0)
    if not (0 <= middle[0] < camera.width and 0 <= middle[1] < camera.height):
        return None
    return ObjectView(o.id, pixels, float(np.linalg.norm(o.velocity)))
