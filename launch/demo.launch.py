"""A simulated drive: made first, then replayed through the node with RViz.

ros2 launch recon4d_ros demo.launch.py seconds:=20 rig:=nuscenes_like
"""

import atexit
import shutil
import tempfile
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = (
    ("bag", "", "bag to play; empty = simulate a drive"),
    ("rig", "nuscenes_like", "rig of the simulated drive: a name of config/rigs or a file"),
    ("seconds", "20", "length of the simulated drive"),
    ("seed", "1", "seed of the simulated world"),
    ("rate", "0.5", "bag seconds per second"),
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
)


def replay(bag, value):
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([FindPackageShare("recon4d_ros"), "launch", "replay.launch.py"])
        ),
        launch_arguments={
            "bag": str(bag),
            "rig": "",  # an include inherits: the simulated drive's rig is not the replay's
            **{name: value[name] for name in ("rate", "rviz", "engine", "parameters")},
        }.items(),
    )


def actions(context):
    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    if value["bag"]:
        return [replay(value["bag"], value)]
    folder = Path(tempfile.mkdtemp(prefix="recon4d_demo_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    bag = folder / "drive"
    simulate = ExecuteProcess(
        cmd=[
            "recon4d",
            "simulate",
            "--out",
            str(bag),
            "--rig",
            value["rig"],
            "--seconds",
            value["seconds"],
            "--seed",
            value["seed"],
        ],
        name="simulate",
        output="screen",
        emulate_tty=True,
    )

    def on_exit(event, context):
        if context.is_shutdown:
            return None
        return (
            [replay(bag, value)]
            if event.returncode == 0
            else [Shutdown(reason="the drive could not be simulated")]
        )

    return [RegisterEventHandler(OnProcessExit(target_action=simulate, on_exit=on_exit)), simulate]


def generate_launch_description():
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS
            ),
            OpaqueFunction(function=actions),
        ]
    )
