"""The node: rig, parameters, engine, RViz on or off.

ros2 launch recon4d_ros recon4d.launch.py rig:=/path/my_rig.yaml rviz:=true
ros2 launch recon4d_ros recon4d.launch.py cameras:=front,left,right      # rig from camera_info and
/tf_static
ros2 launch recon4d_ros recon4d.launch.py engine:=NAME build_only:=true      # builds it, and ends
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

from launch import LaunchDescription

ARGUMENTS = (
    (
        "rig",
        "",
        (
            "rig file (YAML); empty = the parameter file's, else the rig comes from camera_info and"
            " /tf_static of `cameras`"
        ),
    ),
    (
        "cameras",
        "",
        (
            "names of the cameras, with commas; empty = the parameter file's, else all of the rig"
            " file's"
        ),
    ),
    (
        "camera_height",
        "",
        (
            "without transforms: metres of the first camera above the road, which it looks along;"
            " empty = the parameter file's"
        ),
    ),
    ("parameters", "", "parameter file; empty = config/recon4d.yaml of this package"),
    (
        "engine",
        "",
        (
            "engine folder or name; empty = the parameter file's, else the shipped one that fits"
            " the rig"
        ),
    ),
    (
        "runtime",
        "",
        (
            "auto, own, openvino, onnxruntime, tensorrt, tensorrt-rtx or torch; empty = the"
            " parameter file's, else auto: TensorRT where it is installed and a GPU can be used"
        ),
    ),
    (
        "engine_cache",
        "",
        "folder of the engines that TensorRT builds; empty = the parameter file's",
    ),
    (
        "object_engine",
        "",
        "folder of an engine of objects beside the reconstruction; empty = the parameter file's",
    ),
    (
        "occupancy_engine",
        "",
        "folder of an engine of occupancy beside it; empty = the parameter file's",
    ),
    ("build_only", "false", "build the engine for TensorRT and end"),
    (
        "compute_capabilities",
        "",
        "build_only with TensorRT for RTX: GPUs to build for, with commas, e.g. 8.6,8.9",
    ),
    (
        "odom_topic",
        "",
        "nav_msgs/Odometry as motion prior; empty = the parameter file's, else none",
    ),
    ("imu_topic", "", "sensor_msgs/Imu: its gyro; empty = the parameter file's, else none"),
    (
        "twist_topic",
        "",
        "geometry_msgs/TwistWithCovarianceStamped: wheel speed; empty = the parameter file's",
    ),
    ("publish_tf", "", "map_odom_base, map_odom or none; empty = the parameter file's"),
    ("output_folder", "", "folder of ~/save_map; empty = the parameter file's"),
    (
        "use_sim_time",
        "",
        "time from /clock: true or false; empty = the parameter file's, else false",
    ),
    ("autostart", "true", "configure and activate the node (false: a lifecycle manager does)"),
    ("namespace", "", "namespace of the node"),
    ("rviz", "false", "start RViz with config/recon4d.rviz"),
    ("log_level", "info", "debug, info, warn or error"),
)


def nodes(context):
    from recon4d_ros.ros.graph import launch_parameters, transport_environment

    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    share = FindPackageShare("recon4d_ros")
    given = launch_parameters(value)
    if targets := given.get("compute_capabilities"):  # `8.6` is a number to launch, unless told
        given["compute_capabilities"] = ParameterValue(targets, value_type=list[str])
    node = LifecycleNode(
        package="recon4d_ros",
        executable="recon4d_node",
        name="recon4d",
        namespace=value["namespace"],
        output="screen",
        emulate_tty=True,
        parameters=[
            value["parameters"] or PathJoinSubstitution([share, "config", "recon4d.yaml"]),
            {**given, "autostart": False},
        ],
        arguments=["--ros-args", "--log-level", value["log_level"]],
    )

    def change(transition):
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        )

    build_only = value["build_only"].lower() == "true"

    def ended(event, context):
        if build_only and event.returncode:  # `ros2 launch` ends with 1 only where this raises
            raise RuntimeError("recon4d did not build the engine: see its error above")
        return None if context.is_shutdown else [Shutdown(reason="recon4d ended")]

    auto = IfCondition(str(value["autostart"].lower() == "true" and not build_only))
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        output="log",
        condition=IfCondition(LaunchConfiguration("rviz")),
        arguments=["-d", PathJoinSubstitution([share, "config", "recon4d.rviz"])],
        parameters=[{"use_sim_time": given.get("use_sim_time", False)}],
    )
    transport = [
        SetEnvironmentVariable(name, text) for name, text in transport_environment().items()
    ]
    failed = Shutdown(reason="recon4d could not configure: see its error above")
    return [
        *transport,
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state="configuring",
                goal_state="inactive",
                entities=[change(Transition.TRANSITION_ACTIVATE)],
            ),
            condition=auto,
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state="configuring",
                goal_state="unconfigured",
                entities=[failed],
            ),
            condition=auto,
        ),
        RegisterEventHandler(
            OnProcessStart(target_action=node, on_start=[change(Transition.TRANSITION_CONFIGURE)]),
            condition=auto,
        ),
        RegisterEventHandler(
            OnProcessExit(
                target_action=node,
                on_exit=ended,
            )
        ),
        node,
        rviz,
    ]


def generate_launch_description():
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS
            ),
            OpaqueFunction(function=nodes),
        ]
    )
