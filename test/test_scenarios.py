"""Everyday drives by name: their truth is exact, the car drives like a car, and the same seed gives
the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.errors import ParameterError
from recon4d_ros.geometry import inverse, log
from recon4d_ros.sim.scenario import Course, scenario
from recon4d_ros.sim.simulate import Drive

DRIVES = {course: Drive(scenario(course.value, 7)) for course in (Course.QUEUE, Course.MOTORWAY)}


@given(t=st.floats(0.0, 300.0), course=st.sampled_from(list(DRIVES)))
@settings(max_examples=100, deadline=None)
def test_the_car_drives_like_a_car(t: float, course: Course) -> None:
    """The rear axle does not slip sideways, accelerations are bounded, base_link stays on the
    ground."""
    drive, h = DRIVES[course], 0.01
    a, b, c = (drive.T_world_base(t + d) for d in (-h, 0.0, h))
    twist = drive.velocity(t)
    np.testing.assert_allclose(log(inverse(a) @ c) / (2 * h), twist, atol=0.03)
    assert a[2, 3] == b[2, 3] == c[2, 3] == 0.0
    assert abs(twist[1]) < 0.005 + 0.01 * abs(twist[0])
    assert np.linalg.norm((c[:3, 3] - 2 * b[:3, 3] + a[:3, 3]) / h**2) < 4.0


def test_a_motorway_is_fast_from_the_first_frame() -> None:
    for seed in range(6):
        drive = Drive(scenario("motorway", seed))
        assert all(29.5 < drive.velocity(t)[0] < 40.5 for t in np.arange(0.0, 30.0, 2.0))


def test_in_a_queue_one_stands_while_others_move() -> None:
    """It stands for about 10 s in one piece; its poses are then identical, and lorries move."""
    drive = DRIVES[Course.QUEUE]
    times = np.arange(0.0, 20.0, 0.1)
    speed = np.array([drive.velocity(t)[0] for t in times])
    standing = times[speed < 1e-9]
    assert 9.5 < standing[-1] - standing[0] < 13.5 and speed[0] > 1.0
    poses = [drive.T_world_base(t) for t in standing[4:-4]]  # at rest on its springs, too
    assert all((pose == poses[0]).all() for pose in poses)
    moving = [
        sum(thing.moving and thing.kind == "lorry" for thing in drive.scene(t).objects)
        for t in standing[::10]
    ]
    assert min(moving) > 0
    lead = [thing for thing in drive.scene(standing[30]).objects if thing.id == 101]
    assert not lead[0].moving


def test_names_compose_and_say_what_is_wrong() -> None:
    both = scenario("motorway+jpeg", 3)
    assert both.course is Course.MOTORWAY and both.conditions.jpeg_quality == 50
    assert scenario("jpeg").course is Course.CITY
    for name, said in (("moon", "'moon' is not known"), ("city+queue", "both places")):
        with pytest.raises(ParameterError, match=said):
            scenario(name)
