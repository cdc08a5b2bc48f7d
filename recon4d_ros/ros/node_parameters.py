"""The node's parameters beside the algorithm's, as data: the command line reads the node's
parameter files too, without rclpy."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.parameters import parameter

NODE_NAME = "recon4d"


@dataclass(frozen=True)
class NodeParameters:
    """What the node needs beside the algorithm: names, frames, files."""

    autostart: bool = parameter(
        True,
        "configure and activate at start, without a lifecycle manager; if it fails the process"
        " exits with 2",
    )
    cameras: tuple[str, ...] = parameter(
        (), "names of the cameras, in the rig's order; empty = all of rig_file"
    )
    rig_file: str = parameter(
        "",
        "rig file (YAML) with intrinsics and extrinsics; empty = they come from camera_info and"
        " /tf_static",
    )
    engine: str = parameter(
        "",
        "engine: a folder, or the name of a shipped one; empty = the shipped one that fits the rig",
    )
    runtime: str = parameter(
        "auto",
        "what runs the engine: auto = TensorRT or TensorRT for RTX where it is installed and a GPU"
        " can be used, else what engine.yaml says; own = that in any case",
        choices=(
            "auto",
            "own",
            "openvino",
            "onnxruntime",
            "tensorrt",
            "tensorrt-rtx",
            "torch",
        ),
    )
    object_engine: str = parameter(
        "",
        "folder of an engine of objects (sparse4d) that runs beside the reconstruction: what it"
        " detects is in ~/objects; empty = none",
    )
    detector: str = parameter(
        "",
        "a detector of objects in images as FILE.onnx, with its description beside it in FILE.yaml"
        " (docs/detections.md): its boxes help to find what moves; empty = none",
    )
    occupancy_engine: str = parameter(
        "",
        "folder of an engine of occupancy (uniscene) that runs beside the reconstruction, for"
        " ~/occupancy; empty = none",
    )
    engine_cache: str = parameter(
        "",
        "folder for engines that TensorRT builds at the first start; empty ="
        " $XDG_CACHE_HOME/recon4d_ros, or ~/.cache/recon4d_ros",
    )
    build_only: bool = parameter(
        False,
        "build the engine for TensorRT into engine_cache and end: 0 if it is there then, else 2",
    )
    compute_capabilities: tuple[str, ...] = parameter(
        (),
        "build_only, TensorRT for RTX: GPUs to build for, e.g. ['8.6', '8.9'], which need not be"
        " here; empty = any",
    )
    odom_topic: str = parameter("", "nav_msgs/Odometry of base_frame as motion prior; empty = none")
    imu_topic: str = parameter(
        "",
        "sensor_msgs/Imu: its gyro as prior of the rotation, held against the images; empty = none",
    )
    twist_topic: str = parameter(
        "",
        "geometry_msgs/TwistWithCovarianceStamped: wheel speed as motion prior, held against the"
        " images; empty = none",
    )
    publish_tf: str = parameter(
        "map_odom_base",
        "what goes to /tf: map -> odom -> base, map -> odom (odom -> base is another's), none",
        choices=("map_odom_base", "map_odom", "none"),
    )
    map_frame: str = parameter("map", "fixed frame of the map")
    odom_frame: str = parameter("odom", "smooth, drifting frame of the odometry")
    base_frame: str = parameter("base_link", "the car's frame: x forward, y left, z up")
    camera_height: float = parameter(
        0.0,
        "without transforms to base_frame: metres of the first camera above the road; it is taken"
        " to look straight ahead; 0 = the transforms say it",
        minimum=0.0,
        maximum=99.0,
    )
    map_publish_period: float = parameter(
        2.0,
        "seconds between two publications of ~/map (~/map_updates comes every frame)",
        minimum=0.1,
        maximum=3600.0,
    )
    grid_publish_period: float = parameter(
        1.0,
        "seconds between two publications of the whole ~/occupancy_grid (~/local_grid comes every"
        " frame)",
        minimum=0.1,
        maximum=3600.0,
    )
    path_length: int = parameter(
        2000, "poses kept in ~/path: the oldest go first", minimum=1, maximum=100_000
    )
    path_spacing: float = parameter(
        0.5, "metres between two poses of ~/path", minimum=0.0, maximum=100.0
    )
    points_stride: int = parameter(
        2,
        "~/points has every so-many-th pixel of every so-many-th row (~/<camera>/depth has all)",
        minimum=1,
        maximum=32,
    )
    viewer: str = parameter(
        "",
        "where all is shown by Rerun (make viewer): web = a page in the browser, else a file.rrd;"
        " empty = nowhere",
    )
    viewer_address: str = parameter(
        "127.0.0.1",
        "address that the page of the viewer is served on; 0.0.0.0 = every one, for anybody who"
        " reaches it",
    )
    viewer_port: int = parameter(
        9090,
        "port of the viewer's page; its data are on the next",
        minimum=1,
        maximum=65534,
    )
    silence: float = parameter(
        2.0,
        "seconds without an image after which /diagnostics calls a camera silent",
        minimum=0.1,
        maximum=600.0,
    )
    watchdog: float = parameter(
        60.0,
        "seconds that one step may take before the engine is taken for stuck and started anew, map"
        " and pose with it; 0 = never",
        minimum=0.0,
        maximum=3600.0,
    )
    bond_heartbeat_period: float = parameter(
        0.1,
        "seconds between two heartbeats of the bond with Nav2's lifecycle manager, while active and"
        " without autostart; 0 = no bond. Takes the package bondpy",
        minimum=0.0,
        maximum=60.0,
    )
    map: str = parameter(
        "",
        "a map folder in which the car is looked for, and that what is seen is added to"
        " (localization.mode); empty = none. One that cannot be used is said, and left out",
    )
    output_folder: str = parameter(".", "folder for what ~/save_map writes without a path")


@dataclass(frozen=True)
class CameraParameters:
    """Where one camera's messages come from; the names are below `<camera>.`"""

    image_topic: str = parameter(
        "",
        "images; empty = the rig file's, else /camera/<camera>/image_raw, else those of a camera of"
        " this name",
    )
    camera_info_topic: str = parameter(
        "",
        "calibration; empty = the rig file's, else /camera/<camera>/camera_info, else what goes"
        " with the images by its name",
    )
    transport: str = parameter(
        "auto",
        "raw (Image), compressed (CompressedImage), video (FFMPEGPacket, CompressedVideo), or auto:"
        " what is published on image_topic, or beside it under image_transport's names, in this"
        " order",
        choices=("auto", "raw", "compressed", "video"),
    )
    detections_topic: str = parameter(
        "",
        "vision_msgs/Detection2DArray of this camera's images: boxes with a class, which help to"
        " find what moves; empty = none",
    )
