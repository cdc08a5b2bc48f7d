"""Who moves, and where they are at any time: the ego vehicle on its lane, and everyone else around
it, each a function of time.

Lanes, cycle lanes and pavements carry endless columns at constant speed (nothing in a column meets
itself, and only those near the ego vehicle exist); a car drives ahead of and one behind the ego
vehicle on its own trajectory, some seconds apart; people, cyclists and cars cross, timed by the ego
vehicle's passing so that they are seen near; a parked car leaves. Columns give way to what crosses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.models import Body, Mover
from recon4d_ros.sim.progress import Progress, queue_speeds
from recon4d_ros.sim.road import CHUNK, LANE
from recon4d_ros.sim.world import PARKED_LATERAL, Parked, World

VARIANTS = 24  # of each kind: few enough that all their strides stay in memory
VEHICLES = ("car", "van", "truck", "lorry")


class Pace(Enum):
    """What a column's speed means."""

    STEADY = "steady"  # m/s over ground
    # m/s over the ego vehicle's; those who cross give way to it (it gives way to nobody)
    OVERTAKES = "overtakes"
    STOP_AND_GO = "stop and go"  # +1 or -1: the direction; it moves while the ego vehicle stands


@dataclass(frozen=True)
class Column:
    """An endless column on one lane. speed: as `pace` says, along s, negative is oncoming. keep:
    share of places that are taken. spacing and jitter: metres.
    """

    number: int
    kinds: tuple[str, ...]
    lateral: float
    speed: float
    spacing: float
    jitter: float
    keep: float
    pace: Pace = Pace.STEADY


@dataclass(frozen=True)
class Company:
    """The car before (or behind) the ego vehicle, which drives the same way some seconds earlier.

    ahead: metres from the ego vehicle's rear axle to its middle where both stand; seconds: how much
    earlier. wobble: seconds by which that changes.
    """

    kind: str
    ahead: float
    seconds: float
    wobble: float = 0.0


@dataclass(frozen=True)
class TrafficPlan:
    """Who is on a road. ego_lateral: metres left of the centre line.

    crossers: how many per place cross between or behind (0: nobody; 1: as on a street).
    leavers: whether parked cars leave. sight: metres around the ego vehicle in which movers exist.
    weaves: vehicles sway in their lane with time (a queue's must not: who stands does not sway).
    """

    ego_lateral: float
    columns: tuple[Column, ...]
    lead: Company
    tail: Company
    crossers: int = 0
    leavers: bool = False
    sight: float = 140.0
    weaves: bool = False


CITY = TrafficPlan(
    ego_lateral=-LANE,
    columns=(
        Column(1, ("car", "car", "van", "truck"), LANE, -8.5, 34.0, 9.0, 0.8),
        Column(2, ("car", "car", "car", "van"), 0.0, 3.2, 34.0, 7.0, 0.75, Pace.OVERTAKES),
        Column(3, ("cyclist",), -5.6, 4.6, 34.0, 9.0, 0.75),
        Column(4, ("cyclist",), 5.6, -4.4, 40.0, 12.0, 0.75),
        Column(5, ("pedestrian",), -10.2, 1.45, 17.0, 6.0, 0.7),
        Column(6, ("pedestrian",), -11.0, -1.3, 21.0, 7.0, 0.7),
        Column(7, ("pedestrian",), 10.3, -1.4, 19.0, 6.0, 0.7),
        Column(8, ("pedestrian",), 11.1, 1.25, 23.0, 7.0, 0.7),
    ),
    lead=Company("car", 9.0, 2.7, 0.5),
    tail=Company("car", -8.0, -3.0),
    crossers=1,
    leavers=True,
    weaves=True,
)


@dataclass(frozen=True)
class Crosser:
    """Someone who crosses the road at s (plus `along`): at `lateral` when it is `time`, at `speed`
    (signed, along lateral).

    They stand still at -reach and +reach before and after.
    """

    id: int
    body: Body
    s: float
    lateral: float
    time: float
    speed: float
    reach: float

    def at(self, t: NDArray | float) -> NDArray[np.float64]:
        """Lateral position at t; comes to rest softly at both ends."""
        raw = self.lateral + self.speed * (np.asarray(t, np.float64) - self.time)
        soft = 0.25 * abs(self.speed)
        return -self.reach + _soft_ramp(raw + self.reach, soft) - _soft_ramp(raw - self.reach, soft)

    @property
    def half_length(self) -> float:
        return 2.6 if self.body.kind in ("car", "van") else 1.0


def _soft_ramp(x: NDArray, width: float) -> NDArray:
    """max(x, 0) with a parabola of +-width around the kink."""
    return np.where(x <= -width, 0.0, np.where(x >= width, x, (x + width) ** 2 / (4 * width)))


class Traffic:
    """All movers of a world around its ego vehicle."""

    def __init__(self, world: World, ego: Progress, plan: TrafficPlan = CITY) -> None:
        self.world = world
        self.ego = ego
        self.plan = plan
        self._lead_body, self._tail_body = (
            Body(company.kind, (world.traffic_seed * 7 + i) % VARIANTS)
            for i, company in ((3, plan.lead), (4, plan.tail))
        )
        self._queues = {
            column.number: Progress(
                queue_speeds(
                    np.random.default_rng([world.traffic_seed, column.number, 13]),
                    ego.horizon_s,
                    0.0,
                ),
                ego.horizon_s,
                0.0,
            )
            for column in plan.columns
            if column.pace is Pace.STOP_AND_GO
        }
        self._hash = lru_cache(4096)(self._place)
        self._crossers_of = lru_cache(None)(self._make_crossers)
        self._exists = lru_cache(4096)(self._keeps_clear)
        self._parked_at = lru_cache(512)(self._stand)
        self._all_crossers = lru_cache(None)(self._plan_crossers)
        self._all_leavers = lru_cache(None)(self._plan_leavers)

    def ego_pose(self, t: float) -> NDArray[np.float64]:
        """T_world_base: on its lane, with the little pitch and roll of a sprung car; base_link
        stays at z = 0."""
        pose = self.world.on_road(float(self.ego.s(t)), self.plan.ego_lateral)
        h = 0.15
        s = self.ego.s(np.array([t - h, t, t + h]))
        speed, acceleration = (s[2] - s[0]) / (2 * h), (s[2] - 2 * s[1] + s[0]) / h**2
        return sprung(pose, speed, acceleration, float(self.world.road.curvature(s[1:2])[0]), t)

    def station(self, t: float) -> float:
        """Metres along the road: which part of the world is in sight."""
        return float(self.ego.s(t))

    def movers(self, t: float) -> list[Mover]:
        """Everyone who can move and is within sight at time t (parked cars too), in a fixed
        order."""
        s_ego = float(self.ego.s(t))
        found = [
            *self._company(t),
            *self._column_movers(t, s_ego),
            *self._crossing_movers(t, s_ego),
            *self._parked_movers(t, s_ego),
        ]
        return found

    def _company(self, t: float) -> Iterator[Mover]:
        for number, body, company, rate, phase in (
            (101, self._lead_body, self.plan.lead, 0.4, 0.0),
            (102, self._tail_body, self.plan.tail, 0.3, 1.0),
        ):
            s = float(self._company_s(company, t))
            sway = 0.1 * np.sin((rate * t if self.plan.weaves else 0.05 * s) + phase)
            pose = self.world.on_road(s, self.plan.ego_lateral + sway)
            yield Mover(number, body, pose, _stride(body, s))

    def _company_s(self, company: Company, t: NDArray | float) -> NDArray[np.float64]:
        wobble = company.wobble * np.sin(2 * np.pi * np.asarray(t) / 17.0)
        return self.ego.s(t + company.seconds + wobble) + company.ahead

    def _column_movers(self, t: float, s_ego: float) -> Iterator[Mover]:
        for column in self.plan.columns:
            base = self._base(column, t)
            middle = (s_ego - base) / column.spacing
            reach = self.plan.sight * (1.0 if column.kinds[0] in VEHICLES else 0.6)
            for j in range(
                int(np.floor(middle - reach / column.spacing)),
                int(np.ceil(middle + reach / column.spacing)) + 1,
            ):
                start, body = self._hash(column, j)
                if body is None or not self._exists(column, j):
                    continue
                s = start + float(base)
                sway = 0.12 * np.sin((0.5 * t if self.plan.weaves else 0.05 * s) + j)
                lateral = column.lateral + sway
                pose = self.world.on_road(s, lateral, 0.0 if column.speed > 0 else np.pi)
                yield Mover(
                    1_000_000 * (10 + column.number) + j % 1_000_000, body, pose, _stride(body, s)
                )

    def _base(self, column: Column, t: NDArray | float) -> NDArray[np.float64]:
        """How far a column has come at time t."""
        if column.pace is Pace.STOP_AND_GO:
            return column.speed * self._queues[column.number].s(t)
        way = column.speed * np.asarray(t, np.float64)
        return way + self.ego.s(t) if column.pace is Pace.OVERTAKES else way

    def _place(self, column: Column, j: int) -> tuple[float, Body | None]:
        """Where the j-th place of a column was at t = 0, and who holds it."""
        rng = np.random.default_rng([self.world.traffic_seed, column.number, j + 10_000_000, 6])
        start = j * column.spacing + rng.uniform(-column.jitter, column.jitter)
        taken, kind, variant = (
            rng.random() < column.keep,
            column.kinds[int(rng.integers(len(column.kinds)))],
            int(rng.integers(VARIANTS)),
        )
        return start, Body(kind, variant) if taken else None

    def _keeps_clear(self, column: Column, j: int) -> bool:
        """Whether a column's j-th never comes near what crosses its lane, or the leaving car on
        it."""
        start, _ = self._hash(column, j)
        if not self.plan.crossers:
            return True
        half = {"car": 1.3, "cyclist": 0.8}.get(column.kinds[0])
        if half is not None and column.pace is Pace.STEADY:
            places, times, crossers = self._all_crossers()
            meets = (places - start) / column.speed
            for i in np.flatnonzero(np.abs(meets - times) < 30.0):
                gap = np.abs(crossers[i].at(meets[i] + np.linspace(-1.0, 1.0, 9)) - column.lateral)
                if gap.min() < crossers[i].half_length + half:
                    return False
        if column is self.plan.columns[0]:  # the lane into which parked cars leave
            for car, leaves_at in self._all_leavers():
                times = leaves_at + np.arange(0.0, 14.0, 0.5)
                if (
                    np.abs(start + column.speed * times - _leaving(car, times - leaves_at)[0]).min()
                    < 9.0
                ):
                    return False
        return True

    def _plan_crossers(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[Crosser, ...]]:
        """Places, times and all who cross during the whole horizon."""
        chunks = range(int(self.ego.s(self.ego.horizon_s) // CHUNK) + 2)
        crossers = tuple(crosser for chunk in chunks for crosser in self._crossers_of(chunk))
        return np.array([c.s for c in crossers]), np.array([c.time for c in crossers]), crossers

    def _plan_leavers(self) -> tuple[tuple[Parked, float], ...]:
        last = int(self.ego.s(self.ego.horizon_s) // CHUNK) + 2
        cars = [car for chunk in range(0, last) for car in self.world.parked(chunk) if car.leaves]
        return tuple((car, self.leaving_time(car)) for car in cars)

    def leaving_time(self, car: Parked) -> float:
        """A leaving car starts when the ego vehicle is 24 m before it."""
        return self.ego.time_at(car.s - 24.0)

    def _crossing_movers(self, t: float, s_ego: float) -> Iterator[Mover]:
        for chunk in self.world.around(s_ego):
            for crosser in self._crossers_of(chunk):
                if abs(crosser.s - s_ego) > self.plan.sight:
                    continue
                lateral = float(crosser.at(t))
                pose = self.world.on_road(crosser.s, lateral, np.pi / 2 * np.sign(crosser.speed))
                yield Mover(crosser.id, crosser.body, pose, _stride(crosser.body, lateral))

    def _make_crossers(self, chunk: int) -> tuple[Crosser, ...]:
        """Who crosses in a chunk, timed by the ego vehicle's passing: between the car ahead and it,
        or behind it."""
        if chunk < 0 or not self.plan.crossers:
            return ()
        rng = np.random.default_rng([self.world.traffic_seed, chunk + 1000, 7])
        first = 4_000_000 + chunk % 20000 * 20
        made: list[Crosser] = []

        def add(kind: str, s: float, delay: float, speed: float, reach: float) -> None:
            """`delay`: seconds after the ego vehicle's middle passes s at which the crosser is on
            the ego lane, as near as can be."""
            body = Body(kind, int(rng.integers(VARIANTS)))
            for more in (0.0, -0.15, 0.15, -0.3, 0.3, *np.arange(1, 9) * 0.35 * np.sign(delay)):
                time = self.ego.time_at(s - 1.5) + delay + more
                crosser = Crosser(
                    first + len(made), body, s, self.plan.ego_lateral, time, speed, reach
                )
                if self._lane_is_free(crosser):
                    made.append(crosser)
                    return

        sign = 1.0 if rng.random() < 0.5 else -1.0
        if self.world.road.has_crossing(chunk):
            middle = (chunk + 0.5) * CHUNK
            add("car", middle - sign * 1.8, -1.75, sign * 8.5, 90.0)
            add("cyclist", middle + 6.0, -1.55, -sign * 4.4, 45.0)
            add("pedestrian", middle - 6.4, -1.6, sign * 2.2, 11.0)
            add("pedestrian", middle + 6.8, 1.9, sign * 1.7, 11.0)
            add("car", middle + sign * 1.8, 1.8, -sign * 8.0, 90.0)
        else:
            s = chunk * CHUNK + rng.uniform(14.0, 46.0)
            add("pedestrian", s, -1.55, sign * 2.3, 10.5)
            add(
                "cyclist" if rng.random() < 0.3 else "pedestrian",
                s + rng.uniform(-9.0, 9.0),
                1.9,
                -sign * 2.0,
                10.5,
            )
        for _ in range(self.plan.crossers - 1):
            s, delay = (chunk + rng.random()) * CHUNK, rng.choice([-1.0, 1.0])
            direction = rng.choice([-1.0, 1.0])
            add(
                "pedestrian",
                s,
                delay * rng.uniform(1.7, 4.0),
                direction * rng.uniform(1.2, 2.2),
                10.5,
            )
        return tuple(made)

    def _lane_is_free(self, crosser: Crosser) -> bool:
        """Whether the ego vehicle, the cars before and behind it and those that overtake are away
        while someone is on their lanes."""
        t = crosser.time + np.linspace(-6.0, 6.0, 121)
        on_lane = np.abs(crosser.at(t) - self.plan.ego_lateral) < crosser.half_length + 1.1
        margin = 3.2 + (1.0 if crosser.half_length > 2.0 else 0.4)
        near = (self._company_s(company, t) for company in (self.plan.lead, self.plan.tail))
        for s in (self.ego.s(t) + 1.5, *near):
            if (on_lane & (np.abs(s - crosser.s) < margin)).any():
                return False
        for column in (c for c in self.plan.columns if c.pace is Pace.OVERTAKES):
            on_lane = np.abs(crosser.at(t) - column.lateral) < crosser.half_length + 1.3
            base = self._base(column, t)
            places = (crosser.s - base) / column.spacing
            for j in range(int(places.min()) - 1, int(places.max()) + 2):
                start, body = self._hash(column, j)
                if (
                    body is not None
                    and (on_lane & (np.abs(start + base - crosser.s) < margin)).any()
                ):
                    return False
        return True

    def _parked_movers(self, t: float, s_ego: float) -> Iterator[Mover]:
        for chunk in self.world.around(s_ego):
            for car in self.world.chunk(chunk).parked:
                if car.leaves and self.plan.leavers:
                    place, lateral, turn = (
                        float(value[0])
                        for value in _leaving(car, np.array([t - self.leaving_time(car)]))
                    )
                    if abs(place - s_ego) < self.plan.sight + 20.0:
                        yield Mover(
                            car.id, car.body, self.world.on_road(place, lateral, turn + np.pi)
                        )
                elif abs(car.s - s_ego) < self.plan.sight + 20.0:
                    yield self._parked_at(car)

    def _stand(self, car: Parked) -> Mover:
        return Mover(
            car.id,
            car.body,
            self.world.on_road(car.s, car.side * PARKED_LATERAL, np.pi if car.side > 0 else 0.0),
        )


def _leaving(
    car: Parked, since: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(s, lateral, turn) of a left-parked car that pulls out into the oncoming lane, `since`
    seconds after it starts."""
    cruise, acceleration = -CITY.columns[0].speed, 2.2
    ramp = cruise / acceleration
    moving = np.maximum(since, 0.0)
    way = np.where(moving < ramp, 0.5 * acceleration * moving**2, cruise * (moving - 0.5 * ramp))
    u = np.clip((way - 0.3) / 16.0, 0.0, 1.0)
    lateral = PARKED_LATERAL + (CITY.columns[0].lateral - PARKED_LATERAL) * u * u * (3 - 2 * u)
    slope = (CITY.columns[0].lateral - PARKED_LATERAL) * 6 * u * (1 - u) / 16.0
    return car.s - way, lateral, -np.arctan(slope)


def sprung(
    pose: NDArray[np.float64], speed: float, acceleration: float, curvature: float, t: float
) -> NDArray[np.float64]:
    """A pose on the ground with the little pitch and roll of a sprung car, which stands still where
    the car does. m/s, m/s^2, 1/m, s."""
    shake = min(abs(speed) / 8.0, 1.0)
    pitch = -0.004 * acceleration + shake * (
        0.0035 * np.sin(2 * np.pi * 1.3 * t) + 0.002 * np.sin(2 * np.pi * 0.37 * t + 1.0)
    )
    roll = 0.004 * speed**2 * curvature + shake * (0.003 * np.sin(2 * np.pi * 0.9 * t + 2.0))
    c, d, e, f = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    pose = pose.copy()
    pose[:3, :3] = (
        pose[:3, :3]
        @ np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
        @ np.array([[1, 0, 0], [0, e, -f], [0, f, e]])
    )
    return pose


def _stride(body: Body, way: float) -> float:
    """Phase of a walker's stride or a cyclist's pedals after `way` metres."""
    return float(way * {"pedestrian": 4.2, "cyclist": 1.4}.get(body.kind, 0.0))
