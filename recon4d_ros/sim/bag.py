"""A simulated drive as a rosbag2 folder, with its truth beside the cameras' topics."""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from recon4d_ros.bags import BagWriter, rig_transforms
from recon4d_ros.depth_png import encode_depth
from recon4d_ros.errors import OutputError
from recon4d_ros.geometry import quaternion
from recon4d_ros.sim.motion_sensors import ACCELERATION_NOISE, GYRO_NOISE, wheels
from recon4d_ros.sim.motion_sensors import imu as inertial
from recon4d_ros.sim.scenario import Scenario
from recon4d_ros.sim.scenario import scenario as scenario_of
from recon4d_ros.sim.simulate import START_NS, Drive, SimFrame, SimObject, Simulator
from recon4d_ros.types import Rig

_IMU = "sensor_msgs/msg/Imu"
_COMPRESSED = "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class Encoded:
    """A frame as it goes into the bag: the SimFrame without pixels, and per camera the bytes of
    image, depth and mask (None: thinned)."""

    frame: SimFrame
    images: tuple[bytes, ...]
    depths: tuple[bytes, ...] | None
    masks: tuple[bytes, ...] | None


def write_bag(
    path: str | Path,
    rig: Rig,
    seconds: float = 20.0,
    rate: float = 10.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    quality: int | None = None,
    workers: int = 2,
    skew_s: float = 0.0,
    ground_truth_every: int = 1,
    storage: Literal["mcap", "sqlite3"] = "mcap",
    scenario: str = "city",
    imu: bool = False,
    odometry: bool = False,
    traffic_seed: int | None = None,
) -> None:
    """Simulate a drive and write it as a bag (topics: see DESIGN.md; /ground_truth/* as docs say).

    progress: called with (frames done, frames in all). workers: processes that render; 1 renders in
    this one. ground_truth_every: depth and masks for every n-th frame only (pose and objects are in
    every frame). quality: of the JPEGs, the scenario's unless given. imu, odometry: also /imu and
    /odom, with their errors (see motion_sensors.py). The bag's content does not
    depend on `workers`. Raises OutputError if the bag cannot be written, ParameterError if there is
    no such scenario.
    """
    chosen = scenario_of(scenario, seed, traffic_seed)
    rig = chosen.rig(rig)
    quality = chosen.conditions.jpeg_quality if quality is None else quality
    total = round(seconds * rate)
    with BagWriter(path, storage) as bag:
        start = Simulator.stamp_of(0, rate)
        bag.write_tf_static(start, rig_transforms(rig))
        _write_motion(bag, chosen, seconds, imu, odometry)
        for encoded in _frames(
            (rig, seconds, rate, seed, skew_s, scenario, traffic_seed),
            quality,
            ground_truth_every,
            workers,
        ):
            _write(bag, rig, encoded)
            if progress:
                progress(encoded.frame.index + 1, total)


def _write_motion(
    bag: BagWriter, chosen: Scenario, seconds: float, imu: bool, odometry: bool
) -> None:
    """What the car's other sensors say of its motion."""
    if not (imu or odometry):
        return
    pose = Drive(chosen, seconds).T_world_base
    if imu:
        vector = bag.type("geometry_msgs/msg/Vector3")
        still = bag.type("geometry_msgs/msg/Quaternion")(0.0, 0.0, 0.0, 1.0)
        unknown = np.zeros(9)
        unknown[0] = -1.0  # "no orientation", as sensor_msgs/Imu has it
        turning, force = (
            np.eye(3).ravel() * sigma**2 for sigma in (GYRO_NOISE, ACCELERATION_NOISE)
        )
        for sample in inertial(pose, seconds, chosen.seed):
            stamp = START_NS + round(sample.t * 1e9)
            message = bag.type(_IMU)(
                bag.header(stamp, "base_link"),
                still,
                unknown,
                vector(*map(float, sample.gyro)),
                turning,
                vector(*map(float, sample.acceleration)),
                force,
            )
            bag.write("/imu", _IMU, message, stamp)
    if odometry:
        for wheel in wheels(pose, seconds, chosen.seed):
            stamp = START_NS + round(wheel.t * 1e9)
            bag.write_odometry("/odom", stamp, wheel.T_odom_base, twist=wheel.velocity)


def depth_png(depth: NDArray[np.float32]) -> bytes:
    """16 bit PNG of metres x 256; 0 where there is none or it is beyond 255 m."""
    return encode_depth(np.where(depth <= 255.0, depth, np.float32(np.nan)))


def _encode(suffix: str, image: NDArray, options: list[int]) -> bytes:
    ok, data = cv2.imencode(suffix, image, options)
    if not ok:
        raise OutputError(
            f"an image of {image.shape[1]}x{image.shape[0]} could not be encoded as {suffix}"
        )
    return data.tobytes()


def encode(frame: SimFrame, quality: int, ground_truth_every: int) -> Encoded:
    """A frame's pixels as JPEG and PNG."""
    images = tuple(
        _encode(
            ".jpg",
            cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, quality],
        )
        for picture in frame.pictures
    )
    depths = masks = None
    if frame.index % ground_truth_every == 0:
        depths = tuple(depth_png(picture.depth) for picture in frame.pictures)
        masks = tuple(
            _encode(".png", picture.moving.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            for picture in frame.pictures
        )
    return Encoded(replace(frame, pictures=()), images, depths, masks)


_simulator: Simulator | None = None  # one per worker process, made by _start


def _start(arguments: tuple[Any, ...]) -> None:
    global _simulator
    cv2.setNumThreads(1)
    _simulator = Simulator(*arguments)


def _work(index: int, quality: int, every: int) -> Encoded:
    assert _simulator is not None
    return encode(_simulator.frame(index), quality, every)


def _frames(
    arguments: tuple[Any, ...], quality: int, every: int, workers: int
) -> Iterator[Encoded]:
    """Every frame, in order. arguments: of Simulator."""
    _, seconds, rate, *_ = arguments
    count = round(seconds * rate)
    if workers <= 1 or count < 4 or not _can_spawn():
        simulator = Simulator(*arguments)
        for index in range(count):
            yield encode(simulator.frame(index), quality, every)
        return
    context = multiprocessing.get_context(
        "spawn"
    )  # fork would copy the locks of whatever threads the caller runs
    with ProcessPoolExecutor(workers, context, _start, (arguments,)) as pool:
        waiting: deque[Future[Encoded]] = deque()
        try:
            for index in range(count):
                waiting.append(pool.submit(_work, index, quality, every))
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OutputError(
                f"a process that renders the drive died (out of memory?): {error}"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _can_spawn() -> bool:
    """A spawned process imports the main module again, which a script read from standard input does
    not allow."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (file is not None and Path(file).exists())


def _write(bag: BagWriter, rig: Rig, encoded: Encoded) -> None:
    frame = encoded.frame
    bag.write_odometry(
        "/ground_truth/odom",
        frame.stamp_ns,
        frame.T_world_base,
        "world",
        "base_link",
        frame.velocity,
    )
    _write_objects(bag, frame)
    for number, camera in enumerate(rig.cameras):
        stamp = frame.stamps_ns[number]
        bag.write_camera_info(f"/camera/{camera.name}/camera_info", stamp, camera.name, camera)
        image = encoded.images[number]
        _write_compressed(
            bag,
            f"/camera/{camera.name}/image_raw/compressed",
            stamp,
            camera.name,
            "rgb8; jpeg compressed bgr8",
            image,
        )
        if encoded.depths is not None and encoded.masks is not None:
            _write_compressed(
                bag,
                f"/ground_truth/{camera.name}/depth",
                stamp,
                camera.name,
                "16UC1; png",
                encoded.depths[number],
            )
            _write_compressed(
                bag,
                f"/ground_truth/{camera.name}/dynamic_mask",
                stamp,
                camera.name,
                "mono8; png",
                encoded.masks[number],
            )


def _write_compressed(
    bag: BagWriter, topic: str, stamp_ns: int, frame_id: str, kind: str, data: bytes
) -> None:
    message = bag.type(_COMPRESSED)(
        bag.header(stamp_ns, frame_id), kind, np.frombuffer(data, np.uint8)
    )
    bag.write(topic, _COMPRESSED, message, stamp_ns)


def _write_objects(bag: BagWriter, frame: SimFrame) -> None:
    moving = [_object(bag, thing) for thing in frame.objects if thing.moving]
    name = "recon4d_msgs/msg/DynamicObjectArray"
    bag.write(
        "/ground_truth/objects",
        name,
        bag.type(name)(bag.header(frame.stamp_ns, "world"), moving),
        frame.stamp_ns,
    )


def _object(bag: BagWriter, thing: SimObject) -> Any:
    """A mover as the message: exact, so covariances are zero and confidence is 1."""
    make = bag.type
    vector, zeros = make("geometry_msgs/msg/Vector3"), np.zeros(36)
    pose = make("geometry_msgs/msg/Pose")(
        make("geometry_msgs/msg/Point")(*map(float, thing.T_world_object[:3, 3])),
        make("geometry_msgs/msg/Quaternion")(*map(float, quaternion(thing.T_world_object))),
    )
    twist = make("geometry_msgs/msg/Twist")(
        vector(*map(float, thing.velocity)), vector(0.0, 0.0, thing.yaw_rate)
    )
    return make("recon4d_msgs/msg/DynamicObject")(
        thing.id,
        make("geometry_msgs/msg/PoseWithCovariance")(pose, zeros),
        vector(*map(float, thing.size)),
        make("geometry_msgs/msg/TwistWithCovariance")(twist, zeros),
        1.0,
        0,
        0,
        thing.kind,
        1.0,
    )
