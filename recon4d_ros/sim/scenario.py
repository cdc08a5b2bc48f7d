"""Everyday drives by name: where one drives (a course) and what it looks like (conditions), put
together freely.

A name is one or more parts joined by `+`: at most one course (`motorway`) and any conditions
(`night`, `rain`): `motorway+night+rain`. Without a course it is the city. What the parts set is
merged field by field; the lesser visibility and the longer exposure win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from recon4d_ros.errors import ParameterError
from recon4d_ros.types import Rig

HIGH_SUN = (0.58, 0.40, 0.60)


class Course(Enum):
    """Where one drives, and with whom."""

    CITY = "city"
    QUEUE = "queue"
    MOTORWAY = "motorway"
    TUNNEL = "tunnel"
    PARKING = "parking"
    ROUNDABOUT = "roundabout"
    PEDESTRIANS = "pedestrians"
    BLOCK = "block"
    EIGHT = "eight"
    FOLLOW = "follow"


@dataclass(frozen=True)
class Conditions:
    """What light, weather and cameras do to a picture; none of it changes the truth.

    sun: direction to it, in world (x: the way the road leads). overcast: 0..1, the share of the sun
    that clouds take. night: lamps instead of the sun. visibility: metres at which a black thing has
    lost 63 % of its contrast. rain: 0..1: wet road, drops on the lenses, streaks in the air. wind:
    metres by which the crowns of trees sway. glare: strength of what the sun scatters in the lens.
    exposure_s: the shutter is open so long (motion blur; 0: none). exposure_steps: the gain jumps
    every two to four seconds. rolling_shutter: seconds of read-out for cameras whose rig file does
    not say it. jpeg_quality: of the images, 1..100.
    """

    sun: tuple[float, float, float] = HIGH_SUN
    overcast: float = 0.0
    night: bool = False
    visibility: float = 900.0
    rain: float = 0.0
    wind: float = 0.0
    glare: float = 0.0
    exposure_s: float = 0.0
    exposure_steps: bool = False
    rolling_shutter: float = 0.0
    jpeg_quality: int = 92


@dataclass(frozen=True)
class Scenario:
    """A drive by name and seed. The same scenario and seed is the same drive, bit for bit.

    traffic_seed: of another drive through the same streets: how the ego vehicle and all others
    drive, and what is parked; None: the seed.
    """

    name: str = "city"
    seed: int = 0
    course: Course = Course.CITY
    conditions: Conditions = Conditions()
    traffic_seed: int | None = None

    def rig(self, rig: Rig) -> Rig:
        """The rig as this drive has it: with a rolling shutter where the scenario says so and the
        rig does not."""
        if not self.conditions.rolling_shutter:
            return rig
        return Rig(
            rig.name,
            tuple(
                replace(
                    camera,
                    rolling_shutter=camera.rolling_shutter or self.conditions.rolling_shutter,
                )
                for camera in rig.cameras
            ),
        )


# What a name stands for, in the order in which they are listed; the text is for users.
_COURSES: Mapping[str, tuple[Course, str]] = {
    "city": (Course.CITY, "streets, crossings, people, cyclists and parked cars"),
    "queue": (Course.QUEUE, "stop and go, 10 s standing while lorries alongside move"),
    "motorway": (Course.MOTORWAY, "30 to 40 m/s from the first frame, rails, little texture"),
    "tunnel": (Course.TUNNEL, "a motorway that goes through lit tunnels"),
    "parking": (Course.PARKING, "a car park: slow, tight turns, reversing into a bay"),
    "roundabout": (Course.ROUNDABOUT, "into roundabouts, around them and out again"),
    "pedestrians": (Course.PEDESTRIANS, "a slow street full of people who walk and cross"),
    "block": (Course.BLOCK, "the city round a block of 960 m, again and again"),
    "eight": (Course.EIGHT, "the city in a figure of eight of 960 m, again and again"),
    "follow": (
        Course.FOLLOW,
        "close behind another at its speed, in a street or on a motorway",
    ),
}
_CONDITIONS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "night": (
        {"night": True, "exposure_s": 0.016},
        "headlights, street lamps, glare, noise, long exposure",
    ),
    "rain": (
        {"rain": 1.0, "overcast": 0.95, "visibility": 260.0},
        "drops and streaks that stay on the lens, wet road that mirrors",
    ),
    "fog": ({"overcast": 1.0, "visibility": 45.0}, "contrast is lost within 50 m"),
    "sun": (
        {"sun": (0.974, 0.06, 0.218), "glare": 1.0},
        "low, into the lens, long hard shadows, the own one among them",
    ),
    "afternoon": (
        {"sun": (-0.52, -0.62, 0.59)},
        "the sun stands behind and on the other side: other walls are lit, shadows fall elsewhere",
    ),
    "leaves": ({"wind": 0.25, "overcast": 0.2}, "trees sway in the wind: truth says static"),
    "exposure": ({"exposure_steps": True}, "the gain jumps every two to four seconds"),
    "blur": ({"exposure_s": 0.02}, "the shutter is open for 20 ms"),
    "shutter": (
        {"rolling_shutter": 0.02},
        "rolling shutter, 20 ms from the first row to the last where the rig file says nothing",
    ),
    "jpeg": ({"jpeg_quality": 50}, "JPEG at quality 50"),
}
NAMES: Mapping[str, str] = {
    name: text for table in (_COURSES, _CONDITIONS) for name, (_, text) in table.items()
}


def scenario(name: str, seed: int = 0, traffic_seed: int | None = None) -> Scenario:
    """The scenario of a name such as `queue` or `motorway+night+rain`. Raises ParameterError."""
    parts = [part.strip() for part in name.split("+")]
    if unknown := [part for part in parts if part not in NAMES]:
        raise ParameterError(
            f"scenario {name}: {unknown[0]!r} is not known: expected some of {', '.join(NAMES)},"
            " joined by +"
        )
    courses = [part for part in parts if part in _COURSES]
    if len(courses) > 1:
        raise ParameterError(
            f"scenario {name}: {' and '.join(courses)} are both places: expected one"
        )
    conditions = Conditions()
    for part in parts:
        if part in _CONDITIONS:
            conditions = _merged(conditions, _CONDITIONS[part][0])
    course = _COURSES[courses[0]][0] if courses else Course.CITY
    return Scenario(name, seed, course, conditions, traffic_seed)


def _merged(conditions: Conditions, change: Mapping[str, Any]) -> Conditions:
    """Of visibility and JPEG quality the least, of everything else the one that is not usual; where
    both are, the greater."""
    usual = Conditions()
    values: dict[str, Any] = {}
    for field in fields(Conditions):
        ours, other = getattr(conditions, field.name), change.get(field.name)
        if other is None:
            continue
        if ours == getattr(usual, field.name):
            values[field.name] = other
        elif field.name in ("visibility", "jpeg_quality"):
            values[field.name] = min(ours, other)
        else:
            values[field.name] = max(ours, other)
    return replace(conditions, **values)
