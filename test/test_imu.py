"""Gyro and wheel speed beside the cameras help, and one that is wrong is told and left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_egomotion import MONO, STEREO, Shots, calibrate, darkened, drift, street

from recon4d_ros import geometry, messages
from recon4d_ros.bags import BagReader
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.egomotion import Egomotion
from recon4d_ros.egomotion.imu import Imu
from recon4d_ros.egomotion.motion_prior import TwistBuffer
from recon4d_ros.errors import BagError
from recon4d_ros.paths import rigs
from recon4d_ros.runs.replay import MotionTopics, frame_sets
from recon4d_ros.sim.bag import write_bag
from recon4d_ros.sim.motion_sensors import imu as inertial
from recon4d_ros.sync import Synchronizer
from recon4d_ros.types import ImuSample, PoseEstimate, RawImage, Rig, Tracking, TwistSample

START, PERIOD = 1_000_000_000, 100_000_000
SECOND = 1_000_000_000


def weave(t: float) -> np.ndarray:
    """A car at 8 m/s that turns left and right."""
    return geometry.exp(np.array([8.0 * t, 0, 0, 0, 0, 0.2 * np.sin(1.5 * t)]))


def gyro_of(seconds: float, pose=weave, seed: int = 0) -> list[ImuSample]:
    return [
        ImuSample(START + round(one.t * 1e9), one.gyro, one.acceleration)
        for one in inertial(pose, seconds, seed)
    ]


def compare(imu: Imu, samples: list[ImuSample], frames: int, pose=weave) -> list[bool | None]:
    """The gyro beside images that see every turn to 0.3 mrad."""
    said, taken = [], 0
    for index in range(1, frames):
        end = START + index * PERIOD
        new = [sample for sample in samples[taken:] if sample.stamp_ns <= end]
        taken += len(new)
        imu.add(new)
        t = index * PERIOD * 1e-9
        seen = geometry.log(geometry.inverse(pose(t - 0.1)) @ pose(t))[3:]
        said.append(imu.learn(end - PERIOD, end, seen, np.eye(3) * 0.0003**2))
    return said


def test_a_sound_gyro_is_believed_after_a_turn_and_its_bias_is_known() -> None:
    bias = np.array([0.01, -0.008, 0.012])
    samples = [replace(one, gyro=one.gyro + bias) for one in gyro_of(6.0)]
    imu = Imu()
    said = compare(imu, samples, 55)
    assert all(said[1:]) and imu.believed and not imu.trouble
    end = START + 54 * PERIOD
    turn, covariance = imu.turn(end - PERIOD, end)
    true = geometry.log(geometry.inverse(weave(5.3)) @ weave(5.4))[3:]
    assert np.abs(turn - true).max() < 0.0006
    assert np.abs(turn - true).max() < 3 * np.sqrt(covariance.max())


def test_a_gyro_is_not_believed_before_a_turn() -> None:
    def straight(t: float) -> np.ndarray:
        return geometry.exp(np.array([8.0 * t, 0, 0, 0, 0, 0]))

    imu = Imu()
    assert all(compare(imu, gyro_of(5.0, straight), 45, straight)[1:])
    assert not imu.believed and not imu.trouble


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: replace(one, gyro=one.gyro[[2, 0, 1]]),  # another frame
        lambda one: replace(one, gyro=-one.gyro),  # upside down
        lambda one: replace(one, gyro=np.degrees(one.gyro)),
        lambda one: replace(one, stamp_ns=one.stamp_ns + 700_000_000),  # late by a clock
    ],
    ids=["frame", "upside down", "degrees", "clock"],
)
def test_a_gyro_that_is_wrong_is_told_and_left_out(spoil) -> None:
    imu, samples = Imu(), [spoil(one) for one in gyro_of(7.0)]
    compare(imu, samples, 55)
    assert not imu.believed
    assert imu.turn(START + 5 * SECOND, START + 5 * SECOND + PERIOD) is None
    assert "contradicts the images" in imu.trouble


def test_a_stuck_gyro_is_told() -> None:
    samples = gyro_of(6.0)
    imu, stuck = Imu(), [replace(one, gyro=samples[300].gyro) for one in samples[300:]]
    compare(imu, samples[:300] + stuck, 40)
    assert not imu.believed and "stuck" in imu.trouble


def test_a_gap_gives_no_turn_and_the_gyro_comes_back() -> None:
    samples = gyro_of(6.0)
    imu = Imu()
    compare(imu, samples[:320] + samples[352:], 55)
    hole = START + 3_300_000_000
    assert imu.raw(hole, hole + PERIOD) is None
    assert imu.believed and imu.turn(START + 5 * SECOND, START + 5 * SECOND + PERIOD) is not None
    imu.add([ImuSample(START + 6 * SECOND, np.full(3, np.nan), np.zeros(3))])
    assert np.isfinite(imu.raw(START + 5 * SECOND, START + 5 * SECOND + PERIOD)).all()


def samples_of(shots: Shots, seed: int = 0) -> list[ImuSample]:
    """A gyro in the car of a rendered street, whose motion is one twist."""
    twist = geometry.log(shots[1][2]) / 0.1
    pose = lambda t: geometry.exp(twist * t)  # noqa: E731
    return gyro_of(0.1 * len(shots), pose, seed)


def run(
    rig: Rig, shots: Shots, imu: list[ImuSample], twist: list[TwistSample] | None = None
) -> tuple[Egomotion, list[PoseEstimate]]:
    ego, out, last = Egomotion(rig, calibrate(rig)), [], 0
    for frame, truth, _ in shots:
        span = (last, frame.stamp_ns)
        new, speed = (
            tuple(one for one in every if span[0] < one.stamp_ns <= span[1])
            for every in (imu, twist or [])
        )
        pose = ego.estimate(frame, (), imu=new, twist=speed)
        ego.observe(frame, truth, pose, np.zeros(truth.depth.shape, np.bool_))
        out.append(pose)
        last = frame.stamp_ns
    return ego, out


def test_a_gyro_turns_the_pose_while_the_images_are_dark() -> None:
    """The car turns; its gyro agrees; then it is dark for four frames."""
    shots = darkened(street("stereo", 20), range(14, 18))
    ego, poses = run(STEREO, shots, samples_of(shots))
    assert ego._imu.believed
    assert all(poses[index].tracking is Tracking.LOST for index in range(14, 18))
    off = geometry.log(geometry.inverse(shots[17][2]) @ poses[17].T_map_base)
    assert abs(off[5]) < 0.004 and poses[-1].tracking is Tracking.TRACKING


def test_a_wrong_gyro_costs_nothing_and_is_told() -> None:
    shots = street("stereo", 20)
    wrong = [replace(one, gyro=one.gyro[[2, 0, 1]] * 3) for one in samples_of(shots)]
    _, poses = run(STEREO, shots, wrong)
    assert drift(poses, shots) < 0.015
    assert "imu contradicts" in poses[-1].reason
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])


def wheel_speed(shots: Shots, scale: float = 1.0, turns: bool = True) -> list[TwistSample]:
    twist = geometry.log(shots[1][2]) / 0.1 * scale
    twist[3:] *= turns
    first = shots[0][0].stamp_ns
    return [TwistSample(first + index * 20_000_000, twist) for index in range(5 * len(shots))]


@pytest.mark.parametrize("turns", [True, False], ids=["speed and turn", "speed"])
def test_wheel_speed_carries_the_pose_through_the_dark(turns: bool) -> None:
    shots = darkened(street("mono", 20), range(8, 14))
    _, poses = run(MONO, shots, [], wheel_speed(shots, turns=turns))
    assert all(pose.tracking is Tracking.TRACKING for pose in poses[1:])
    assert "twist alone" in poses[10].reason and drift(poses, shots) < 0.02


def test_wheel_speed_that_the_images_contradict_is_left_out() -> None:
    """Kilometres per hour, say; and alone, in the dark, nothing is promised by it."""
    shots = darkened(street("stereo", 20), range(14, 17))
    _, poses = run(STEREO, shots, [], wheel_speed(shots, 1.6))
    assert any("twist contradicts" in pose.reason for pose in poses[:14])
    assert not any(pose.usable for pose in poses[14:17])


def test_speed_is_integrated_and_a_gap_is_not() -> None:
    buffer = TwistBuffer()
    twist = np.array([5.0, 0, 0, 0, 0, 0.1])
    buffer.add(TwistSample(index * 20_000_000, twist) for index in range(20))
    motion, _ = buffer.motion(100_000_000, 300_000_000, None)
    assert np.allclose(motion, geometry.exp(0.2 * twist), atol=1e-6) and buffer.turns
    buffer.add([TwistSample(5 * SECOND, twist), TwistSample(5 * SECOND + 20_000_000, twist)])
    assert buffer.motion(300_000_000, 5 * SECOND, None)[0] is None


def test_samples_go_out_with_their_frame_set() -> None:
    """Of a clock that is not the cameras', none; what is not finite is counted."""
    sync, image = Synchronizer(("a",)), RawImage(0, "mono8", np.zeros(4, np.uint8), 2, 2, 2)
    sets = []
    for index in range(30):
        now = START + index * PERIOD
        sync.add_imu(ImuSample(now - 5, np.zeros(3), np.zeros(3)), now)
        sync.add_twist(TwistSample(now + 50 * SECOND, np.zeros(6)), now)
        sets += sync.add_image("a", replace(image, stamp_ns=now), now)
    sync.add_imu(ImuSample(START + 100 * SECOND, np.full(3, np.nan), np.zeros(3)), None)
    sets += sync.flush()
    assert sum(len(one.imu) for one in sets) == 30
    assert sum(len(one.twist) for one in sets[6:]) == 0
    assert sync.statistics.twist_dropped["its clock is not the cameras'"] > 20
    assert sum(sync.statistics.imu_dropped.values()) == 1


# --- messages and bags


def xyz(x: float, y: float, z: float) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z)


def test_messages_are_turned_to_the_cars_axes() -> None:
    """A sensor mounted upside down, 2 m ahead of base_link and 1 m to the left."""
    place = geometry.se3(np.diag([1.0, -1.0, -1.0]), np.array([2.0, 1.0, 0.0]))
    header = SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=4), frame_id="imu")
    message = SimpleNamespace(
        header=header,
        angular_velocity=xyz(0.1, 0.2, -0.3),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=xyz(0.0, 0.0, -9.81),
    )
    sample = messages.imu_sample(message, place)
    assert sample.stamp_ns == 3 * SECOND + 4
    assert np.allclose(sample.gyro, [0.1, -0.2, 0.3])
    assert np.allclose(sample.acceleration, [0, 0, 9.81])
    message.angular_velocity_covariance[0] = -1  # no gyro
    assert not messages.imu_sample(message, place).finite
    # of a car that turns left about base_link at 0.5 rad/s and goes 3 m/s, seen where the sensor is
    twist = SimpleNamespace(linear=xyz(3.0 - 0.5, -1.0, 0.0), angular=xyz(0, 0, -0.5))
    message = SimpleNamespace(header=header, twist=SimpleNamespace(twist=twist))
    assert np.allclose(messages.twist_sample(message, place).twist, [3, 0, 0, 0, 0, 0.5])


def test_a_bag_brings_gyro_and_wheel_speed(tmp_path: Path) -> None:
    """The bag's only topic of a kind is used; one of an unknown frame is told and left out."""
    rig = load_rig(rigs() / "mono.yaml")
    small = replace(rig.cameras[0], width=96, height=54, k=np.diag([70.0, 70.0, 1.0]))
    path = tmp_path / "bag"
    write_bag(path, Rig("small", (small,)), seconds=0.3, seed=3, workers=1, imu=True)
    with BagReader(path) as reader:
        motion = MotionTopics.of(reader)
        assert motion == MotionTopics(None, "/imu", None)
        sets = list(frame_sets(reader, Synchronizer(("front",)), motion))
        none = list(frame_sets(reader, Synchronizer(("front",)), MotionTopics()))
        assert sum(len(one.imu) for one in sets) > 15 and not any(one.imu for one in none)
        assert abs(np.mean([s.acceleration[2] for one in sets for s in one.imu]) - 9.81) < 0.5
        with pytest.raises(BagError, match="no twist on /speed"):
            MotionTopics.of(reader, twist="/speed")
        with pytest.raises(BagError, match="expected sensor_msgs/msg/Imu"):
            list(reader.events(imu_topic="/ground_truth/odom"))
        elsewhere = list(frame_sets(reader, Synchronizer(("front",)), motion, base_frame="roof"))
        assert not any(one.imu for one in elsewhere)
        assert any("/imu: its frame 'base_link' is not known" in lost for lost in reader.lost)


def test_the_node_takes_imu_and_twist_from_where_they_are_mounted() -> None:
    inputs = pytest.importorskip("recon4d_ros.ros.inputs", reason="ROS 2 is not installed here")
    from geometry_msgs.msg import TransformStamped, TwistWithCovarianceStamped
    from sensor_msgs.msg import Imu as ImuMessage

    class Node:
        def create_subscription(self, kind, topic, callback, qos, **options):
            self.callback = callback

    class Buffer:
        def lookup_transform(self, target, source, time):
            if source != "imu":
                raise inputs.tf2_ros.LookupException("unknown")
            found = TransformStamped()
            found.transform.rotation.x = 1.0  # upside down
            found.transform.rotation.w = 0.0
            return found

    got, bad = [], []
    node = Node()
    inputs.MotionInput(
        node,
        "base_link",
        Buffer(),
        "/imu",
        "imu",
        sample=got.append,
        bad=lambda source, sentence: bad.append((source, sentence)),
    )
    message = ImuMessage()
    message.header.frame_id, message.angular_velocity.z = "imu", 0.25
    node.callback(message)
    assert np.allclose(got[0].gyro, [0, 0, -0.25])
    message.header.frame_id = "nowhere"
    node.callback(message)
    assert len(got) == 1 and bad[0][0] == "imu" and "nowhere" in bad[0][1]
    inputs.MotionInput(
        node, "base_link", Buffer(), "/speed", "twist", sample=got.append, bad=lambda *_: None
    )
    message = TwistWithCovarianceStamped()
    message.header.frame_id, message.twist.twist.linear.x = "base_link", 7.0
    node.callback(message)
    assert got[1].twist[0] == 7.0
