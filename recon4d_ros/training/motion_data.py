"""Shards for the motion network: short drives through the procedural world, as its inputs and the
truth, made by the very functions that make the inputs on the vehicle.

A shard is one piece of one drive as an .npz file: T consecutive frame sets of N cameras on the
network's grid [h, w]. Which scenario, seed, rig and rate a piece has follows from its number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros import paths
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.dynamics import Dynamics, DynamicsParameters
from recon4d_ros.dynamics.flow import FlowMeter
from recon4d_ros.dynamics.motion_inputs import (
    NetworkGrid,
    NetworkShot,
    make_grid,
    make_meter,
    make_shot,
    measure_flow,
    on_grid,
)
from recon4d_ros.dynamics.pairs import comparable
from recon4d_ros.dynamics.static_world import road_in_camera
from recon4d_ros.dynamics.views import STRIDE, View, make_views
from recon4d_ros.engine.choose import choose_engine
from recon4d_ros.geometry import inverse
from recon4d_ros.grids.parameters import GridParameters
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.sim.bag import encode
from recon4d_ros.sim.scenario import scenario
from recon4d_ros.sim.simulate import SimFrame, SimObject, Simulator
from recon4d_ros.types import Frame, FrameSet, Geometry, Motion, PoseEstimate, RawImage, Rig

FIRST_SEED = 200
"""Seeds of the pieces count from here; below are those for tuning, from 1000 on those of the
benchmark."""

LAST_SEED = 999
IMAGES = 16
MOVES, STANDS = 1.0, 0.1
"""m/s: what is faster is a dynamic object, what is slower stands; between them nothing is asked."""

COURSES = {
    "city": 8.0,
    "pedestrians": 4.0,
    "roundabout": 2.0,
    "queue": 3.0,
    "motorway": 2.0,
    "parking": 1.0,
    "tunnel": 0.5,
}
CONDITIONS = {
    "": 9.0,
    "night": 1.5,
    "rain": 1.5,
    "fog": 0.7,
    "sun": 1.5,
    "leaves": 1.5,
    "exposure": 0.7,
    "blur": 0.7,
    "shutter": 0.7,
    "jpeg": 0.7,
}
RIGS = {
    "nuscenes_like": 5.0,
    "mixed_four": 0.3,
    "fisheye_surround": 0.2,
    "kitti_like": 2.0,
    "mono": 2.0,
    "kitti_mono": 2.0,
}
NEAR_WALLS = 112
WALLS = {"tunnel": 4.0, "motorway": 1.0, "city": 1.0}
"""Courses from this piece on: what the first validation showed to be missing. A camera that looks
aside sees a tunnel's wall pass two metres away, faster than flow can follow."""

FAST = 120
"""Pieces from this one on are of cameras of 15 to 30 images a second as well: what is compared is
then not the last image but one `dynamics.baseline` older, and the memory goes with a share of the
flow. The shipped weights were trained on pieces before it."""

FAST_RATES = (10.0, 7.0, 5.0, 15.0, 20.0, 30.0)

FOLLOWING = 130
"""Pieces from this one on show what the first weights missed: who drives ahead of us and beside us
at our own speed, through single cameras and long lenses, and once more near walls and rain. Each
camera is mounted anew, higher or lower and tilted."""

FOLLOW = {
    "follow": 8.0,
    "city": 2.0,
    "pedestrians": 2.0,
    "queue": 1.0,
    "tunnel": 1.2,
    "motorway": 0.6,
    "roundabout": 0.6,
    "parking": 0.6,
}
LIGHTS = {
    "": 6.0,
    "afternoon": 2.0,
    "sun": 1.5,
    "rain": 2.0,
    "night": 1.0,
    "leaves": 1.0,
    "exposure": 0.7,
    "blur": 0.7,
    "shutter": 0.5,
    "jpeg": 1.0,
    "fog": 0.5,
}
FRONTS = {
    "kitti_mono": 4.0,
    "mono": 2.5,
    "waymo_mono": 2.0,
    "kitti_like": 2.5,
    "nuscenes_like": 2.5,
    "mixed_four": 0.2,
}
SINGLE = {"kitti_mono": "kitti_like", "waymo_mono": "mono"}
"""Rigs that are the first camera of another."""

WIDE_FRONT = (960, 640, 1020.0)
"""Width, height and focal length, pixels, of `waymo_mono`: a long lens, and more of the sky."""

MOUNT_HEIGHT, MOUNT_PITCH = 0.25, 0.012
"""Standard deviations of a piece's mount, metres and radians."""

KINDS = {"pedestrian": 1, "cyclist": 2}
VEHICLE = 3


@dataclass(frozen=True)
class Piece:
    """What a shard shows. fed: what keeps dynamic objects out of the engine's memory: `truth` or
    what the package finds by itself (`own`). lift, tilt: of all cameras' mounts, metres up and
    radians down."""

    number: int
    name: str
    rig: str
    seed: int
    start: int
    rate: float
    zoom: float
    fed: str
    lift: float = 0.0
    tilt: float = 0.0


def make_piece(number: int) -> Piece:
    """The piece of a number, from 0 on."""
    rng = np.random.default_rng([8, number])

    def choose(table: dict[str, float]) -> str:
        weights = np.array(list(table.values()))
        return str(rng.choice(list(table), p=weights / weights.sum()))

    if number >= FOLLOWING:
        course, condition = choose(FOLLOW), choose(LIGHTS)
        return Piece(
            number,
            f"{course}+{condition}" if condition else course,
            choose(FRONTS),
            FIRST_SEED + number % (LAST_SEED + 1 - FIRST_SEED),
            int(rng.integers(0, 1200)) if rng.random() < 0.75 else 0,
            float(rng.choice([10.0, 10.0, 10.0, 10.0, *FAST_RATES])),
            float(rng.uniform(0.75, 1.3)),
            "truth" if rng.random() < 0.5 else "own",
            float(np.clip(rng.normal(0, MOUNT_HEIGHT), -0.5, 0.5)),
            float(np.clip(rng.normal(0, MOUNT_PITCH), -0.03, 0.03)),
        )
    course, condition = choose(COURSES if number < NEAR_WALLS else WALLS), choose(CONDITIONS)
    return Piece(
        number,
        f"{course}+{condition}" if condition else course,
        choose(RIGS),
        FIRST_SEED + number % (LAST_SEED + 1 - FIRST_SEED),
        int(rng.integers(0, 1200)) if rng.random() < 0.75 else 0,
        float(rng.choice([10.0, 10.0, 10.0, 7.0, 5.0] if number < FAST else FAST_RATES)),
        float(rng.uniform(0.75, 1.3)),
        "truth" if rng.random() < 0.6 else "own",
    )


def rig_of(piece: Piece) -> Rig:
    """The rig, its pinhole lenses longer or shorter by the piece's zoom, its mounts higher and
    tilted."""
    rig = load_rig(paths.rigs() / f"{SINGLE.get(piece.rig, piece.rig)}.yaml")
    cameras = rig.cameras[:1] if piece.rig in SINGLE else rig.cameras
    if piece.rig == "waymo_mono":
        width, height, focal = WIDE_FRONT
        k = np.array([[focal, 0, width / 2 - 2.5], [0, focal, height / 2 + 1.5], [0, 0, 1]])
        cameras = (replace(cameras[0], width=width, height=height, k=k),)
    up = np.eye(4)
    up[:3, :3] = cv2.Rodrigues(np.array([0.0, piece.tilt, 0.0]))[0]
    mounted = []
    for camera in cameras:
        k, T = camera.k.copy(), up @ camera.T_base_camera
        T[:3, 3] = camera.T_base_camera[:3, 3] + (0, 0, piece.lift)
        if camera.distortion_model == "none":
            k[0, 0] *= piece.zoom
            k[1, 1] *= piece.zoom
        mounted.append(replace(camera, k=k, T_base_camera=T))
    return scenario(piece.name, piece.seed).rig(Rig(rig.name, tuple(mounted)))


class Told(Dynamics):
    """Dynamics that is told what moves: only the road is looked for."""

    mask: NDArray[np.bool_]

    def __call__(self, frame: Frame, pose: PoseEstimate, geometry: Geometry) -> Motion:
        if pose.usable:
            self._see_ground(geometry, frame.present)
        return Motion(self.mask)


def write_piece(piece: Piece, file: Path) -> int:
    """Render a piece, run it, and write its shard. Returns how many frame sets it holds; without
    any no file is written."""
    rig = rig_of(piece)
    simulator = Simulator(
        rig, max(20.0, (piece.start + IMAGES) / piece.rate), piece.rate, piece.seed, name=piece.name
    )
    # whoever is told what moves needs no motion network
    source = "rigid_flow" if piece.fed == "truth" else "network"
    chosen = Parameters(
        dynamics=DynamicsParameters(source=source), grids=GridParameters(enabled=False)
    )
    reconstructor = Reconstructor(rig, choose_engine("", rig), chosen)
    calibration = reconstructor.calibration
    if piece.fed == "truth":
        reconstructor.dynamics = Told(rig, calibration, chosen.dynamics)
    reconstructor.mapper = _NoMap()  # type: ignore[assignment]
    views = make_views(calibration)
    grid, parameters = make_grid(views), DynamicsParameters()
    meter = make_meter()
    earlier: list[list[NetworkShot]] = [[] for _ in views]
    kept: list[dict[str, NDArray]] = []
    seen: list[dict[str, NDArray]] = []
    for index in range(piece.start, piece.start + IMAGES):
        truth = simulator.frame(index)
        labels = _label(truth, rig, reconstructor, grid)
        if isinstance(reconstructor.dynamics, Told):
            reconstructor.dynamics.mask = _working_mask(truth, rig, reconstructor)
        quality = simulator.drive.conditions.jpeg_quality
        images = encode(truth, quality, 1 << 30).images
        result = reconstructor.step(
            FrameSet(
                truth.stamp_ns,
                {
                    name: RawImage(stamp, "jpeg", np.frombuffer(data, np.uint8))
                    for name, stamp, data in zip(rig.names, truth.stamps_ns, images, strict=True)
                },
            )
        )
        geometry, pose = result.geometry, result.pose
        shots = [
            make_shot(
                grid,
                truth.stamp_ns,
                geometry.color[i],
                geometry.depth[i],
                geometry.sigma[i],
                geometry.confidence[i],
                pose.T_map_camera[i],
            )
            for i in range(len(views))
        ]
        dynamics = reconstructor.dynamics
        ground = dynamics.ground
        stamp, baseline = truth.stamp_ns, parameters.baseline
        earlier = [comparable(every, stamp, baseline) for every in earlier]
        if pose.usable and all(earlier):
            kept.append(_example(grid, views, meter, shots, earlier, ground))
            seen.append(labels)
        elif kept:
            break  # a piece is without gaps
        earlier = [[*every, shot] for every, shot in zip(earlier, shots, strict=True)]
    reconstructor.close()
    if len(kept) < 3:
        return 0
    arrays = {name: np.stack([one[name] for one in kept]) for name in kept[0]} | {
        name: np.stack([one[name] for one in seen]) for name in seen[0]
    }
    arrays["k"] = np.stack([grid.intrinsics(view) for view in views]).astype(np.float32)
    arrays["T_base_camera"] = calibration.T_base_camera.astype(np.float32)
    arrays["covered"] = np.stack([grid.take(view.covered.astype(np.uint8)) for view in views])
    arrays["size"] = np.array(grid.size)
    part = file.with_suffix(".part.npz")
    np.savez(part, **arrays)  # type: ignore[arg-type]
    part.rename(file)
    return len(kept)


class _NoMap:
    """In the mapper's place: no piece needs a map."""

    def __call__(self, *_: object) -> None:
        return None

    def reset(self) -> None:
        pass


def _example(
    grid: NetworkGrid,
    views: tuple[View, ...],
    meter: FlowMeter,
    now: list[NetworkShot],
    earlier: list[list[NetworkShot]],
    plane: NDArray[np.float64] | None,
) -> dict[str, NDArray]:
    """One image of each camera as the network is told of it. earlier: by camera, as `comparable`
    gives them."""
    before = [every[0] for every in earlier]
    apart = now[0].stamp_ns - before[0].stamp_ns
    share = (now[0].stamp_ns - earlier[0][-1].stamp_ns) / apart
    flows, roads, motions = [], [], []
    for view, shot, old in zip(views, now, before, strict=True):
        flow = measure_flow(view, meter, shot, old, plane)
        flows.append(on_grid(grid, flow))
        roads.append(road_in_camera(view, plane))
        motions.append(inverse(old.T_map_camera) @ shot.T_map_camera)
    return {
        "grey": np.stack([shot.grey for shot in now]),
        "grey_before": np.stack([shot.grey for shot in before]),
        "q": np.stack([shot.near for shot in now]).astype(np.float16),
        "sigma": np.stack([shot.sigma for shot in now]).astype(np.float16),
        "confidence": np.stack([shot.confidence for shot in now]).astype(np.float16),
        "q_before": np.stack([shot.near for shot in before]).astype(np.float16),
        "flow": np.stack(flows).astype(np.float16),
        "road": np.stack(roads).astype(np.float32),
        "T_before_now": np.stack(motions).astype(np.float32),
        "seconds": np.asarray(apart * 1e-9, np.float32),
        "share": np.asarray(share, np.float32),
    }


def _scale(camera_width: int, reconstructor: Reconstructor) -> float:
    """Raw pixels per pixel of the engine's input, along each axis."""
    factor = camera_width / reconstructor.calibration.input_size[1]
    return max(1.0, float(round(factor)))


def _working_mask(truth: SimFrame, rig: Rig, reconstructor: Reconstructor) -> NDArray[np.bool_]:
    out = []
    for i, camera in enumerate(rig.cameras):
        at = _raw(reconstructor.calibration.grid[i], _scale(camera.width, reconstructor))
        out.append(_fetched(truth.moving[i].astype(np.uint8), at, cv2.INTER_NEAREST) > 0)
    return np.stack(out)


def _label(
    truth: SimFrame, rig: Rig, reconstructor: Reconstructor, grid: NetworkGrid
) -> dict[str, NDArray]:
    """label: [N, h, w] uint8, 255 times the share of the pixel that moves. weight: [N, h, w] uint8,
    50 times what its error weighs. kind: [N, h, w] uint8, of what is there (KINDS, VEHICLE), moving
    or not."""
    objects = {thing.id: thing for thing in truth.objects}
    stride = STRIDE * grid.step
    labels, weights, kinds = [], [], []
    for i, camera in enumerate(rig.cameras):
        at = _raw(
            reconstructor.calibration.grid[i, ::stride, ::stride],
            _scale(camera.width, reconstructor),
        )
        ids, instance = np.unique(truth.instance[i], return_inverse=True)
        instance = instance.reshape(truth.instance[i].shape)
        lut_moves, lut_kind, lut_ignore = _tables(ids, objects)
        near = max(1, round(float(np.median(np.diff(at[at.shape[0] // 2, :, 0])))))
        label = _averaged(lut_moves[instance].astype(np.float32), at, near)
        there = _fetched(instance.astype(np.float32), at, cv2.INTER_NEAREST).astype(np.intp)
        weight = np.ones(there.shape, np.float32)
        kind = lut_kind[there]
        count = np.bincount(there.ravel(), minlength=len(ids))
        for which, area in enumerate(count):
            if not ids[which] or not area:
                continue
            if lut_ignore[which]:
                value = 0.0
            elif lut_moves[which]:
                value = 0.5 if area < 19 else float(np.clip(np.sqrt(150 / area), 1, 2.5))
            else:
                value = 1.5
            weight[there == which] = value
        weight[(at[..., 0] < 0) | (at[..., 1] < 0)] = 0  # no source: beyond the lens
        labels.append(grid.pad(np.rint(label * 255).astype(np.uint8)))
        weights.append(grid.pad(np.rint(weight * 50).astype(np.uint8)))
        kinds.append(grid.pad(kind))
    return {"label": np.stack(labels), "weight": np.stack(weights), "kind": np.stack(kinds)}


def _raw(at: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Pixels of the raw image of pixels `at` [..., 2] of the engine's input, which has averages of
    `scale` by `scale` of them."""
    factor = np.float32(scale)
    return (at + np.float32(0.5)) * factor - np.float32(0.5)


def _averaged(image: NDArray[np.float32], at: NDArray[np.float32], side: int) -> NDArray:
    """[h, w] the mean of an image over `side` by `side` pixels about each of `at` [h, w, 2]. An
    even window's middle lies half a pixel before the pixel that OpenCV gives its mean to."""
    mean = np.asarray(cv2.blur(image, (side, side)))
    middle = np.float32(0.0 if side % 2 else 0.5)
    return _fetched(mean, at + middle, cv2.INTER_LINEAR)


def _fetched(image: NDArray, at: NDArray[np.float32], how: int) -> NDArray:
    """[h, w] of an image at pixels [h, w, 2], 0 outside."""
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    return np.asarray(cv2.remap(image, x, y, how))


def _tables(
    ids: NDArray[np.int32], objects: dict[int, SimObject]
) -> tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.bool_]]:
    """By place in ids: moves, kind, is not asked."""
    moves, kind, ignore = (
        np.zeros(len(ids), bool),
        np.zeros(len(ids), np.uint8),
        np.zeros(len(ids), bool),
    )
    for place, which in enumerate(ids):
        if (thing := objects.get(int(which))) is not None:
            speed = float(np.linalg.norm(thing.velocity))
            moves[place] = speed > MOVES
            ignore[place] = STANDS < speed <= MOVES
            kind[place] = KINDS.get(thing.kind, VEHICLE)
    return moves, kind, ignore
