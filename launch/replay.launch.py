"""A bag, the node and RViz. Cameras, topics and rig are found in the bag; the end of the bag ends
everything unless loop:=true.

ros2 launch recon4d_ros replay.launch.py bag:=/path/to/bag
"""

import atexit
import shutil
import tempfile
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = (
    ("bag", None, "bag folder, or one .mcap or .db3 file"),
    ("rig", "", "rig file (YAML); empty = the rig comes from the bag's camera_info and /tf_static"),
    (
        "odom_topic",
        "",
        "nav_msgs/Odometry of the bag as motion prior; empty = the parameter file's, else none",
    ),
    ("rate", "1.0", "bag seconds per second"),
    ("loop", "false", "start over at the end"),
    ("rviz", "true", "start RViz"),
    (
        "engine",
        "",
        (
            "engine folder or name; empty = the parameter file's, else the shipped one that fits"
            " the rig"
        ),
    ),
    ("parameters", "", "parameter file; empty = config/recon4d.yaml of this package"),
    ("record", "", "bag folder to record the node's outputs in; empty = none"),
)
SETTLE = 2.0  # seconds after the bag's end for the last frame set to come out


def processes(context):
    from recon4d_ros.ros.graph import bag_parameters, transport_environment

    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    rig = value["rig"]
    if not rig:
        folder = Path(tempfile.mkdtemp(prefix="recon4d_replay_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        rig = bag_parameters(Path(value["bag"]), folder)["rig_file"]
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare("recon4d_ros"), "launch", "recon4d.launch.py"])
        ),
        launch_arguments={
            "rig": rig,
            "use_sim_time": "true",
            "autostart": "true",
            "rviz": value["rviz"],
            "engine": value["engine"],
            "parameters": value["parameters"],
            "odom_topic": value["odom_topic"],
        }.items(),
    )
    loop = ["--loop"] if value["loop"].lower() == "true" else []
    player = Node(
        package="recon4d_ros",
        executable="recon4d_player",
        name="recon4d_player",
        output="screen",
        emulate_tty=True,
        arguments=[value["bag"], "--rate", value["rate"], *loop],
    )
    end = RegisterEventHandler(
        OnProcessExit(
            target_action=player,
            on_exit=lambda event, context: (
                None
                if context.is_shutdown
                else [
                    TimerAction(period=SETTLE, actions=[Shutdown(reason="the bag is at its end")])
                ]
            ),
        )
    )
    recorder = (
        [
            Node(
                package="recon4d_ros",
                executable="recon4d_recorder",
                name="recon4d_recorder",
                output="screen",
                arguments=["--out", value["record"], "--all-of", "recon4d", "--use-sim-time"],
            )
        ]
        if value["record"]
        else []
    )
    transport = [
        SetEnvironmentVariable(name, text) for name, text in transport_environment().items()
    ]
    return [*transport, end, node, *recorder, player]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=processes)])
