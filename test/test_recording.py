"""What is read back from a recording: the map as heard over a drive, and the played bag's pictures.
The whole of it: test_ros_graph.py."""

import numpy as np
import pytest

from recon4d_ros.bags import BagWriter
from recon4d_ros.bags.types import typestore
from recon4d_ros.errors import BagError
from recon4d_ros.mapping import Cloud
from recon4d_ros.runs.recording import Recording, _ImageStream, _joined, _SourceImages

SECOND = 1_000_000_000


def cloud(x, color):
    xyz = np.stack(
        [np.asarray(x, np.float32), np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)],
        axis=1,
    )
    return Cloud(xyz, np.full((len(x), 3), color, np.uint8), np.ones(len(x), np.float32))


def test_what_left_the_radius_is_kept_and_what_is_near_is_replaced():
    before, now = cloud([-90.0, -20.0, 0.0, 30.0], 1), cloud([0.5, 40.0], 2)
    joined = _joined(before, now, np.zeros(3))
    assert sorted(joined.xyz[:, 0].tolist()) == [
        -90.0,
        0.5,
        40.0,
    ]  # reach is 40 m: -20, 0 and 30 are gone from the map by now
    assert joined.rgb[np.argmin(joined.xyz[:, 0])].tolist() == [1, 1, 1]
    assert len(joined.weight) == 3


def test_an_empty_map_takes_nothing_away():
    before = cloud([1.0, 2.0], 1)
    assert len(_joined(before, cloud([], 2), np.zeros(3))) == 2


def write_pictures(path, stamps, topic="/camera/{}/image_raw", cameras=("left", "right")):
    with BagWriter(path) as writer:
        for index, stamp in enumerate(stamps):
            for camera in cameras:
                writer.write_image(
                    topic.format(camera),
                    stamp,
                    camera,
                    np.full((4, 6), index, np.uint8),
                    "mono8",
                    receive_ns=stamp,
                )


def test_a_picture_that_is_not_in_the_bag_costs_no_other(tmp_path):
    stamps = [SECOND * (1 + index) for index in range(40)]
    write_pictures(tmp_path / "bag", stamps)
    source = _SourceImages(tmp_path / "bag", ("left", "right"))
    assert source.at("left", stamps[0] + 7) is None
    for index, stamp in enumerate(stamps):
        assert source.at("right", stamp + 7) is None
        image = source.at("left", stamp)
        assert image is not None and image.data[0] == index
        assert len(source._held) <= 2 * 8, "memory grows with the drive"
    assert source.at("left", stamps[-1] + 100 * SECOND) is None
    source.close()


def test_heard_images_are_found_by_the_nearest_stamp_within_reach(tmp_path):
    stamps = [SECOND * (1 + index) for index in range(30)]
    topics = [f"/recon4d/{name}/depth" for name in ("left", "right")]
    write_pictures(tmp_path / "bag", stamps, "/recon4d/{}/depth")
    stream = _ImageStream(
        tmp_path / "bag", [*topics, "/recon4d/left/dynamic_mask"]
    )  # the last was never published
    for stamp in stamps:
        found = stream.nearest(topics[1], stamp + 20, 50)
        assert found is not None and found[0] == stamp
        assert stream.nearest(topics[0], stamp + 60, 50) is None
        assert stream.nearest("/recon4d/left/dynamic_mask", stamp, 0) is None
        assert max(map(len, stream._held.values())) <= 8
    stream.close()


def test_a_recording_without_a_frame_set_says_what_became_of_the_images(tmp_path):
    status = typestore().types["recon4d_msgs/msg/Status"]
    values = dict.fromkeys(status.__dataclass_fields__, 0) | dict.fromkeys(
        ("reason", "engine", "runtime", "device"), ""
    )
    values |= {
        "stages": [],
        "stage_latency": np.zeros(0),
        "cameras": [],
        "present": np.zeros(0, bool),
    }
    values |= {"drop_reasons": ["left: too late"], "drop_counts": np.array([4], np.uint64)}
    with BagWriter(tmp_path / "bag") as writer:
        message = status(**values | {"header": writer.header(SECOND, "base_link")})
        writer.write("/recon4d/status", "recon4d_msgs/msg/Status", message, SECOND)
    with pytest.raises(
        BagError, match="no frame set was recorded from /recon4d: 4 x left: too late"
    ):
        next(Recording(tmp_path / "bag", tmp_path / "bag", None, None).frames())
