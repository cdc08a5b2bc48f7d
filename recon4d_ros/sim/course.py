"""A course put together: its road, what stands beside it, what lies on it, and who moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim import closed, manoeuvres, motorway, tunnel
from recon4d_ros.sim.ground import CityGround, GroundPlan
from recon4d_ros.sim.light import Shelter
from recon4d_ros.sim.models import Mover
from recon4d_ros.sim.progress import (
    START_S,
    Progress,
    city_speeds,
    cruise_speeds,
    queue_speeds,
)
from recon4d_ros.sim.road import LANE, Road
from recon4d_ros.sim.scenario import Course
from recon4d_ros.sim.traffic import CITY, Column, Company, Pace, Traffic, TrafficPlan
from recon4d_ros.sim.world import World

_CITY_SPEED = 14.0  # m/s: a city's road is planned for it
_MOTORWAY_SPEED = 40.0
_FOLLOW_SPEED = 20.0
_SLOW = (2.5, 6.5)  # m/s, among people


class Movement(Protocol):
    """Where the ego vehicle and all others are at time t (seconds)."""

    def ego_pose(self, t: float) -> NDArray[np.float64]:
        """T_world_base [4, 4]; base_link is the middle of the rear axle, on the ground."""
        ...

    def station(self, t: float) -> float:
        """Metres along the road: which part of the world is in sight."""
        ...

    def movers(self, t: float) -> list[Mover]:
        """Everyone who can move and is within sight, in a fixed order."""
        ...


@dataclass(frozen=True)
class Place:
    """What a drive is made of."""

    world: World
    traffic: Movement
    ground: GroundPlan
    shelter: Shelter | None = None


@lru_cache(2)  # the same place in other weather is made once
def make_place(
    course: Course, seed: int, horizon_s: float, traffic_seed: int | None = None
) -> Place:
    """The course of a seed, planned for `horizon_s` seconds. traffic_seed: of how the ego vehicle
    and all others drive, and of what is parked; the course's unless given."""
    return _MAKERS[course](seed, horizon_s, seed if traffic_seed is None else traffic_seed)


def _city(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = Road(seed, _CITY_SPEED * (horizon_s + 60.0))
    world = World(seed, road, traffic_seed)
    ego = Progress(city_speeds(road, traffic_seed, horizon_s), horizon_s, START_S)
    return Place(world, Traffic(world, ego, CITY), CityGround(road.crossings))


_PAVEMENTS = tuple(column for column in CITY.columns if column.kinds[0] == "pedestrian")
_QUEUE = replace(
    CITY,
    ego_lateral=0.0,
    columns=(
        Column(1, ("lorry", "car", "lorry", "van"), LANE, -6.5, 24.0, 3.0, 0.85),
        Column(2, ("lorry", "lorry", "truck"), -LANE, 1.0, 18.0, 0.8, 0.9, Pace.STOP_AND_GO),
        Column(3, ("cyclist",), -5.6, 4.6, 34.0, 9.0, 0.5),
        *_PAVEMENTS,
    ),
    lead=Company("lorry", 13.5, 1.3),
    tail=Company("car", -5.5, -1.4),
    crossers=0,
    leavers=False,
    weaves=False,
)


def _queue(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    """The ego vehicle in the middle lane, lorries on its right that move when it stands."""
    road = Road(seed, _CITY_SPEED * (horizon_s + 60.0))
    world = World(seed, road, traffic_seed)
    rng = np.random.default_rng([traffic_seed, 5])
    speeds = queue_speeds(rng, horizon_s, rng.uniform(2.0, 3.5))
    lead = Company("lorry", 13.5, 1.3) if traffic_seed % 2 == 0 else Company("van", 9.5, 1.3)
    plan = replace(_QUEUE, lead=lead)
    ego = Progress(speeds, horizon_s, START_S + 300.0)
    return Place(world, Traffic(world, ego, plan), CityGround(road.crossings))


def _motorway(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = motorway.motorway_road(seed, _MOTORWAY_SPEED * (horizon_s + 60.0))
    world = motorway.MotorwayWorld(seed, road, traffic_seed)
    rng = np.random.default_rng([traffic_seed, 5])
    ego = Progress(cruise_speeds(rng, horizon_s, 30.0, 40.0), horizon_s, START_S)
    return Place(world, Traffic(world, ego, motorway.TRAFFIC), motorway.MotorwayGround())


def _tunnel(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = motorway.motorway_road(seed, _MOTORWAY_SPEED * (horizon_s + 60.0))
    world = tunnel.TunnelWorld(seed, road, traffic_seed)
    rng = np.random.default_rng([traffic_seed, 5])
    ego = Progress(cruise_speeds(rng, horizon_s, 20.0, 28.0), horizon_s, START_S)
    traffic = Traffic(world, ego, tunnel.PLAN)
    return Place(world, traffic, motorway.MotorwayGround(), tunnel.Tunnels())


def _parking(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    world = manoeuvres.ParkingWorld(seed, manoeuvres.straight_road(seed, 400.0), traffic_seed)
    path = manoeuvres.parking_path(horizon_s)
    way = path.progress(horizon_s, manoeuvres.parking_start(traffic_seed))
    traffic = manoeuvres.Manoeuvre(world, path, way, manoeuvres.PARKING_TRAFFIC)
    return Place(world, traffic, manoeuvres.ParkingGround())


def _roundabout(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    world = manoeuvres.RoundaboutWorld(seed, manoeuvres.straight_road(seed, 600.0), traffic_seed)
    path = manoeuvres.roundabout_path(horizon_s)
    way = path.progress(horizon_s, manoeuvres.roundabout_start(traffic_seed))
    company = manoeuvres.ROUNDABOUT_COMPANY
    plan = manoeuvres.ROUNDABOUT_TRAFFIC
    traffic = manoeuvres.Manoeuvre(world, path, way, plan, company)
    return Place(world, traffic, manoeuvres.RoundaboutGround())


_PEDESTRIANS = replace(
    CITY,
    columns=(
        *(column for column in CITY.columns if column.kinds[0] != "pedestrian"),
        *(replace(column, spacing=0.35 * column.spacing, jitter=2.0) for column in _PAVEMENTS),
        Column(9, ("pedestrian",), -9.4, -1.2, 9.0, 3.0, 0.6),
        Column(10, ("pedestrian",), 9.5, 1.4, 9.0, 3.0, 0.6),
    ),
    crossers=7,
)


def _pedestrians(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = Road(seed, _CITY_SPEED * (horizon_s + 60.0))
    world = World(seed, road, traffic_seed)
    speeds = city_speeds(road, traffic_seed, horizon_s, _SLOW)
    traffic = Traffic(world, Progress(speeds, horizon_s, START_S), _PEDESTRIANS)
    return Place(world, traffic, CityGround(road.crossings))


def _closed(road: closed.ClosedRoad, seed: int, horizon_s: float, traffic_seed: int) -> Place:
    world = closed.ClosedWorld(seed, road, traffic_seed)
    ego = Progress(city_speeds(road, traffic_seed, horizon_s), horizon_s, START_S)
    return Place(world, Traffic(world, ego, closed.TRAFFIC), CityGround(()))


def _block(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = closed.block(seed, _CITY_SPEED * (horizon_s + 60.0))
    return _closed(road, seed, horizon_s, traffic_seed)


def _eight(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    road = closed.eight(seed, _CITY_SPEED * (horizon_s + 60.0))
    return _closed(road, seed, horizon_s, traffic_seed)


_FRONT = 3.7  # metres from the rear axle to the front bumper
_HALF_LENGTH = {"car": 2.4, "van": 2.8, "truck": 3.9, "lorry": 8.0, "cyclist": 0.9}
_LEADS = ("car", "car", "car", "car", "car", "van", "van", "truck", "lorry", "cyclist")
_BESIDE = ("car", "car", "car", "van", "truck")


def _follow(seed: int, horizon_s: float, traffic_seed: int) -> Place:
    """Behind a vehicle or a cyclist 5 to 28 m ahead that keeps its distance; in the lanes beside
    others at nearly the same speed; at the kerb parked cars. Every third seed on a motorway."""
    rng = np.random.default_rng([traffic_seed, 51])
    fast = traffic_seed % 3 == 2
    kind = _LEADS[int(rng.integers(len(_LEADS) - fast))]
    gap = float(np.exp(rng.uniform(np.log(9.0 if fast else 5.0), np.log(28.0))))
    lead = Company(
        kind, _FRONT + gap + _HALF_LENGTH[kind], rng.uniform(0.1, 0.4), rng.uniform(0.0, 0.15)
    )
    tail = Company("car", -rng.uniform(8.0, 16.0), -0.3, 0.1)

    def beside(number: int, lateral: float) -> Column:
        """A lane whose column passes at walking pace at most."""
        faster, apart = rng.uniform(0.05, 1.2), rng.uniform(16.0, 34.0)
        return Column(number, _BESIDE, lateral, faster, apart, 2.0, 0.8, Pace.OVERTAKES)

    if fast:
        others = [column for column in motorway.TRAFFIC.columns if column.speed < 0]
        near = [beside(11, -motorway.LANES[0]), beside(12, -motorway.LANES[2])]
        road = motorway.motorway_road(seed, _MOTORWAY_SPEED * (horizon_s + 60.0))
        world: World = motorway.MotorwayWorld(seed, road, traffic_seed)
        low = rng.uniform(18.0, 32.0)
        speeds = cruise_speeds(rng, horizon_s, low, low + 3.0)
        ground: GroundPlan = motorway.MotorwayGround()
        plan = replace(motorway.TRAFFIC, columns=(*others, *near), lead=lead, tail=tail)
    else:
        road = Road(seed, _FOLLOW_SPEED * (horizon_s + 60.0))
        world, ground = World(seed, road, traffic_seed), CityGround(road.crossings)
        low = rng.uniform(3.0, 5.0) if kind == "cyclist" else rng.uniform(5.0, 15.0)
        speeds = city_speeds(road, traffic_seed, horizon_s, (low, 1.3 * low))
        own, other = (-LANE, 0.0) if rng.random() < 0.6 else (0.0, -LANE)
        others = [column for column in CITY.columns if column.pace is not Pace.OVERTAKES]
        plan = TrafficPlan(own, (*others, beside(11, other)), lead, tail, weaves=True)
    return Place(world, Traffic(world, Progress(speeds, horizon_s, START_S), plan), ground)


_MAKERS: Mapping[Course, Callable[[int, float, int], Place]] = {
    Course.CITY: _city,
    Course.QUEUE: _queue,
    Course.MOTORWAY: _motorway,
    Course.TUNNEL: _tunnel,
    Course.PARKING: _parking,
    Course.ROUNDABOUT: _roundabout,
    Course.PEDESTRIANS: _pedestrians,
    Course.BLOCK: _block,
    Course.EIGHT: _eight,
    Course.FOLLOW: _follow,
}
