"""What is read back from a recording: the map as heard over a drive."""
import numpy as np

from recon4d_ros.mapping import Cloud
from recon4d_ros.runs.recording import _joined


def cloud(x, color):
    xyz = np.stack([np.asarray(x, np.float32), np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)], axis=1)
    return Cloud(xyz, np.full((len(x), 3), color, np.uint8), np.ones(len(x), np.float32))


def test_what_left_the_radius_is_kept_and_what_is_near_is_replaced():
    before, now = cloud([-90.0, -20.0, 0.0, 30.0], 1), cloud([0.5, 40.0], 2)
    joined = _joined(before, now, np.zeros(3))
    assert sorted(joined.xyz[:, 0].tolist()) == [-90.0, 0.5, 40.0]  # reach is 40 m: -20, 0 and 30 are gone from the map by now
    assert joined.rgb[np.argmin(joined.xyz[:, 0])].tolist() == [1, 1, 1]
    assert len(joined.weight) == 3


def test_an_empty_map_takes_nothing_away():
    before = cloud([1.0, 2.0], 1)
    assert len(_joined(before, cloud([], 2), np.zeros(3))) == 2
