"""A drive through the procedural world: images and exact truth for every camera of a rig.

Everything follows from the seed: the same call gives the same bytes, in any process and for any
frame on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.geometry import inverse, log
from recon4d_ros.sim import models
from recon4d_ros.sim.course import make_place
from recon4d_ros.sim.ground import Ground, Shadows
from recon4d_ros.sim.models import Body
from recon4d_ros.sim.raster import FIRST, cast
from recon4d_ros.sim.road import CHUNK
from recon4d_ros.sim.scenario import Scenario, scenario
from recon4d_ros.sim.sensor import Sensor
from recon4d_ros.sim.shade import SUN, shade
from recon4d_ros.sim.solids import FACES, Solids, concatenate, empty
from recon4d_ros.sim.textures import make_atlas
from recon4d_ros.sim.traffic import Mover
from recon4d_ros.sim.view import View, make_view
from recon4d_ros.types import Camera, Rig

START_NS = 1_700_000_000_000_000_000  # the stamp of time 0
HORIZON_S = 600.0  # traffic is planned for whole multiples of this
MOVING = 0.25  # m/s: what is slower counts as standing
_PHASES = 24  # steps of a stride that are drawn


@dataclass(frozen=True)
class SimObject:
    """One thing that can move, at one time. T_world_object: [4, 4], centre of its box, x along its
    heading. size: length, width, height in metres, tight around what is rendered. velocity: [3] m/s
    in world. yaw_rate: rad/s. kind: car, van, truck, cyclist, pedestrian. moving: faster than
    MOVING."""

    id: int
    kind: str
    T_world_object: NDArray[np.float64]
    size: NDArray[np.float64]
    velocity: NDArray[np.float64]
    yaw_rate: float
    moving: bool


@dataclass(frozen=True)
class Picture:
    """What one camera sees at one time, in its raw (distorted) geometry.

    image: [H, W, 3] uint8 RGB. depth: [H, W] float32, metres along the optical axis, NaN for the
    sky. instance: [H, W] int32, the id of the SimObject seen, 0 for the static world. moving: [H,
    W] bool.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    instance: NDArray[np.int32]
    moving: NDArray[np.bool_]


@dataclass(frozen=True)
class SimFrame:
    """One frame set with its truth. Lists and arrays follow the rig's order of cameras.

    stamp_ns: time of T_world_base and objects. stamps_ns: each camera's own (equal unless skewed).
    velocity: [6] twist of base_link in base_link (vx vy vz wx wy wz, m/s and rad/s).
    """

    index: int
    stamp_ns: int
    stamps_ns: tuple[int, ...]
    pictures: tuple[Picture, ...]
    T_world_base: NDArray[np.float64]
    velocity: NDArray[np.float64]
    objects: tuple[SimObject, ...]

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        return [picture.image for picture in self.pictures]

    @property
    def depth(self) -> list[NDArray[np.float32]]:
        return [picture.depth for picture in self.pictures]

    @property
    def moving(self) -> list[NDArray[np.bool_]]:
        return [picture.moving for picture in self.pictures]

    @property
    def instance(self) -> list[NDArray[np.int32]]:
        return [picture.instance for picture in self.pictures]


@dataclass(frozen=True)
class Scene:
    """Everything at one time. still: the scenery; free: what can move; solids: both."""

    time: float
    chunks: tuple[int, int]
    still: Solids
    free: Solids
    solids: Solids
    objects: tuple[SimObject, ...]


class Drive:
    """A scenario's world, its traffic and a renderer. what: the scenario, or the seed of a city.
    seconds: how long it will be used; costs nothing but planning.

    Drives whose `seconds` fall into the same multiple of HORIZON_S are the same drive.
    """

    def __init__(self, what: int | Scenario = 0, seconds: float = HORIZON_S) -> None:
        self.scenario = what if isinstance(what, Scenario) else scenario("city", what)
        self.horizon_s = HORIZON_S * max(1, int(np.ceil(seconds / HORIZON_S)))
        seed = self.scenario.seed
        place = make_place(self.scenario.course, seed, self.horizon_s)
        self.world, self.traffic = place.world, place.traffic
        self._ground = Ground(self.world.road, place.ground)
        self._shadows = Shadows(SUN)
        self._atlas = make_atlas(seed)
        self._still: tuple[tuple[int, int], Solids] | None = None
        self._shaded: Scene | None = None
        self._shadow = np.zeros((1, 1), np.uint8)

    def T_world_base(self, t: float) -> NDArray[np.float64]:
        """Pose of base_link at t seconds."""
        return self.traffic.ego_pose(t)

    def velocity(self, t: float) -> NDArray[np.float64]:
        """Twist of base_link in base_link at t: central difference over 2 ms."""
        h = 1e-3
        return log(inverse(self.T_world_base(t - h)) @ self.T_world_base(t + h)) / (2 * h)

    def scene(self, t: float) -> Scene:
        """Everything near the ego vehicle at time t."""
        around = self.world.around(self.traffic.station(t))
        key = around.start, around.stop
        if self._still is None or self._still[0] != key:
            self._still = key, concatenate([self.world.chunk(index).scenery for index in around])
        movers, h = self.traffic.movers(t), 0.005
        before = {mover.id: mover for mover in self.traffic.movers(t - h)}
        after = {mover.id: mover for mover in self.traffic.movers(t + h)}
        bodies, objects = [], []
        for mover in movers:
            solids, low, high = _body(
                mover.body, round(mover.phase * _PHASES / (2 * np.pi)) % _PHASES
            )
            bodies.append(solids.moved(mover.pose, mover.id))
            a, b = before.get(mover.id, mover), after.get(mover.id, mover)
            span = h * ((a is not mover) + (b is not mover))
            objects.append(_object(mover, low, high, a.pose, b.pose, max(span, h)))
        free = concatenate(bodies) if bodies else empty()
        return Scene(
            t, key, self._still[1], free, concatenate([self._still[1], free]), tuple(objects)
        )

    def render(
        self, scene: Scene, view: View, sensor: Sensor, T_world_camera: NDArray[np.float64]
    ) -> Picture:
        """One camera's picture of a scene."""
        self._ground.move_to(T_world_camera[:2, 3])
        if scene is not self._shaded:  # one drawing serves all cameras of a scene
            self._shaded, middle = scene, self.T_world_base(scene.time)[:2, 3]
            self._shadow = self._shadows.draw(middle, scene.still, scene.chunks, scene.free)
        hits = cast(scene.solids, view, T_world_camera)
        light = shade(
            hits,
            view,
            T_world_camera,
            self._ground,
            self._atlas,
            self._shadow,
            self._shadows.origin,
        )
        with np.errstate(divide="ignore"):
            depth = np.where(
                hits.inverse_depth > 0, np.float32(1.0) / hits.inverse_depth, np.float32(np.nan)
            )
        speeds = {thing.id for thing in scene.objects if thing.moving}
        owners = np.concatenate([[0], hits.solids.instance]).astype(np.int32)
        moves = np.array([owner in speeds for owner in owners.tolist()])
        row = np.where(hits.surface >= FIRST, (hits.surface - FIRST) // FACES + 1, 0)
        return Picture(sensor.expose(light, scene.time), depth, owners[row], moves[row])


@lru_cache(2048)
def _body(body: Body, phase: int) -> tuple[Solids, NDArray[np.float64], NDArray[np.float64]]:
    """A body's solids and its extent, at one step of its stride."""
    solids = models.build(body, phase * 2 * np.pi / _PHASES)
    return solids, *models.extent(solids)


def _object(
    mover: Mover, low: NDArray, high: NDArray, before: NDArray, after: NDArray, span: float
) -> SimObject:
    pose = mover.pose.copy()
    middle = 0.5 * (low + high)
    pose[:3, 3] += pose[:3, :3] @ middle
    velocity = (
        after[:3, 3] + after[:3, :3] @ middle - before[:3, 3] - before[:3, :3] @ middle
    ) / span
    turned = before[:3, :3].T @ after[:3, :3]
    return SimObject(
        mover.id,
        mover.body.kind,
        pose,
        high - low,
        velocity,
        float(np.arctan2(turned[1, 0], turned[0, 0]) / span),
        bool(np.linalg.norm(velocity) > MOVING),
    )


class Simulator:
    """A drive seen by a rig: any frame on its own, in any order.

    skew_s: the last camera's stamp is this much after the first one's (a rig whose cameras fire one
    after another). name: the scenario's (see scenario.py).
    """

    def __init__(
        self,
        rig: Rig,
        seconds: float = 20.0,
        rate: float = 10.0,
        seed: int = 0,
        skew_s: float = 0.0,
        name: str = "city",
    ) -> None:
        drive = scenario(name, seed)
        self.rig, self.rate, self.skew_s = drive.rig(rig), rate, skew_s
        self.count = round(seconds * rate)
        self.drive = Drive(drive, seconds)
        self.views = [make_view(camera) for camera in self.rig.cameras]
        self.sensors = [Sensor(view, seed, index) for index, view in enumerate(self.views)]

    @staticmethod
    def stamp_of(index: int, rate: float) -> int:
        """Stamp of a frame of a drive at `rate`."""
        return START_NS + round(index / rate * 1e9)

    def stamp_ns(self, index: int, camera: int | None = None) -> int:
        """Stamp of a frame, or of one camera's image in it."""
        late = (
            0.0
            if camera is None or len(self.views) < 2
            else self.skew_s * camera / (len(self.views) - 1)
        )
        return self.stamp_of(index, self.rate) + round(late * 1e9)

    def frame(self, index: int) -> SimFrame:
        """Frame `index` with everything in it."""
        stamp = self.stamp_ns(index)
        t = (stamp - START_NS) * 1e-9
        scene = self.drive.scene(t)
        stamps, pictures = [], []
        for number, (view, sensor) in enumerate(zip(self.views, self.sensors, strict=True)):
            own = self.stamp_ns(index, number)
            then = scene if own == stamp else self.drive.scene((own - START_NS) * 1e-9)
            pose = self.drive.T_world_base(then.time) @ view.camera.T_base_camera
            pictures.append(self.drive.render(then, view, sensor, pose))
            stamps.append(own)
        return SimFrame(
            index,
            stamp,
            tuple(stamps),
            tuple(pictures),
            self.drive.T_world_base(t),
            self.drive.velocity(t),
            scene.objects,
        )


def simulate(
    rig: Rig,
    seconds: float = 20.0,
    rate: float = 10.0,
    seed: int = 0,
    skew_s: float = 0.0,
    frames: Sequence[int] | None = None,
    name: str = "city",
) -> Iterator[SimFrame]:
    """The frames of a drive, in order; `frames` chooses some by index. name: the scenario's."""
    simulator = Simulator(rig, seconds, rate, seed, skew_s, name)
    for index in range(simulator.count) if frames is None else frames:
        yield simulator.frame(index)


def swept_by(
    objects: Sequence[SimObject], points: NDArray, margin: float = 0.0
) -> NDArray[np.bool_]:
    """Which world points [K, 3] lie inside a moving object's box (grown by `margin` metres): to ask
    for every frame of a drive."""
    inside = np.zeros(len(points), bool)
    for thing in objects:
        if thing.moving:
            local = (points - thing.T_world_object[:3, 3]) @ thing.T_world_object[:3, :3]
            inside |= (np.abs(local) <= 0.5 * thing.size + margin).all(1)
    return inside


__all__ = [
    "CHUNK",
    "Camera",
    "Drive",
    "Picture",
    "Scene",
    "SimFrame",
    "SimObject",
    "Simulator",
    "simulate",
    "swept_by",
]
