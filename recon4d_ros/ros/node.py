"""`recon4d_node`: the managed lifecycle node. States, parameters and services; what runs between
configure and cleanup is a Session."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import wraps

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy._rclpy_pybind11 import RCLError
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from recon4d_msgs.srv import LoadMap, SaveMap
from std_srvs.srv import SetBool, Trigger

from recon4d_ros.cameras.rig import CameraTopics, chosen, load_rig_file
from recon4d_ros.errors import ParameterError, Recon4dError
from recon4d_ros.paths import user_path
from recon4d_ros.ros import parameters
from recon4d_ros.ros.bond import ManagerBond
from recon4d_ros.ros.diagnostics import Health
from recon4d_ros.ros.engine_start import EngineStart
from recon4d_ros.ros.entities import check_topic
from recon4d_ros.ros.inputs import CameraSource
from recon4d_ros.ros.node_parameters import NODE_NAME
from recon4d_ros.ros.process import EXIT_BAD_INPUT, lean_executor, ros_process, spin_until
from recon4d_ros.ros.services import ServiceThread
from recon4d_ros.ros.session import Session, Setup
from recon4d_ros.types import Rig

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)
TICK, POLL, REPORT = 0.1, 0.01, 1.0  # seconds; on the steady clock: /clock may stand still
END_TIMEOUT = 10.0  # seconds that an interrupted build has to end in
CLOCK_BACK = Duration(seconds=-0.5)  # of /clock: less is jitter


Transition = Callable[["Recon4dNode", LifecycleState], TransitionCallbackReturn]


def explained(transition: Transition) -> Transition:
    """A transition whose exceptions are said: rclpy takes one for ERROR and keeps it to itself."""

    @wraps(transition)
    def call(node: Recon4dNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node._explain(error)
            return ERROR

    return call


class Recon4dNode(LifecycleNode):
    """Online 4D reconstruction as a ROS 2 node. `failure` is the sentence why it could not
    configure, or "". `ran`: it has had its engine once, so that a failure now is not one of its
    start."""

    def __init__(self, **kwargs) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self._session: Session | None = None
        self._start: EngineStart | None = None  # of build_only
        self._state = "unconfigured"
        self.failure = ""
        self.ran = False
        self.finalized = False
        self._faults = {
            info.name: sentence
            for info in parameters.all_parameters()
            if (sentence := parameters.declare(self, info))
        }
        self.add_on_set_parameters_callback(
            lambda given: parameters.refuse_when_configured(self._session is not None, given)
        )
        self.add_post_set_parameters_callback(self._mended)
        self._bond = ManagerBond(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._service_thread = ServiceThread(self)
        self._service_thread.offer(Trigger, "~/reset", self._on_reset)
        self._service_thread.offer(SetBool, "~/pause", self._on_pause)
        self._service_thread.offer(SaveMap, "~/save_map", self._on_save_map)
        self._service_thread.offer(LoadMap, "~/load_map", self._on_load_map)
        self._refuse_transitions_that_are_none()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TICK, self._tick, clock=steady)
        self.create_timer(POLL, self._poll, clock=steady)
        self.create_timer(REPORT, self._report, clock=steady)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=CLOCK_BACK, on_clock_change=False),
            post_callback=self._on_clock_jump,
        )

    @property
    def autostart(self) -> bool:
        return bool(self.get_parameter("autostart").value)

    @property
    def build_only(self) -> bool:
        return bool(self.get_parameter("build_only").value)

    @property
    def failed_to_start(self) -> bool:
        return self.autostart and bool(self.failure) and not self.ran

    def build(self) -> Future:
        """Builds the engine, in a thread of its own: the node goes on saying how far it is. The
        future is done when it is over; `failure` then says why there is no engine, or nothing."""
        done: Future = Future()

        def run() -> None:
            try:
                self._raise_faults()
                own, _ = parameters.read_all(self)
                rig = chosen(load_rig_file(own.rig_file).rig, own.cameras) if own.rig_file else None
                self._start = EngineStart(own, self.get_logger())
                self._start.build_only(rig)
            except Exception as error:
                self._explain(error)
            done.set_result(None)

        threading.Thread(target=run, name="recon4d build", daemon=True).start()
        return done

    def start(self) -> None:
        """Configure and activate. On failure `failure` says why."""
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    # --- transitions

    def _refuse_transitions_that_are_none(self) -> None:
        """rclpy lets a transition that the state does not have (a manager that deactivates an
        unconfigured node, an unknown number) raise out of the executor, which ends the process
        without an answer."""
        service = self._service_change_state
        answer = service.callback

        def guarded(
            request: ChangeState.Request, response: ChangeState.Response
        ) -> ChangeState.Response:
            try:
                return answer(request, response)
            except RCLError:
                asked = request.transition
                self.get_logger().warning(
                    f"transition {asked.label or asked.id} refused: the node is {self._state}"
                )
                response.success = False
                return response

        service.callback = guarded

    @explained
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.failure = ""
        try:
            self._session = Session(self, self._setup())
        except Recon4dError as error:
            self._explain(error)
            return FAILURE
        for name in parameters.unknown_overrides(self):
            self.get_logger().warning(
                f"parameter {name} is not known and does nothing: `ros2 param list` shows those"
                " that are"
            )
        self._state = "inactive"
        return SUCCESS

    @explained
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        if result == SUCCESS and self._session is not None:
            self._session.activate()
            self._state = "active"
            if not self.autostart:  # else there is no manager
                self._bond.form(self.get_parameter("bond_heartbeat_period").value)
            waiting = self._session.waiting()
            self.get_logger().info(
                "active" + (f", waiting for {'; '.join(waiting)}" if waiting else "")
            )
        return result

    @explained
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._bond.release()
        if self._session is not None:
            self._session.deactivate()
        self._state = "inactive"
        return super().on_deactivate(state)

    @explained
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._bond.close()
        self._close_session()
        self._state = "unconfigured"
        return SUCCESS

    @explained
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._bond.close()
        self._close_session()
        self._state = "finalized"
        self.finalized = True
        return SUCCESS

    @explained
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed and said why: back to unconfigured, so that a lifecycle manager can
        try again."""
        self._bond.close()
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
        self._state = "unconfigured"
        return SUCCESS

    def finish(self) -> None:
        """Through the states to finalized, whichever it is in."""
        if self._start is not None:
            self._start.stop()
        if not self.finalized:
            self.trigger_shutdown()

    def destroy_node(self) -> None:
        self._bond.close()
        self._service_thread.close()
        super().destroy_node()

    def _close_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            try:
                if session.active:
                    session.deactivate()
            finally:
                session.close()

    def _explain(self, error: Exception) -> None:
        """Say why it does not go on: the sentence of what is the user's, the traceback too of what
        is a bug of ours."""
        known = isinstance(error, Recon4dError)
        self.failure = (
            str(error)
            if known
            else f"bug, please report it with what the log says: {type(error).__name__}: {error}"
        )
        self.get_logger().error(
            self.failure
            if known
            else f"{self.failure}\n{''.join(traceback.format_exception(error))}"
        )

    # --- what configure reads

    def _setup(self) -> Setup:
        """Raises Recon4dError."""
        self._raise_faults()
        own, algorithm = parameters.read_all(self)
        rig: Rig | None = None
        file_topics: Mapping[str, CameraTopics] = {}
        if own.rig_file:
            file = load_rig_file(own.rig_file)
            rig, file_topics = chosen(file.rig, own.cameras), file.topics
        names = rig.names if rig is not None else own.cameras
        if not names:
            raise ParameterError(
                "parameter cameras is empty: expected the cameras' names, or a rig_file that has"
                " them"
            )
        topics = {}
        for name in names:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ParameterError(
                    f"camera name {name!r} cannot be part of a topic: expected letters, digits and"
                    " _, a letter first"
                )
            self._faults |= parameters.declare_camera(self, name)
            self._raise_faults()
            camera = parameters.read_camera(self, name)
            known = file_topics.get(name)
            topics[name] = CameraSource(
                camera.image_topic or (known.image if known else "") or f"/camera/{name}/image_raw",
                camera.camera_info_topic
                or (known.camera_info if known else "")
                or f"/camera/{name}/camera_info",
                camera.transport,
                bool(camera.image_topic or (known and known.image)),
                bool(camera.camera_info_topic or (known and known.camera_info)),
                camera.detections_topic,
            )
            if camera.detections_topic:
                check_topic(self, f"{name}.detections_topic", camera.detections_topic)
            check_topic(self, f"{name}.image_topic", topics[name].image)
            check_topic(self, f"{name}.camera_info_topic", topics[name].camera_info)
        for name in ("odom_topic", "imu_topic", "twist_topic"):
            if topic := getattr(own, name):
                check_topic(self, name, topic)
        if len(set(names)) != len(names):
            raise ParameterError(f"parameter cameras names a camera twice: {', '.join(names)}")
        return Setup(own, algorithm, names, topics, rig)

    def _raise_faults(self) -> None:
        """What was given at start and cannot be taken stays a fault until it is set anew: it must
        not run on a default."""
        if self._faults:
            raise ParameterError("; ".join(self._faults.values()))

    def _mended(self, given: list[Parameter]) -> None:
        for item in given:
            self._faults.pop(item.name, None)

    # --- timers, clock, services

    def _tick(self) -> None:
        """Back to unconfigured if rig, engine or topics turn out to be unusable after configure."""
        try:
            if self._session is not None:
                self._session.tick()
                self.ran = self.ran or self._session.loaded
        except Exception as error:
            self._explain(error)
            if self._state == "active":
                self.trigger_deactivate()
            if self._session is not None:
                self.trigger_cleanup()

    def _poll(self) -> None:
        if self._session is not None:
            self._session.poll()

    def _report(self) -> None:
        session = self._session
        if session is not None:
            session.heartbeat()
        health = session.health if session is not None else Health(())
        if session is not None:
            session.tell_progress()
            waiting = session.waiting()
        else:
            building = ""
            if self._start is not None:
                self._start.tell()
                building = self._start.progress
            waiting = list(filter(None, (building, self.failure)))
        self._diagnostics.publish(
            health.diagnostics_msg(
                self.get_clock().now().nanoseconds,
                self.get_name(),
                state=self._state,
                waiting=waiting,
                paused=session is not None and session.paused,
                silence=self.get_parameter("silence").value,
                namesakes=self._namesakes(),
            )
        )

    def _namesakes(self) -> int:
        """Other nodes of this name."""
        mine = self.get_name(), self.get_namespace()
        return max(self.get_node_names_and_namespaces().count(mine) - 1, 0)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        if self._session is not None:
            self._session.clock_jumped_back()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        session = self._session
        if session is None:
            response.success, response.message = (
                False,
                f"the node is {self._state}: there is nothing to reset",
            )
            return response
        try:
            session.reset("asked for")
            response.success, response.message = True, "map, memory, tracks and pose start anew"
        except (TimeoutError, Recon4dError) as error:
            response.success, response.message = False, str(error)
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        session = self._session
        if session is None:
            response.success, response.message = False, f"the node is {self._state}"
            return response
        session.pause(request.data)
        response.success, response.message = True, "paused" if request.data else "running"
        return response

    def _on_save_map(
        self, request: SaveMap.Request, response: SaveMap.Response
    ) -> SaveMap.Response:
        folder = user_path(self.get_parameter("output_folder").value or ".")
        path = (
            user_path(request.path)
            if request.path
            else folder / f"map_{self.get_clock().now().nanoseconds}.ply"
        )
        session = self._session
        try:
            if session is None:
                raise Recon4dError(f"the node is {self._state}: there is no map")
            if not path.suffix or path.is_dir():
                voxels, keyframes, aside = session.save_map_folder(path)
                response.success, response.points = True, voxels
                response.message = f"{voxels} voxels and {keyframes} keyframes written to {path}"
                response.message += f"; {aside}" if aside else ""
                return response
            if not request.path:
                folder.mkdir(parents=True, exist_ok=True)
            response.points = int(session.save_map(path))
            lost = "".join(
                f"; {count} voxels are not in it: {reason}"
                for reason, count in session.health.map_losses.items()
            )
            response.success, response.message = (
                True,
                f"{response.points} points written to {path}{lost}",
            )
        except (Recon4dError, OSError, TimeoutError) as error:
            response.success, response.message = False, str(error)
        return response

    def _on_load_map(
        self, request: LoadMap.Request, response: LoadMap.Response
    ) -> LoadMap.Response:
        session, path = self._session, user_path(request.path)
        try:
            if session is None:
                raise Recon4dError(f"the node is {self._state}: no map can be loaded")
            response.keyframes = session.load_map(path, request.mode)
            response.success, response.message = (
                True,
                f"{response.keyframes} keyframes loaded from {path}: the car is looked for in them",
            )
        except (Recon4dError, OSError, TimeoutError) as error:
            response.success, response.message = False, str(error)
        return response


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT, SIGTERM or its shutdown transition; with build_only until the
    engine is built. Returns 0, or 2 if autostart or the build failed (the log has the sentence).
    A node that ran, and cannot be configured anew, stays unconfigured: what is wrong can be
    mended."""
    with ros_process(args) as stop:
        node = Recon4dNode()
        executor = lean_executor()
        executor.add_node(node)
        try:
            if node.build_only:
                built = node.build()
                spin_until(executor, lambda: stop.is_set() or built.done())
                node.finish()
                wait([built], END_TIMEOUT)
                return EXIT_BAD_INPUT if node.failure else 0
            if node.autostart and not stop.is_set():
                node.start()
            spin_until(
                executor,
                lambda: stop.is_set() or node.finalized or node.failed_to_start,
            )
            return EXIT_BAD_INPUT if node.failed_to_start else 0
        finally:
            node.finish()
            executor.shutdown()
            node.destroy_node()


if __name__ == "__main__":
    sys.exit(main())
