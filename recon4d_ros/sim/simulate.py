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
from recon4d_ros.sim.glare import dazzle, draw_points
from recon4d_ros.sim.ground import Ground, Shadows
from recon4d_ros.sim.light import (
    LampMap,
    Points,
    joined,
    light_of,
    no_points,
    street_lamps,
    vehicle_lamps,
)
from recon4d_ros.sim.models import Body, Mover
from recon4d_ros.sim.rain import Lens, mirror, mirror_view, mirrored, streaks
from recon4d_ros.sim.raster import FIRST, cast
from recon4d_ros.sim.road import CHUNK
from recon4d_ros.sim.scenario import Scenario, scenario
from recon4d_ros.sim.sensor import Sensor
from recon4d_ros.sim.shade import Lamps, Setting, shade
from recon4d_ros.sim.shutter import blur, camera_twist, pixel_motion, rows_of
from recon4d_ros.sim.solids import ELLIPSOID, FACES, Solids, concatenate, empty
from recon4d_ros.sim.textures import make_atlas
from recon4d_ros.sim.traffic import VEHICLES
from recon4d_ros.sim.view import View, make_view
from recon4d_ros.sim.wind import swayed
from recon4d_ros.types import Camera, Rig

START_NS = 1_700_000_000_000_000_000  # the stamp of time 0
HORIZON_S = 600.0  # traffic is planned for whole multiples of this
MOVING = 0.25  # m/s: what is slower counts as standing
_PHASES = 24  # steps of a stride that are drawn
_AE_DELAY = 0.6  # seconds by which an automatic exposure follows the light
OWN_CAR = Body("car", 5)  # what casts the own shadow
_OWN_CAR_MIDDLE = np.eye(4)
_OWN_CAR_MIDDLE[0, 3] = 1.35  # its middle before the rear axle


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
    """Everything at one time. still: the scenery; swaying: what the wind moves of it; free: what
    can move; solids: all of them, in this order."""

    time: float
    chunks: tuple[int, int]
    still: Solids
    swaying: Solids
    free: Solids
    solids: Solids
    objects: tuple[SimObject, ...]

    @property
    def velocities(self) -> NDArray[np.float64]:
        """[P, 3] of each of `solids`, m/s in world."""
        out = np.zeros((len(self.solids), 3))
        for thing in self.objects:
            out[self.solids.instance == thing.id] = thing.velocity
        return out


@dataclass(frozen=True)
class SimCamera:
    """A camera of a simulated rig. index: its place in the rig. mirror_view: in which what the road
    mirrors is drawn. lens: the water on it, None where it is dry."""

    index: int
    view: View
    sensor: Sensor
    mirror_view: View
    lens: Lens | None


def make_camera(camera: Camera, index: int, scenario: Scenario) -> SimCamera:
    """A camera of a scenario."""
    view, conditions = make_view(camera), scenario.conditions
    return SimCamera(
        index,
        view,
        Sensor(view, scenario.seed, index, conditions.exposure_steps),
        mirror_view(view) if conditions.rain else view,
        Lens(view, scenario.seed, index, conditions.rain) if conditions.rain else None,
    )


class Drive:
    """A scenario's world, its traffic and a renderer. what: the scenario, or the seed of a city.
    seconds: how long it will be used; costs nothing but planning.

    Drives whose `seconds` fall into the same multiple of HORIZON_S are the same drive.
    """

    def __init__(self, what: int | Scenario = 0, seconds: float = HORIZON_S) -> None:
        self.scenario = what if isinstance(what, Scenario) else scenario("city", what)
        self.horizon_s = HORIZON_S * max(1, int(np.ceil(seconds / HORIZON_S)))
        seed = self.scenario.seed
        place = make_place(self.scenario.course, seed, self.horizon_s, self.scenario.traffic_seed)
        self.world, self.traffic = place.world, place.traffic
        self._ground = Ground(self.world.road, place.ground)
        self.conditions = self.scenario.conditions
        self._light = light_of(self.conditions)
        self._shelter = place.shelter
        self._lamp_map = LampMap()
        self._shadows = Shadows(self._light.sun)
        self._atlas = make_atlas(seed)
        self._still: tuple[tuple[int, int], Solids, Solids] | None = None
        self._shaded: Scene | None = None
        self._shadow = np.zeros((1, 1), np.uint8)
        self._points = no_points()

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
            scenery = concatenate([self.world.chunk(index).scenery for index in around])
            crowns = (scenery.kind == ELLIPSOID) & (self.conditions.wind > 0)
            self._still = key, scenery.take(~crowns), scenery.take(crowns)
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
        _, still, crowns = self._still
        swaying = swayed(crowns, t, self.conditions.wind) if len(crowns) else crowns
        every = concatenate([still, swaying, free])
        return Scene(t, key, still, swaying, free, every, tuple(objects))

    def render(self, scene: Scene, camera: SimCamera) -> Picture:
        """One camera's picture of a scene."""
        view, conditions = camera.view, self.conditions
        T_world_base = self.T_world_base(scene.time)
        T_world_camera = T_world_base @ view.camera.T_base_camera
        self._ground.move_to(T_world_camera[:2, 3])
        if scene is not self._shaded:  # one drawing serves all cameras of a scene
            self._shaded = scene
            self._prepare(scene, T_world_base)
        setting = Setting(
            self._ground,
            self._atlas,
            self._shadow,
            self._shadows.origin,
            self._light,
            Lamps(
                self._lamp_map if self._light.dark else None,
                T_world_base if self._light.dark else None,
                self._shelter,
            ),
        )
        twist, rows, velocities = np.zeros(6), None, np.zeros((0, 3))
        if view.camera.rolling_shutter or conditions.exposure_s:
            twist = camera_twist(view.camera.T_base_camera, self.velocity(scene.time))
            velocities = scene.velocities
        if view.camera.rolling_shutter:
            rows = rows_of(view, twist, velocities)
        hits = cast(scene.solids, view, T_world_camera, rows=rows)
        light = shade(hits, view, T_world_camera, setting)
        if conditions.rain:
            below = mirrored(T_world_camera)
            reflected = cast(scene.solids, camera.mirror_view, below, ground=False)
            mirror_image = shade(reflected, camera.mirror_view, below, setting)
            draw_points(mirror_image, reflected, camera.mirror_view, below, self._points, 0.3)
            mirror(
                light,
                mirror_image,
                hits,
                T_world_camera,
                self._atlas,
                self._light.haze_length,
                conditions.rain,
            )
        draw_points(light, hits, view, T_world_camera, self._points, 1.0 + conditions.rain)
        with np.errstate(divide="ignore"):
            depth = np.where(
                hits.inverse_depth > 0, np.float32(1.0) / hits.inverse_depth, np.float32(np.nan)
            )
        speeds = {thing.id for thing in scene.objects if thing.moving}
        owners = np.concatenate([[0], hits.solids.instance]).astype(np.int32)
        moves = np.array([owner in speeds for owner in owners.tolist()])
        row = np.where(hits.surface >= FIRST, (hits.surface - FIRST) // FACES + 1, 0)
        if conditions.exposure_s:
            known = {0: np.zeros(3), **{thing.id: thing.velocity for thing in scene.objects}}
            moving = np.stack([known.get(owner, known[0]) for owner in owners.tolist()])
            local = (moving @ T_world_camera[:3, :3]).astype(np.float32)
            flow = pixel_motion(hits, view, twist, local[row])
            light = blur(light, flow, conditions.exposure_s)
        if conditions.glare:
            dazzle(light, hits, view, T_world_camera, self._light, conditions.glare)
        if conditions.rain:
            brightness = float(light.mean())
            seed, index = self.scenario.seed, camera.index
            streaks(light, seed, index, scene.time, conditions.rain, brightness)
        if camera.lens is not None:
            light = camera.lens.wet(light, scene.time)
        image = camera.sensor.expose(light, scene.time, self._late(scene.time))
        return Picture(image, depth, owners[row], moves[row])

    def _prepare(self, scene: Scene, T_world_base: NDArray[np.float64]) -> None:
        """What one drawing does for all cameras of a scene: shadows and lamps."""
        middle = T_world_base[:2, 3]
        casters = concatenate([scene.swaying, scene.free])
        if self.conditions.glare:  # a low sun: the ego-vehicle's shadow is in the pictures
            own, _, _ = _body(OWN_CAR, 0)
            casters = concatenate([casters, own.moved(T_world_base @ _OWN_CAR_MIDDLE)])
        self._shadow = self._shadows.draw(middle, scene.still, scene.chunks, casters)
        parts = [no_points()]
        if self._light.dark:
            vehicles = [thing for thing in scene.objects if thing.kind in VEHICLES]
            vehicles = [thing for thing in vehicles if not 2_000_000 <= thing.id < 4_000_000]
            poses = np.array([v.T_world_object for v in vehicles]).reshape(-1, 4, 4)
            sizes = np.array([v.size for v in vehicles]).reshape(-1, 3)
            braking = np.array([not v.moving for v in vehicles], bool)
            heads = poses.copy()
            heads[:, :3, 3] += 0.5 * sizes[:, :1] * poses[:, :3, 0]
            lamps = np.concatenate(
                [np.zeros((0, 3)), *(self.world.chunk(i).lamps for i in range(*scene.chunks))]
            )
            self._lamp_map.draw(middle, lamps, scene.chunks, heads)
            parts += [street_lamps(lamps), vehicle_lamps(poses, sizes, braking)]
        if self._shelter is not None:
            parts.append(self._tunnel_lamps(scene.time))
        self._points = joined(parts)

    def _tunnel_lamps(self, t: float) -> Points:
        assert self._shelter is not None
        lamps = self._shelter.lamps(self.traffic.station(t))
        xy, _ = self.world.road.place(lamps[:, 0], lamps[:, 1])
        return street_lamps(np.concatenate([xy, lamps[:, 2:]], axis=1), 0.25, 5.0)

    def _late(self, t: float) -> float:
        """The light around the car over that to which the exposure, which follows late, was set."""
        if self._shelter is None:
            return 1.0
        place = [np.array([self.traffic.station(at)], np.float32) for at in (t, t - _AE_DELAY)]
        now, then = (
            0.15 + float(self._shelter.daylight(s, s * 0 - 7.0, s * 0 + 1.0)[0]) for s in place
        )
        return float(np.clip(now / then, 0.2, 4.0))


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
    after another). name: the scenario's, traffic_seed: likewise (see scenario.py).
    """

    def __init__(
        self,
        rig: Rig,
        seconds: float = 20.0,
        rate: float = 10.0,
        seed: int = 0,
        skew_s: float = 0.0,
        name: str = "city",
        traffic_seed: int | None = None,
    ) -> None:
        drive = scenario(name, seed, traffic_seed)
        self.rig, self.rate, self.skew_s = drive.rig(rig), rate, skew_s
        self.count = round(seconds * rate)
        self.drive = Drive(drive, seconds)
        self.cameras = [make_camera(c, index, drive) for index, c in enumerate(self.rig.cameras)]

    @staticmethod
    def stamp_of(index: int, rate: float) -> int:
        """Stamp of a frame of a drive at `rate`."""
        return START_NS + round(index / rate * 1e9)

    def stamp_ns(self, index: int, camera: int | None = None) -> int:
        """Stamp of a frame, or of one camera's image in it."""
        late = (
            0.0
            if camera is None or len(self.cameras) < 2
            else self.skew_s * camera / (len(self.cameras) - 1)
        )
        return self.stamp_of(index, self.rate) + round(late * 1e9)

    def frame(self, index: int) -> SimFrame:
        """Frame `index` with everything in it."""
        stamp = self.stamp_ns(index)
        t = (stamp - START_NS) * 1e-9
        scene = self.drive.scene(t)
        stamps, pictures = [], []
        for camera in self.cameras:
            own = self.stamp_ns(index, camera.index)
            then = scene if own == stamp else self.drive.scene((own - START_NS) * 1e-9)
            pictures.append(self.drive.render(then, camera))
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
