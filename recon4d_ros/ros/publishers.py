"""What the node says, and how: one table of outputs, and the class that publishes a Reconstruction.

Messages are built only where somebody listens. Clouds leave as structured arrays whose memory goes
into the message as it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from recon4d_msgs.msg import DynamicObjectArray, MapUpdate, Status
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from recon4d_ros.cameras.calibration import upright
from recon4d_ros.errors import MessageError, ParameterError
from recon4d_ros.geometry import inverse, se3, unproject
from recon4d_ros.parallel import each
from recon4d_ros.ros import conversions
from recon4d_ros.ros.entities import making
from recon4d_ros.ros.message_types import message_class
from recon4d_ros.types import Calibration, Occupancy, Reconstruction, Rig

PATH_PERIOD_NS = 1_000_000_000  # ~/path is whole each time, so once a second is enough


@dataclass(frozen=True)
class Output:
    """One published topic. topic: with `<camera>` where there is one each. latched: transient
    local, for who comes late."""

    topic: str
    type: type
    description: str
    depth: int = 10
    latched: bool = False

    def qos(self) -> QoSProfile:
        """Reliable, because a reliable reader (RViz's default) hears only a reliable writer."""
        return QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.depth,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL
            if self.latched
            else DurabilityPolicy.VOLATILE,
        )


OUTPUTS = (
    Output(
        "~/points",
        PointCloud2,
        "this frame in the base frame: x y z rgb confidence; every points_stride-th pixel",
    ),
    Output(
        "~/map",
        PointCloud2,
        "static world in the map frame: x y z rgb weight; latched, throttled",
        depth=1,
        latched=True,
    ),
    Output(
        "~/map_updates",
        MapUpdate,
        "voxels added or changed, and voxels removed, since the last",
        depth=50,
    ),
    Output(
        "~/dynamic_points",
        PointCloud2,
        "what moves in this frame, in the base frame: x y z rgb confidence",
    ),
    Output(
        "~/objects",
        DynamicObjectArray,
        "tracked objects in the map frame: track id, box, velocity, covariances, class; dynamic"
        " objects, and with object_engine what it detects",
    ),
    Output("~/objects_markers", MarkerArray, "the objects' boxes, velocities and labels"),
    Output(
        "~/occupancy",
        PointCloud2,
        "with occupancy_engine: centres of occupied voxels in the base frame: x y z rgb score",
        depth=2,
    ),
    Output(
        "~/occupancy_grid",
        OccupancyGrid,
        "the static world around the car for planners, in the map frame: -1 unknown, 0 free, 100"
        " occupied; latched, throttled",
        depth=1,
        latched=True,
    ),
    Output(
        "~/local_grid",
        OccupancyGrid,
        "the same close around the car with dynamic objects in it, in the map frame",
        depth=2,
    ),
    Output(
        "~/distance",
        Image,
        "32FC1 metres from each cell of ~/local_grid to the nearest occupied one, inf = none;"
        " pixel (row, column) is cell (row, column)",
        depth=2,
    ),
    Output(
        "~/odometry",
        Odometry,
        "odom -> base (map -> base with publish_tf map_odom); covariance is huge while lost",
        depth=50,
    ),
    Output("~/path", Path, "poses in the map frame, once a second"),
    Output("~/status", Status, "the node's state, once per frame set", depth=50),
    Output(
        "~/<camera>/depth",
        Image,
        "32FC1 metres, NaN = none, rectified, at working size, stamped as the source image",
    ),
    Output("~/<camera>/camera_info", CameraInfo, "pinhole intrinsics of depth, mask and image"),
    Output("~/<camera>/dynamic_mask", Image, "mono8, 255 = moving, same geometry as the depth"),
    Output("~/<camera>/image", Image, "rgb8, the working image, same geometry as the depth"),
)


DETECTIONS = "~/detections"
TRACKED = "~/tracked_objects"
STANDARD = (
    (DETECTIONS, "vision_msgs/msg/Detection3DArray", "~/objects for others' tools"),
    (TRACKED, "autoware_perception_msgs/msg/TrackedObjects", "~/objects for Autoware"),
    (
        "~/occupancy_grid_updates",
        "map_msgs/msg/OccupancyGridUpdate",
        "what changed of ~/occupancy_grid since the last",
    ),
)
"""Topic, type and description of outputs whose message packages need not be installed."""


def standard_outputs() -> list[Output]:
    """Those of STANDARD whose packages are installed here."""
    found = []
    for topic, name, description in STANDARD:
        try:
            found.append(Output(topic, message_class(name), description))
        except MessageError:
            continue
    return found


def standard_in_words() -> str:
    """One line for the log: which of STANDARD are published here, and which are not."""
    here = {output.topic for output in standard_outputs()}
    said = [f"{topic} as {kind}" for topic, kind, _ in STANDARD if topic in here]
    lacking = [kind.split("/")[0] for topic, kind, _ in STANDARD if topic not in here]
    return (
        "in standard messages: "
        + (", ".join(said) or "none")
        + (f" (not installed here: {', '.join(lacking)})" if lacking else "")
    )


@dataclass(frozen=True)
class Frames:
    """Names of the coordinate frames; camera -> frame_id as its images say it. pose: the parent
    frame of ~/odometry."""

    map: str
    odom: str
    base: str
    pose: str

    @property
    def apart(self) -> str:
        """Of what is said while the car is not found in the map that is loaded: odom, where we are
        the odometry; else one of our own below it, for odom is another's."""
        return self.odom if self.pose == self.odom else f"{self.map}_apart"


class Publishers:
    """The node's lifecycle publishers. `show` publishes one Reconstruction; `show_map` the whole
    map."""

    def __init__(
        self,
        node: LifecycleNode,
        cameras: tuple[str, ...],
        frames: Frames,
        camera_frame: Callable[[str], str],
        *,
        path_length: int,
        path_spacing: float,
        points_stride: int = 1,
    ) -> None:
        self._node, self._cameras, self._frames, self._camera_frame = (
            node,
            cameras,
            frames,
            camera_frame,
        )
        self._fixed = frames.map  # odom, while it is not known where that is in map
        self._path: deque[NDArray[np.float64]] = deque(maxlen=path_length)
        self._path_stamps: deque[int] = deque(maxlen=path_length)
        self._path_spacing = path_spacing
        self._path_sent = 0
        self._segment = 0  # of odometry, that the path is of
        self._last_stamp: int | None = None
        self._calibration: Calibration | None = None
        self._upright: dict[str, NDArray[np.float64]] = {}  # of rolled cameras: T_frame_upright
        self._upright_frames: dict[str, TransformStamped] = {}
        self._static: Publisher | None = None
        self._stride = points_stride
        self._images_kept: dict[
            str, Image
        ] = {}  # by topic: messages are filled again, which costs less than making them anew
        self._infos_kept: dict[str, CameraInfo] = {}
        self._clouds_kept: dict[str, PointCloud2] = {}
        self._rays: dict[int, NDArray[np.float32]] | None = (
            None  # by stride: [N, 3, pixels] at unit depth
        )
        self._rows: dict[
            int, NDArray[np.float32]
        ] = {}  # by stride: [N, pixels, 5], room for a cloud's rows
        self.publishers: dict[str, LifecyclePublisher] = {}
        try:
            for output in (*OUTPUTS, *standard_outputs()):
                for name in cameras if "<camera>" in output.topic else ("",):
                    self._open(output, output.topic.replace("<camera>", name))
        except ParameterError:
            self.close()
            raise

    def _open(self, output: Output, topic: str) -> None:
        with making(f"{topic} cannot be published"):
            self.publishers[topic] = self._node.create_lifecycle_publisher(
                output.type,
                topic,
                output.qos(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def close(self) -> None:
        for publisher in self.publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self.publishers.clear()
        if self._static is not None:
            self._node.destroy_publisher(self._static)
            self._static = None

    def last_words(self, seconds: float) -> None:
        """Wait until readers that asked for it have all that was sent; for all of them together not
        longer than this."""
        end = time.monotonic() + seconds
        for topic, publisher in self.publishers.items():
            if self.wanted(topic):
                publisher.wait_for_all_acked(Duration(seconds=max(end - time.monotonic(), 0.0)))

    def calibrate(self, calibration: Calibration, rig: Rig) -> None:
        """Fix the geometry of the working images; before the first `show`."""
        self._calibration = calibration
        self._upright = {
            camera.name: se3(turn, np.zeros(3))
            for camera in rig.cameras
            if (turn := upright(camera)) is not None
        }
        one = np.ones(calibration.working_size, np.float32)
        rays = np.stack([np.moveaxis(unproject(one, k), -1, 0) for k in calibration.k])
        self._rays = {
            stride: np.ascontiguousarray(rays[..., ::stride, ::stride]).reshape(len(rays), 3, -1)
            for stride in {1, self._stride}
        }
        self._rows = {
            stride: np.empty((len(rays), all_rays.shape[2], 5), np.float32)
            for stride, all_rays in self._rays.items()
        }
        for k, name in zip(calibration.k, self._cameras, strict=True):
            self._infos_kept[f"~/{name}/camera_info"] = conversions.camera_info_msg(
                k, calibration.working_size, 0, ""
            )
            self._images_kept[f"~/{name}/depth"] = conversions.image_msg(one, "32FC1", 0, "")
            self._images_kept[f"~/{name}/dynamic_mask"] = conversions.image_msg(
                one.astype(np.uint8), "mono8", 0, ""
            )
            self._images_kept[f"~/{name}/image"] = conversions.image_msg(
                np.zeros((*one.shape, 3), np.uint8), "rgb8", 0, ""
            )
        for topic in ("~/points", "~/dynamic_points"):
            self._clouds_kept[topic] = conversions.rows_msg(
                np.empty((0, 5), np.float32), 0, "", "confidence"
            )

    @property
    def map_frame(self) -> str:
        """The frame of what is said in map, in the last `show`: Frames.apart while the car is not
        found in the map that is loaded."""
        return self._fixed

    def reset(self) -> None:
        """A new drive begins: the path starts anew."""
        self._segment = 0
        self._path.clear()
        self._path_stamps.clear()
        self._path_sent = 0
        self._last_stamp = None

    def wanted(self, topic: str) -> bool:
        return topic in self.publishers and self.publishers[topic].get_subscription_count() > 0

    def show(self, result: Reconstruction, T_parent_base: NDArray[np.float64]) -> None:
        """Publish what is listened to. T_parent_base: the car's pose in Frames.pose."""
        self._fixed = self._frames.map if result.in_map else self._frames.apart
        parent = self._fixed if self._frames.pose == self._frames.map else self._frames.pose
        stamp = result.frame_set.stamp_ns
        self._images(result)
        self._clouds(result, stamp)
        self._objects(result, stamp)
        if self.wanted("~/map_updates"):
            self.send(
                "~/map_updates",
                conversions.map_update_msg(result.map_delta, stamp, self._fixed),
            )
        dt = 0.1 if self._last_stamp is None else (stamp - self._last_stamp) * 1e-9
        self._last_stamp = stamp
        self.send(
            "~/odometry",
            conversions.odometry_msg(
                result.pose, T_parent_base, dt, stamp, parent, self._frames.base
            ),
        )
        self._trail(result, stamp)

    def show_map(
        self,
        points: NDArray[np.float32],
        rgb: NDArray[np.uint8],
        weight: NDArray[np.float32],
        stamp_ns: int,
    ) -> None:
        """Publish the whole static map; always, because it is latched for who comes late."""
        self.send("~/map", conversions.cloud_msg(points, rgb, stamp_ns, self._fixed, weight=weight))

    def show_occupancy(self, occupancy: Occupancy) -> None:
        if self.wanted("~/occupancy"):
            self.send("~/occupancy", conversions.occupancy_msg(occupancy, self._frames.base))

    def show_status(self, message: Status) -> None:
        self.send("~/status", message)

    def send(self, topic: str, message: object) -> None:
        """Publish a message, heard or not."""
        self.publishers[topic].publish(message)

    def _images(self, result: Reconstruction) -> None:
        for i, name in enumerate(self._cameras):
            if not result.frame.present[i]:
                continue
            stamp, frame = int(result.frame.stamps_ns[i]), self._frame_of(name)
            depth, mask, info, color = (
                f"~/{name}/{what}" for what in ("depth", "dynamic_mask", "camera_info", "image")
            )
            if self.wanted(depth):
                conversions.repaint(
                    self._images_kept[depth], result.geometry.depth[i], stamp, frame
                )
                self.send(depth, self._images_kept[depth])
            if self.wanted(mask):
                conversions.repaint(
                    self._images_kept[mask],
                    result.motion.mask[i].view(np.uint8) * np.uint8(255),
                    stamp,
                    frame,
                )
                self.send(mask, self._images_kept[mask])
            if self.wanted(color):
                conversions.repaint(
                    self._images_kept[color], result.geometry.color[i], stamp, frame
                )
                self.send(color, self._images_kept[color])
            if self.wanted(info):
                conversions.restamp(self._infos_kept[info], stamp, frame)
                self.send(info, self._infos_kept[info])

    def _frame_of(self, name: str) -> str:
        """The frame of a camera's working image: its own, or, where it is mounted rolled, one
        beside it that is upright, which goes to /tf_static."""
        frame = self._camera_frame(name)
        if name not in self._upright:
            return frame
        child = f"{frame}_upright"
        if child not in self._upright_frames:
            self._upright_frames[child] = conversions.transform_msg(
                self._upright[name], self._node.get_clock().now().nanoseconds, frame, child
            )
            if self._static is None:
                latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
                self._static = self._node.create_publisher(TFMessage, "/tf_static", latched)
            self._static.publish(TFMessage(transforms=list(self._upright_frames.values())))
        return child

    def _clouds(self, result: Reconstruction, stamp: int) -> None:
        for topic, stride, only in (
            ("~/points", self._stride, None),
            ("~/dynamic_points", 1, result.motion.mask),
        ):
            if self.wanted(topic):
                conversions.refill(
                    self._clouds_kept[topic],
                    self._cloud_rows(result, stride, only),
                    stamp,
                    self._frames.base,
                )
                self.send(topic, self._clouds_kept[topic])

    def _cloud_rows(
        self, result: Reconstruction, stride: int, only: NDArray[np.bool_] | None
    ) -> list[NDArray[np.float32]]:
        """Camera by camera [K, 5]: x y z rgb confidence of every `stride`-th pixel that has a depth
        (and is in `only` [N, h, w]), in base_link at the set's stamp; good until the next call.

        Each camera's points come from where it was at its own stamp; the cameras write their rows
        side by side.
        """
        assert self._rays is not None
        geometry = result.geometry
        T_base_camera = (inverse(result.pose.T_map_base) @ result.pose.T_map_camera).astype(
            np.float32
        )
        grid = (slice(None, None, stride), slice(None, None, stride))
        all_rays, room = self._rays[stride], self._rows[stride]

        def rows(i: int) -> NDArray[np.float32]:
            depth = geometry.depth[i][grid]
            index = np.flatnonzero(
                np.isfinite(depth) if only is None else only[i][grid] & np.isfinite(depth)
            )
            out = room[i, : len(index)]
            points = T_base_camera[i, :3, :3] @ all_rays[i].take(index, 1)
            points *= depth.reshape(-1).take(index)
            points += T_base_camera[i, :3, 3:]
            out[:, :3] = points.T
            out[:, 3] = conversions.packed_image(geometry.color[i])[grid].reshape(-1).take(index)
            out[:, 4] = geometry.confidence[i][grid].reshape(-1).take(index)
            return out

        return each(
            rows,
            [
                i
                for i in np.flatnonzero(result.frame.present).tolist()
                if only is None or only[i].any()
            ],
        )

    def _objects(self, result: Reconstruction, stamp: int) -> None:
        if self.wanted("~/objects"):
            self.send(
                "~/objects", conversions.objects_msg(result.motion.objects, stamp, self._fixed)
            )
        if self.wanted(DETECTIONS):
            self.send(
                DETECTIONS,
                conversions.detections_msg(result.motion.objects, stamp, self._fixed),
            )
        if self.wanted(TRACKED):
            self.send(
                TRACKED,
                conversions.tracked_objects_msg(result.motion.objects, stamp, self._fixed),
            )
        if self.wanted("~/objects_markers"):
            self.send(
                "~/objects_markers",
                conversions.markers_msg(result.motion.objects, stamp, self._fixed),
            )

    def _trail(self, result: Reconstruction, stamp: int) -> None:
        pose = result.pose.T_map_base
        if result.pose.segment != self._segment:  # where that lies from here is not known
            self._segment = result.pose.segment
            self._path.clear()
            self._path_stamps.clear()
        if result.map_motion is not None and self._path:
            old = np.stack(self._path)
            self._path.clear()
            self._path.extend(result.map_motion.at(old[:, :3, 3]) @ old)
        if (
            not self._path
            or np.linalg.norm(pose[:3, 3] - self._path[-1][:3, 3]) >= self._path_spacing
        ):
            self._path.append(pose)
            self._path_stamps.append(stamp)
        if self.wanted("~/path") and not 0 <= stamp - self._path_sent < PATH_PERIOD_NS:
            self._path_sent = stamp
            poses = [
                conversions.pose_stamped_msg(pose, ns, self._fixed)
                for pose, ns in zip(self._path, self._path_stamps, strict=True)
            ]
            self.send("~/path", Path(header=conversions.header(stamp, self._fixed), poses=poses))


def topic_table() -> list[tuple[str, str, str]]:
    """(topic, type, description) of every output, for the README and its test."""
    return [
        (
            output.topic,
            f"{output.type.__module__.split('.')[0]}/{output.type.__name__}",
            output.description,
        )
        for output in OUTPUTS
    ]
