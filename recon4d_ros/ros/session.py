"""From configure to cleanup: everything that runs. Messages in, Reconstructor in its own thread,
messages out.

executor's thread: inputs -> Synchronizer -> slot of one | worker's thread: Reconstructor.step ->
publishers, /tf
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tf2_ros
from rclpy.clock import Clock
from rclpy.lifecycle import LifecycleNode
from recon4d_msgs.msg import Status
from sensor_msgs.msg import CameraInfo

from recon4d_ros.bags.topics import split
from recon4d_ros.cameras import rig_check
from recon4d_ros.dynamics.one_list import OLD, OneList
from recon4d_ros.engine import check_rig, load_spec
from recon4d_ros.engine.choose import choose_engine
from recon4d_ros.errors import MapError, MessageError, ParameterError, Recon4dError
from recon4d_ros.geometry import inverse
from recon4d_ros.localization import Background, open_map
from recon4d_ros.messages import is_rectified
from recon4d_ros.paths import user_path
from recon4d_ros.perception import ImageDetector, Look, Objects, OccupiedSpace, all_objects
from recon4d_ros.reconstructor import Parameters, Reconstructor
from recon4d_ros.ros.diagnostics import EngineInfo, Health
from recon4d_ros.ros.discovery import camera_of, listed, published
from recon4d_ros.ros.engine_start import EngineStart
from recon4d_ros.ros.grid_output import GridOutput
from recon4d_ros.ros.inputs import (
    CalibrationInput,
    CameraInput,
    CameraSource,
    DetectionInput,
    MotionInput,
    OdometryInput,
)
from recon4d_ros.ros.parameters import NodeParameters
from recon4d_ros.ros.pose_tree import PoseTree
from recon4d_ros.ros.publishers import Frames, Publishers, standard_in_words
from recon4d_ros.ros.rig_source import RigSource
from recon4d_ros.ros.side_engine import SideEngine, side_threads
from recon4d_ros.ros.transform_input import CONFIGURED_AGAIN, LiveTransforms, TransformInput
from recon4d_ros.ros.viewer_output import ViewerOutput
from recon4d_ros.ros.worker import Worker
from recon4d_ros.runs.statistics import map_losses
from recon4d_ros.sync import Synchronizer, SyncStatistics
from recon4d_ros.sync.clocks import ODOMETRY
from recon4d_ros.sync.odometry import LEAPT, NOT_FINITE
from recon4d_ros.types import (
    Calibration,
    Detections,
    FrameSet,
    ImageBoxes,
    ImuSample,
    Jump,
    Occupancy,
    OdometrySample,
    RawImage,
    Reconstruction,
    Rig,
    TwistSample,
)

CALL_TIMEOUT = 30.0  # seconds a service waits for the worker: a step, then the call itself
STALL = 1.0  # seconds without a look at the images: the process was stopped
LAST_WORDS = 2.0  # seconds for all reliable readers together to get what was sent last
GPU_PERIOD = 1.0  # seconds between two looks at the GPU's memory
HEARTBEAT_NS = 900_000_000
NO_CLOCK = 1.0  # seconds until a /clock that is silent from the start is said to be
NO_INFO = 1.0  # seconds without a camera_info until a driver is taken for one that sends it only
# while somebody reads its images
LOOK_ANEW = 1.0  # seconds between looks at what the publishers offer
UNUSABLE = (NOT_FINITE, LEAPT)  # reasons to drop odometry that the log has too
ELSEWHERE = 3.0  # seconds until topics are looked for elsewhere than where they are expected
NEVER_CAME = "never came (gaps in its time stamps)"
CALIBRATION = "calibration"  # source of messages that are not used; a camera's are images alone
FORGOTTEN = "waited when everything began anew"
NOT_LOADED = "came before the engine was loaded"
STUCK = "its step did not end (parameter watchdog)"
RESET_ONCE_NS = 1_000_000_000  # one loop of a bag shows twice: in the images' stamps and in /clock


@dataclass(frozen=True)
class Setup:
    """What configure read: own and the algorithm's parameters, the rig if a file gave it, each
    camera's topics."""

    own: NodeParameters
    algorithm: Parameters
    cameras: tuple[str, ...]
    topics: Mapping[str, CameraSource]
    rig: Rig | None


class Session:
    """Raises Recon4dError if parameters, rig file and engine do not fit; whatever fails, what was
    opened before it is closed."""

    def __init__(self, node: LifecycleNode, setup: Setup) -> None:
        own = setup.own
        self._node, self._setup = node, setup
        self._log = node.get_logger()
        self._synchronizer = Synchronizer(
            setup.cameras, setup.algorithm.sync
        )  # first: it may refuse, and nothing is open yet
        self.health = Health(setup.cameras)
        self.paused = False
        self.active = False
        self._now = WaitingClock(node.get_clock())
        self._sync_lock = threading.RLock()  # services have a thread of their own
        self._here = time.monotonic()  # when this thread last looked
        self._activated = 0.0  # monotonic time
        self._looked = 0.0  # monotonic time of the last look at the publishers
        self._clock_said = False
        self._camera_frames: dict[str, str] = {}
        self._frames = Frames(
            own.map_frame,
            own.odom_frame,
            own.base_frame,
            own.map_frame if own.publish_tf == "map_odom" else own.odom_frame,
        )
        self._motion_inputs: list[OdometryInput | MotionInput | DetectionInput] = []
        self._sync_counted: dict[tuple[str, str], int] = {}
        self._findings_said = 0
        self._notes_said = self._map_notes_said = 0
        self._reconstructor: Reconstructor | None = None
        # the map to be found in, with each engine anew, and its mode (empty: the parameter's)
        self._map = (user_path(own.map), "") if own.map else None
        self._start = EngineStart(own, self._log)
        self._loading: Future | None = None
        self._beside: dict[str, SideEngine] = {}
        self._list = OneList()
        self._world: tuple[int, int] | None = None  # Look.world of the last frame set
        self._detections_counted: Counter[str] = Counter()
        self._era = 0  # how often everything began anew
        self._reset_ns = 0
        self._map_ns: int | None = None  # monotonic time of the last ~/map
        self._map_dirty = self._grid_dirty = False
        self._gpu_measured = 0.0  # monotonic time
        self._status_ns = 0  # monotonic time of the last ~/status
        self._stamp_ns = 0
        self._last_ns: int | None = (
            None  # stamp of the last frame set of this drive, in the worker's thread
        )
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()

    def _open(self, opened: ExitStack) -> None:
        """All that has to be closed again, in that order backward."""
        node, setup, own = self._node, self._setup, self._setup.own
        self._buffer = (
            tf2_ros.Buffer()
        )  # without the node: its time-outs are wall clock, /clock may stand still
        self._fixed = LiveTransforms(self._on_transform_note)
        self._transforms = TransformInput(node, self._buffer, self._fixed)
        opened.callback(self._transforms.close)
        self._source = RigSource(
            setup.cameras,
            self._fixed,
            own.base_frame,
            setup.rig,
            rectified=[
                name
                for name, topics in setup.topics.items()
                if is_rectified(node.resolve_topic_name(topics.image))
            ],
            height=own.camera_height or None,
            tell=self._tell,
        )
        self._publishers = Publishers(
            node,
            setup.cameras,
            self._frames,
            lambda name: self._camera_frames.get(name, name),
            path_length=own.path_length,
            path_spacing=own.path_spacing,
            points_stride=own.points_stride,
        )
        opened.callback(self._publishers.close)
        self._log.info(standard_in_words())
        self._grids = GridOutput(self._publishers, own.map_frame)
        self._viewer = None
        if own.viewer:
            where = own.viewer, own.viewer_address, own.viewer_port
            self._viewer = ViewerOutput(*where, self._say)
            opened.callback(self._viewer.close)
        self._tree = PoseTree(node, own.publish_tf, self._frames, self._buffer)
        opened.callback(self._tree.close, node)
        self._calibrations = CalibrationInput(node, setup.topics, self._on_info)
        opened.callback(self._calibrations.close)
        self._cameras = [
            CameraInput(
                node,
                name,
                setup.topics[name],
                self._calibrations.subscribers[name],
                image=self._on_image,
                bad=self._bad,
                disagrees=partial(self._bad, CALIBRATION),
            )
            for name in setup.cameras
        ]
        opened.callback(self._disconnect)
        opened.callback(self._close_reconstructor)
        opened.callback(self._close_beside)
        self._worker = self._make_worker()
        opened.callback(lambda: self._worker.close())  # the one of then: it may be another
        opened.callback(self._start.stop)
        if setup.rig is not None:
            loading = self._worker.call(partial(self._load, setup.rig))
            while not loading.done() and not self._start.begun.wait(0.01):
                pass
            if loading.done():
                loading.result()
            else:  # it is built, which may take minutes, in which the node has to be heard
                self._loading = loading

    def _make_worker(self) -> Worker:
        return Worker(
            self._process,
            displaced=self._displaced,
            failed=self._step_failed,
            idle=self._publish_what_is_due,
        )

    def _disconnect(self) -> None:
        for camera in self._cameras:
            camera.disconnect()
        for source in self._motion_inputs:
            source.close()
        self._motion_inputs = []

    def _close_beside(self) -> None:
        self.health.beside = ()
        for engine in self._beside.values():
            engine.close()
        self._beside = {}

    def _close_reconstructor(self) -> None:
        if self._reconstructor is not None:
            self._reconstructor.close()

    # --- lifecycle, in the executor's thread

    def activate(self) -> None:
        """Raises Recon4dError as `tick`."""
        self._synchronize_anew()
        self._looked, self._activated = 0.0, time.monotonic()
        self._connect_motion()
        self.active = True
        self.tick()

    def _connect_motion(self) -> None:
        """Odometry, imu, twist and boxes in images, where topics of them are set."""
        own = self._setup.own
        where = self._node, own.base_frame, self._buffer
        if own.odom_topic:
            self._motion_inputs.append(
                OdometryInput(*where, own.odom_topic, sample=self._on_odometry, bad=self._bad)
            )
        if own.imu_topic:
            self._motion_inputs.append(
                MotionInput(*where, own.imu_topic, "imu", sample=self._on_imu, bad=self._bad)
            )
        if own.twist_topic:
            self._motion_inputs.append(
                MotionInput(*where, own.twist_topic, "twist", sample=self._on_twist, bad=self._bad)
            )

        for name, source in self._setup.topics.items():
            if source.detections:
                try:
                    self._motion_inputs.append(
                        DetectionInput(
                            self._node,
                            name,
                            source.detections,
                            boxes=self._on_boxes,
                            bad=self._bad,
                        )
                    )
                except MessageError as error:
                    self._tell(f"{name}.detections_topic is not read: {error}", lossy=True)

    def deactivate(self) -> None:
        """Ends the inputs, then says last what the map is."""
        self._disconnect()
        self._count_forgotten(self._worker.discard())
        if self._reconstructor is not None:
            try:
                self._call(self._publish_maps, "its map is said")
            except TimeoutError as error:
                self._log.warning(str(error))
        self._count_sync()
        self._publishers.last_words(LAST_WORDS)
        self.active = False

    def close(self) -> None:
        self.active = False
        self._opened.close()

    def tick(self) -> None:
        """Several times a second: count drops, find the rig, load the engine, subscribe to the
        images once they can be used, or once a camera_info is awaited that may only be sent while
        somebody reads the images.

        Raises Recon4dError if the rig turns out to be none, the engine does not fit it, or a topic
        cannot be subscribed to.
        """
        self._count_sync()
        if 0 < self._setup.own.watchdog < self._worker.busy:
            self._leave_stuck_engine()
        if self._loading is not None and self._loading.done():
            loading, self._loading = self._loading, None
            loading.result()
        if self._source.changed and self._loading is None:
            self._leave_rig()
        if self._reconstructor is None:
            if self._loading is None and (rig := self._source.rig()) is not None:
                self._fixed.watch(self._source.edges())
                self._loading = self._worker.call(partial(self._load, rig))
        if self._now.stands_still and not self._clock_said:
            self._clock_said = True
            self._log.warning(f"waiting for {self.waiting()[0]}")
        if look := time.monotonic() - self._looked > LOOK_ANEW:
            self._looked = time.monotonic()
            self._calibrations.look()
            if self._source.missing():
                self._transforms.look()
            if self._source.wants_partners():
                self._source.expect_partners(self._calibrations.others(self._source.partner))
            if self.active and time.monotonic() - self._activated > ELSEWHERE:
                if self._source.missing() or not all(one.connected for one in self._cameras):
                    self._look_for_topics()
        ask = time.monotonic() - self._activated > NO_INFO
        for camera in self._cameras if self.active else ():
            if self._reconstructor is None and not (ask and self._source.wants_images(camera.name)):
                camera.disconnect()
            elif (look or not camera.connected) and camera.connect():
                self._source.images_on(camera.name, camera.topic)

    def _look_for_topics(self) -> None:
        """Images and camera_info of cameras that have none where they are expected, if nobody said
        where: by the rules for bags."""
        topics = published(self._node)
        for camera in self._cameras:
            source, name = self._setup.topics[camera.name], camera.name
            found = camera_of(name, camera.topic, source.image_given, topics)
            if found is None:
                continue
            elsewhere = split(found.image) != split(camera.topic)
            if elsewhere and not source.image_given and not camera.connected:
                self._tell(f"camera {name}: its images are taken from {found.image}")
                camera.use(found.image)
                self._source.images_on(name, found.image)
            if source.info_given or not found.camera_info or not self._source.lacks_info(name):
                continue
            if not self._calibrations.is_published(name):
                self._tell(f"camera {name}: its camera_info is taken from {found.camera_info}")
                self._calibrations.move(name, found.camera_info)
                camera.pair_with(self._calibrations.subscribers[name])

    def _leave_rig(self) -> None:
        """The first images show that the rig is another one: the engine is loaded anew for it."""
        self._source.changed = False
        if (old := self._reconstructor) is not None:
            self._reconstructor = None
            self._worker.call(self._close_beside)  # made for that rig, too
            self._worker.call(old.close)
            self._log.info("the images show that their calibration is another: it is read anew")

    def _leave_stuck_engine(self) -> None:
        """A step that does not end cannot be stopped: its thread is left, and another engine is
        loaded in a new one."""
        if self._reconstructor is None:
            return
        self.health.restarts += 1
        self._log.error(
            f"the engine has not ended its step for {self._worker.busy:.0f} s (parameter watchdog):"
            " another one is started, and map, memory, tracks and pose begin anew"
        )
        old, self._reconstructor = self._reconstructor, None
        rig = old.rig
        if old.places is not None:
            old.places.unlock()  # for the next one
        self._count_forgotten(self._worker.discard())
        self._worker.abandon()
        self._worker = self._make_worker()
        self._synchronize_anew()
        self._loading = self._worker.call(partial(self._load, rig))
        self._worker.call(lambda: self._begin_anew(reset=True))

    def poll(self) -> None:
        """Every few milliseconds: frame sets that waited long enough for their last image."""
        if self.active and not self.paused:
            with self._sync_lock:
                self._notice_stall()
                self._hand_over(self._synchronizer.poll(self._now()))

    def tell_progress(self) -> None:
        """Once a second: into the log, of an engine that is built."""
        self._start.tell()

    def waiting(self) -> list[str]:
        """What is missing before frame sets can come."""
        if self._now.stands_still:
            return ["time: use_sim_time is set, and nothing has been published on /clock"]
        if self._loading is not None:
            return [self._start.progress or "the engine to load"]
        missing = self._source.missing()
        for name in self._setup.cameras if missing else ():
            if self._source.lacks_info(name) and not self._calibrations.is_published(name):
                topic, others = self._calibrations.topic(name), listed(published(self._node))
                missing[missing.index(f"camera_info of {name}")] += f" (on {topic}" + (
                    f"; published are {others})" if others != "none" else ")"
                )
        if not missing and self.active:
            missing = [camera.waits_for() for camera in self._cameras if not camera.connected]
        return missing

    @property
    def loaded(self) -> bool:
        """Whether rig and engine are there."""
        return self._reconstructor is not None

    # --- services, in a thread of their own (services.py)

    def pause(self, on: bool) -> None:
        """Stop or resume reading images. Those that came meanwhile are no gap."""
        if self.paused and not on:
            self._synchronize_anew()
        self.paused = on

    def reset(self, reason: str) -> None:
        """Forget the drive, the frame set that waits included; waits until it is done. Raises
        TimeoutError if the worker is stuck."""
        if (future := self._ask_reset(reason)) is not None:
            self._await(future, "everything starts anew")

    def clock_jumped_back(self) -> None:
        """The clock's own word of a bag loop, where the images' stamps have not said it already.
        In the executor's thread: does not wait."""
        if time.monotonic_ns() - self._reset_ns > RESET_ONCE_NS:
            self._ask_reset("the clock jumped back")

    def _ask_reset(self, reason: str) -> Future | None:
        self._count_forgotten(self._worker.discard())
        self._buffer.clear()
        self._synchronize_anew()
        self._log.info(f"reset: {reason}")
        if self._reconstructor is None:
            return None
        return self._worker.call(lambda: self._begin_anew(reset=True))

    def save_map(self, path: Path) -> int:
        """Write the map; returns its points. Raises OutputError, TimeoutError, or Recon4dError
        while there is no map."""
        if self._reconstructor is None:
            raise Recon4dError("there is no map yet: the node waits for its rig or its engine")
        return self._call(lambda: self._reconstructor.mapper.save(path), "the map is written")  # type: ignore[union-attr]

    def save_map_folder(self, path: Path) -> tuple[int, int, str]:
        """Write the map as a folder; as `Places.save`, and what `save_map` raises."""
        reconstructor = self._reconstructor
        if reconstructor is None or reconstructor.places is None:
            raise Recon4dError(
                "no keyframes are kept: set localization.mode to mapping to save a map as a folder,"
                " or give a path that ends with .ply or .pcd"
            )
        return self._call(lambda: reconstructor.save_map(path), "the map is written")

    def load_map(self, path: Path, mode: str) -> int:
        """The car is to be found in a map folder; returns its keyframes. Raises MapError,
        ParameterError, TimeoutError, or Recon4dError while there is no rig."""
        if mode not in ("", "mapping", "localization"):
            raise ParameterError(f"mode is {mode!r}: expected mapping, localization, or none")
        reconstructor = self._reconstructor
        if reconstructor is None:
            raise Recon4dError("no map can be loaded yet: the node waits for its rig or its engine")
        folder = open_map(path, reconstructor.rig)
        count = len(folder.frames)

        def use() -> None:
            if reconstructor is not self._reconstructor:
                folder.close()
                raise Recon4dError("the engine began anew meanwhile: load the map again")
            try:
                reconstructor.use_map(folder, mode)
            except Exception:
                folder.close()
                raise
            self._map = path, mode
            self._map_notes_said = min(self._map_notes_said, len(reconstructor.map_notes))
            self._era += 1
            self._publishers.reset()
            self._publish_map()

        future = self._worker.call(use)
        future.add_done_callback(lambda done: folder.close() if done.cancelled() else None)
        self._await(future, "the map is loaded")
        return count

    def status_msg(self) -> Status:
        return self.health.status_msg(self._stamp_ns, self._frames.base, paused=self.paused)

    def show_status(self) -> None:
        self._status_ns = time.monotonic_ns()
        self._publishers.show_status(self.status_msg())

    def heartbeat(self) -> None:
        """Once a second: ~/status also while no frame set comes."""
        if self.active and time.monotonic_ns() - self._status_ns > HEARTBEAT_NS:
            self.show_status()

    def _call(self, function: Callable, promise: str):
        """Raises TimeoutError with its sentence if the worker does not come to it in time; it will
        later."""
        return self._await(self._worker.call(function), promise)

    def _await(self, future: Future, promise: str):
        if not wait([future], CALL_TIMEOUT).done:
            raise TimeoutError(
                f"the worker is still busy after {CALL_TIMEOUT:g} s: {promise} when it is free"
            )
        try:
            return future.result()
        except CancelledError:
            raise Recon4dError("the node was cleaned up before it came to that") from None

    # --- inputs, in the executor's thread

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        sentence = self._source.offer(camera, message)
        if sentence:
            self._bad(CALIBRATION, sentence)

    def _on_image(
        self,
        camera: str,
        image: RawImage,
        frame_id: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.health.images[camera].tick()
        self._camera_frames[camera] = frame_id or camera
        if size and (sentence := self._source.image(camera, size, frame_id)):
            self._bad(CALIBRATION, f"{camera}: {sentence}")
        if not image.stamp_ns:  # no driver's time: the reception's stands in for it, as in a bag
            image = replace(image, stamp_ns=self._node.get_clock().now().nanoseconds)
            self.health.unstamped[camera] += 1
            if self.health.unstamped[camera] == 1:
                self._log.warning(
                    f"{camera}: images come without a time stamp: the time of reception is taken"
                    " (counted, said here once)"
                )
        if not self.paused:
            with self._sync_lock:
                self._notice_stall()
                self._hand_over(self._synchronizer.add_image(camera, image, self._now()))
                for finding in self._synchronizer.findings[self._findings_said :]:
                    self._tell(finding, lossy="is learned" not in finding)
                self._findings_said = len(self._synchronizer.findings)

    def _notice_stall(self) -> None:
        """This thread is here every few milliseconds, or the process was stopped."""
        before, self._here = self._here, time.monotonic()
        if self._here - before > STALL:
            self._synchronizer.stalled()
            self._log.warning(
                f"the node did not run for {self._here - before:.1f} s (it was stopped, or the"
                " machine was busy): images of that time are lost, and counted"
            )

    def _on_odometry(self, sample: OdometrySample) -> None:
        with self._sync_lock:
            self._synchronizer.add_odometry(sample, self._now())

    def _on_imu(self, sample: ImuSample) -> None:
        with self._sync_lock:
            self._synchronizer.add_imu(sample, self._now())

    def _on_twist(self, sample: TwistSample) -> None:
        with self._sync_lock:
            self._synchronizer.add_twist(sample, self._now())

    def _on_boxes(self, camera: str, boxes: ImageBoxes) -> None:
        if (reconstructor := self._reconstructor) is not None and not self.paused:
            with self._sync_lock:
                boxes = self._synchronizer.corrected(camera, boxes)
            reconstructor.offer_boxes(camera, boxes)

    def _tell(self, note: str, lossy: bool = False) -> None:
        """What had to be made of the inputs: once in the log, and on /diagnostics."""
        if self.health.note(note, lossy):
            self._log.warning(note)

    def _on_transform_note(self, note: str) -> None:
        if note.endswith(CONFIGURED_AGAIN):
            self._bad("tf", note)
        else:
            self._tell(note)

    def _bad(self, source: str, sentence: str) -> None:
        if self.health.drops.count(source, sentence):
            self._log.warning(f"{source}: {sentence} (counted on /diagnostics, said here once)")

    def _hand_over(self, frame_sets: list[FrameSet]) -> None:
        for frame_set in frame_sets:
            self._worker.put(frame_set)

    def _synchronize_anew(self) -> None:
        with self._sync_lock:
            self._here = time.monotonic()
            for frame_set in self._synchronizer.flush():
                self._count_forgotten(frame_set)
            self._count_sync()
            self._synchronizer = Synchronizer(self._setup.cameras, self._setup.algorithm.sync)
            self._sync_counted = {}
            self._findings_said = 0

    def _count_sync(self) -> None:
        """The synchronizer's own drops into the common count; whether frame sets come or not."""
        with self._sync_lock:
            for key, total in sync_drops(self._synchronizer.statistics).items():
                for _ in range(total - self._sync_counted.get(key, 0)):
                    if not self.health.drops.count(*key):
                        continue
                    if key[1] == NEVER_CAME:
                        self._say_remedy(key[0])
                    elif key[0] == ODOMETRY and key[1] in UNUSABLE:
                        self._log.warning(
                            f"odometry: samples are not used: {key[1]} (counted on /diagnostics,"
                            " said here once)"
                        )
                self._sync_counted[key] = total

    def _say_remedy(self, name: str) -> None:
        """What helps where images are lost between driver and node."""
        camera = next(camera for camera in self._cameras if camera.name == name)
        remedy = (
            "start the driver with FASTDDS_DEFAULT_PROFILES_FILE=<share>/recon4d_ros/config/"
            "fastdds.xml, for its shared memory is smaller than an image"
            if camera.reliable
            else "let the driver publish reliably, for with best effort a lost packet is a lost"
            " image"
        )
        self._log.warning(
            f"{name}: images are lost between driver and node (counted on /diagnostics, said here"
            f" once): {remedy}; docs/drivers.md has more"
        )

    def _displaced(self, frame_set: FrameSet) -> None:
        for camera in frame_set.images:
            self.health.drops.count(camera, "a newer frame set came before the engine was free")

    def _count_forgotten(self, frame_set: FrameSet | None, reason: str = FORGOTTEN) -> None:
        for camera in frame_set.images if frame_set is not None else ():
            self.health.drops.count(camera, reason)

    # --- the worker's thread

    def _load(self, rig: Rig) -> None:
        for note in rig_check.check_rig(rig):
            self._tell(note)
        folder = choose_engine(self._setup.own.engine, rig)
        spec = load_spec(folder, rig)
        want = self._start(folder, rig, lambda: check_rig(spec, rig, f"engine {folder}"))
        reconstructor = Reconstructor(
            rig, want.folder, self._setup.algorithm, want.runtime, Background()
        )
        if self._map is not None:
            path, mode = self._map
            try:
                reconstructor.use_map(open_map(path, rig), mode)
            except MapError as error:
                self._tell(f"{error}; what is seen goes into a new map", lossy=True)
        self._notes_said = self._map_notes_said = 0
        self._tell_notes(reconstructor)
        self._publishers.calibrate(reconstructor.calibration, rig)
        engine = reconstructor.engine
        self.health.engine = EngineInfo(
            folder.name,
            want.runtime or engine.spec.runtime,
            engine.device,
            "; ".join(filter(None, (engine.spec.warning, self._start.warning))),
        )
        self._log.info(
            f"engine {folder.name} ({self.health.engine.runtime} on {engine.device}) for"
            f" {len(rig.cameras)} camera(s)"
        )
        if engine.spec.warning:
            self._log.warning(f"engine {folder.name}: {engine.spec.warning}")
        self._detections_counted.clear()  # they are of the reconstructor
        self._reconstructor = reconstructor
        self._start_beside(rig, reconstructor.calibration)

    def _start_beside(self, rig: Rig, shared: Calibration) -> None:
        """The detector and the engines of objects and of occupancy, each loaded in its own
        thread."""
        own, threads = self._setup.own, side_threads()
        kinds: tuple[tuple[str, str, Callable[..., Any], Callable[..., None]], ...] = (
            ("detector", own.detector, ImageDetector, self._on_detected),
            ("object engine", own.object_engine, Objects, self._on_detections),
            ("occupancy engine", own.occupancy_engine, OccupiedSpace, self._on_occupancy),
        )
        for name, folder, kind, done in kinds:
            if folder and name not in self._beside:
                load = partial(kind, user_path(folder), rig, threads, shared)
                self._beside[name] = SideEngine(name, load, done, say=self._say)
        self.health.beside = tuple(self._beside.values())

    def _say(self, sentence: str, bad: bool) -> None:
        if bad:  # on lines of their own: rclpy holds a line to one severity
            self._log.warning(sentence)
        else:
            self._log.info(sentence)

    # in the threads of the engines beside

    def _on_detections(self, look: Look, detections: Detections) -> None:
        self._list.take(detections, look.world)
        reconstructor = self._reconstructor
        if reconstructor is not None and look.world == self._world:
            reconstructor.offer_objects(detections)

    def _on_detected(self, look: Look, detected: Mapping[str, ImageBoxes]) -> None:
        reconstructor = self._reconstructor
        if reconstructor is not None and look.world == self._world:
            for camera, boxes in detected.items():
                reconstructor.offer_boxes(camera, boxes)

    def _on_occupancy(self, look: Look, occupancy: Occupancy) -> None:
        if self.active and look.era == self._era:
            self._publishers.show_occupancy(occupancy)

    # in the worker's thread

    def _listed(self, result: Reconstruction, look: Look) -> Reconstruction:
        """With the tracks and what the object engine detects as one list."""
        before = self._list.too_old
        objects = all_objects(self._list, look, result)
        if self._list.too_old > before:
            self._bad(
                "object engine", f"its objects came more than {OLD * 1e-9:g} s after their images"
            )
        return replace(result, motion=replace(result.motion, objects=objects))

    def _tell_notes(self, reconstructor: Reconstructor) -> None:
        """What was made of the rig and of its images since the last look."""
        notes = reconstructor.notes
        for note in notes[self._notes_said :]:
            self._tell(note)
        self._notes_said = len(notes)
        for note in reconstructor.map_notes[self._map_notes_said :]:
            self._tell(note, lossy=True)
        self._map_notes_said = len(reconstructor.map_notes)

    def _process(self, frame_set: FrameSet) -> None:
        reconstructor = self._reconstructor
        if reconstructor is None or not self.active:
            self._count_forgotten(frame_set, FORGOTTEN if reconstructor else NOT_LOADED)
            return
        last, self._last_ns = self._last_ns, frame_set.stamp_ns
        if (
            last is not None and frame_set.stamp_ns < last
        ):  # also where the source began anew while the node was inactive
            frame_set = replace(frame_set, jump=Jump.BACKWARD)
        if frame_set.jump is Jump.BACKWARD:
            self._log.info("reset: the images' time jumped back")
            self._buffer.clear()
            self._begin_anew(reset=False)  # the step does it for the algorithm
        elif frame_set.jump is Jump.FORWARD and last is not None:
            self._log.warning(
                f"the images' time jumped forward: {(frame_set.stamp_ns - last) * 1e-9:.1f} s that"
                " the pose has to bridge"
            )
        forgotten = reconstructor.forgotten
        result = reconstructor.step(frame_set)
        if reconstructor is not self._reconstructor:  # it was given up as stuck meanwhile
            self._count_forgotten(frame_set, STUCK)
            return
        for name, count in reconstructor.forgotten.items():
            if count > forgotten[name]:
                self._bad(name, "its memory held what is not finite, and was forgotten")
        if (
            reconstructor.engine.device != self.health.engine.device
        ):  # a CUDA graph that could not be made shows with the first steps
            self.health.engine = replace(self.health.engine, device=reconstructor.engine.device)
            self._log.warning(f"engine: it runs on {reconstructor.engine.device}")
        for camera, sentence in result.dropped.items():
            self._bad(camera, sentence)
        self._tell_notes(reconstructor)
        look = Look.of(result, self._era)
        self._world = look.world
        self._count_detections(reconstructor)
        for engine in self._beside.values():
            engine.put(look)
        if self._setup.own.object_engine:
            result = self._listed(result, look)
        start, worked = time.perf_counter(), time.process_time()
        T_map_base, T_map_odom = result.pose.T_map_base, result.T_map_odom
        sentence = (
            self._tree.send(T_map_base, frame_set.stamp_ns, T_map_odom, result.in_map)
            if self.active
            else ""
        )
        if sentence:
            self._bad("tf", sentence)
        if self._frames.pose == self._frames.map:
            self._publishers.show(result, T_map_base)
        else:
            self._publishers.show(result, inverse(T_map_odom) @ T_map_base)
        self._grids.frame = self._publishers.map_frame
        self._grids.show(result.local_grid, reconstructor.grids.lasting)
        if self._viewer is not None:
            self._viewer.put(reconstructor.calibration, result)
        published = time.monotonic_ns()
        received = max(
            (image.received_ns for image in frame_set.images.values()), default=published
        )
        stages = {**result.latency, "publish": time.perf_counter() - start}
        cpu = {**result.cpu, "publish": time.process_time() - worked}
        self._map_dirty = self._grid_dirty = True
        self.health.map_losses = map_losses(reconstructor.mapper)
        self._measure_gpu(reconstructor)
        self._stamp_ns = frame_set.stamp_ns
        self.health.done(
            result, stages, cpu, (published - received) * 1e-9, reconstructor.mapper.size
        )
        self.show_status()
        self._publish_what_is_due()

    def _count_detections(self, reconstructor: Reconstructor) -> None:
        """Detections from elsewhere that were not used, into the common count."""
        for reason, total in dict(reconstructor.dynamics.candidates.dropped).items():
            for _ in range(total - self._detections_counted[reason]):
                self._bad("detections", reason)
            self._detections_counted[reason] = total

    def _measure_gpu(self, reconstructor: Reconstructor) -> None:
        """Once a second: it is a call to the driver."""
        now = time.monotonic()
        if now - self._gpu_measured > GPU_PERIOD:
            self._gpu_measured = now
            self.health.gpu_memory = reconstructor.engine.gpu_memory()

    def _step_failed(self, error: Exception) -> None:
        """A frame set that the algorithm could not take: said, counted, and the next one comes."""
        sentence = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        self.health.reason = sentence
        self._bad("frame set", sentence)

    def _begin_anew(self, *, reset: bool) -> None:
        assert self._reconstructor is not None
        self._era += 1
        if reset:
            self._reconstructor.reset()
            self._last_ns = None
            for engine in self._beside.values():
                engine.reset()
        self._reset_ns = time.monotonic_ns()
        self._publishers.reset()
        self.health.reset()
        if reset:
            self._publish_maps()

    def _publish_what_is_due(self) -> None:
        if self._reconstructor is None:
            return
        if self._map_dirty:
            period = self._node.get_parameter("map_publish_period").value
            if self._map_ns is None or time.monotonic_ns() - self._map_ns >= period * 1e9:
                self._publish_map()
        if self._grid_dirty and self._grids.due(
            self._node.get_parameter("grid_publish_period").value
        ):
            self._publish_grid()

    def _publish_maps(self) -> None:
        self._publish_map()
        self._publish_grid()

    def _publish_grid(self) -> None:
        assert self._reconstructor is not None
        if self._setup.algorithm.grids.enabled:
            self._grids.show_whole(self._reconstructor.grids.around(self._stamp_ns))
        self._grid_dirty = False

    def _publish_map(self) -> None:
        assert self._reconstructor is not None
        xyz, rgb, weight = self._reconstructor.mapper.points()
        self._publishers.show_map(
            np.asarray(xyz, np.float32), rgb, np.asarray(weight, np.float32), self._stamp_ns
        )
        if self._viewer is not None:
            self._viewer.put_map(xyz, rgb)
        self._map_ns, self._map_dirty = time.monotonic_ns(), False


class WaitingClock:
    """The time that the synchronizer's waits are counted in: the wall's, or with use_sim_time
    /clock's, made monotonic, in ns.

    So a bag that is played slowly, or stands still, is waited for as the car would have been.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._made = time.monotonic()
        self._last = self._offset = 0

    @property
    def stands_still(self) -> bool:
        """Whether /clock is awaited and nothing has come on it for NO_CLOCK seconds."""
        return (
            time.monotonic() - self._made > NO_CLOCK
            and bool(getattr(self._clock, "ros_time_is_active", False))
            and self._clock.now().nanoseconds == 0
        )

    def __call__(self) -> int:
        if not getattr(self._clock, "ros_time_is_active", False):
            return time.monotonic_ns()
        now = self._clock.now().nanoseconds
        self._offset += max(self._last - now, 0)  # a bag loops
        self._last = now
        return now + self._offset


def sync_drops(statistics: SyncStatistics) -> dict[tuple[str, str], int]:
    """Drops by (source, reason): each camera's, what never came included, and `odometry`, `imu`,
    `twist`."""
    return {
        **statistics.dropped,
        **{(camera, NEVER_CAME): count for camera, count in statistics.missing.items()},
        **{("odometry", reason): count for reason, count in statistics.odometry_dropped.items()},
        **{("imu", reason): count for reason, count in statistics.imu_dropped.items()},
        **{("twist", reason): count for reason, count in statistics.twist_dropped.items()},
    }
