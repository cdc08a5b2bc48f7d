"""The static map: its hash against a plain dictionary, what enters, what leaves, what is told and
what is saved."""

from __future__ import annotations

import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.errors import OutputError, Recon4dError
from recon4d_ros.evaluation.metrics.clouds import Boxes, inside_boxes, score_cloud
from recon4d_ros.geometry import inverse, transform, unproject
from recon4d_ros.mapping import Cloud, Mapper, MappingParameters, read_cloud, write_cloud
from recon4d_ros.mapping.cloud_files import PLY_POINT
from recon4d_ros.mapping.keys import pack, unpack_relative
from recon4d_ros.mapping.spill import Spill
from recon4d_ros.mapping.views import Gate, free_until, rays, sample, steps
from recon4d_ros.mapping.voxel_table import VoxelTable
from recon4d_ros.types import Calibration, Camera, Geometry, MapDelta, PoseEstimate, Rig, Tracking

OPTICAL = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], np.float64
)  # base_link -> camera that looks ahead
H, W = 48, 96


def calibration(cameras: int = 1) -> Calibration:
    k = np.array([[60.0, 0, W / 2 - 0.5], [0, 60.0, H / 2 - 0.5], [0, 0, 1]])
    poses = np.stack([OPTICAL] * cameras)
    poses[:, 1, 3] = np.linspace(0, -0.5, cameras)
    names = tuple(f"c{n}" for n in range(cameras))
    return Calibration(
        names,
        np.zeros((cameras, H, W, 2), np.float32),
        np.stack([k] * cameras),
        poses,
        (H, W),
        (H, W),
    )


def at(
    x: float,
    y: float = 0.0,
    z: float = 0.0,
    tracking: Tracking = Tracking.TRACKING,
    cameras: int = 1,
) -> PoseEstimate:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return PoseEstimate(
        pose, pose @ calibration(cameras).T_base_camera, tracking, np.eye(6), np.eye(6), np.zeros(6)
    )


def wall(
    distance: float, cameras: int = 1, confidence: float = 1.0, sigma: float = 0.01
) -> Geometry:
    """A wall across the view, `distance` metres ahead of the cameras."""
    depth = np.full((cameras, H, W), distance, np.float32)
    color = np.full((cameras, H, W, 3), (200, 100, 50), np.uint8)
    return Geometry(depth, np.full_like(depth, sigma), np.full_like(depth, confidence), color)


NOTHING = np.zeros((1, H, W), bool)
SMALL = MappingParameters(max_voxels=20_000, baseline=0.0, points_per_camera=100_000)


# ---- keys and table

INDEX = st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3)


@given(st.lists(INDEX, min_size=1, max_size=20), INDEX)
def test_a_key_gives_back_every_index_near_its_center(
    offsets: list[tuple[int, int, int]], center: tuple[int, int, int]
) -> None:
    near = np.array(offsets, np.int64) % np.array([2**22, 2**22, 2**16]) - np.array(
        [2**21, 2**21, 2**15]
    )
    middle = np.array(center, np.int64)
    keys = pack(near + middle)
    assert keys.min() >= 0
    np.testing.assert_array_equal(unpack_relative(keys, middle), near)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "remove"]), st.lists(st.integers(0, 400), max_size=60)
        ),
        max_size=25,
    )
)
def test_table_agrees_with_a_dictionary(operations: list[tuple[str, list[int]]]) -> None:
    table, model = VoxelTable(1024), {}
    everything = np.arange(401, dtype=np.int64)
    for name, values in operations:
        keys = np.unique(np.array(values, np.int64))
        if name == "insert":
            absent = np.array([key for key in keys if key not in model], np.int64)
            slots = table.insert(absent)
            assert np.all(slots >= 0)
            model.update(zip(absent.tolist(), slots.tolist(), strict=True))
        else:
            gone = [key for key in keys.tolist() if key in model]
            table.remove(np.array([model.pop(key) for key in gone], np.int64))
        assert table.size == len(model)
        assert len(set(model.values())) == len(model), "two keys in one slot"
        np.testing.assert_array_equal(
            table.find(everything), [model.get(key, -1) for key in everything.tolist()]
        )


def test_a_full_table_refuses_and_keeps_what_it_has() -> None:
    table = VoxelTable(64)
    keys = np.arange(1000, dtype=np.int64)
    slots = table.insert(keys)
    assert np.count_nonzero(slots >= 0) == table.size <= 64
    np.testing.assert_array_equal(table.find(keys), slots)


def test_table_fills_to_sixty_percent_and_hardly_refuses() -> None:
    table = VoxelTable(1 << 14)
    keys = np.unique(
        pack(np.random.default_rng(0).integers(-300, 300, (int(0.6 * table.capacity), 3)))
    )
    refused = sum(np.count_nonzero(table.insert(part) < 0) for part in np.array_split(keys, 20))
    assert refused < 0.002 * len(keys)


# ---- what enters


def test_points_land_where_the_wall_is() -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        mapper(at(3.0, 4.0), wall(10.03), NOTHING, 0)
    xyz, rgb, weight = mapper.points()
    assert len(xyz) == mapper.size > 100
    np.testing.assert_allclose(
        xyz[:, 0], 13.03, atol=1e-4
    )  # the mean of the points, not the voxel's middle
    assert np.all(rgb == (200, 100, 50)) and np.all(weight > 0)


@pytest.mark.parametrize("x", [0.0, 1e5, -3e6])
def test_far_from_the_start_the_map_is_as_good(x: float) -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        delta = mapper(at(x), wall(10.03), NOTHING, 0)
        np.testing.assert_array_equal(
            delta.keys, np.floor(np.round(delta.points.astype(np.float64), 3) / 0.2)[:, :3]
        ) if x == 0 else None
    near = Mapper(calibration(), SMALL)
    for _ in range(6):
        near(at(0.0), wall(10.03), NOTHING, 0)
    assert abs(mapper.size - near.size) <= 0.1 * near.size


def test_one_look_is_not_enough_later_on() -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(10):
        mapper(at(0.0), wall(10.0), NOTHING, 0)
    before = mapper.size
    delta = mapper(at(50.0), wall(10.0), NOTHING, 0)
    assert len(delta.keys) == 0 and mapper.size <= before


def test_masked_pixels_and_their_margin_stay_out() -> None:
    mask = NOTHING.copy()
    mask[0, :, 40:] = True
    mapper = Mapper(calibration(), replace(SMALL, mask_margin=4))
    for _ in range(6):
        mapper(at(0.0), wall(10.0), mask, 0)
    seen_from = (W / 2 - 0.5 - 35.5) / 60.0 * 10.0  # left of column 36, the first one in the margin
    assert mapper.size > 50
    assert mapper.points()[0][:, 1].min() > seen_from - 1e-3


def test_a_mover_found_late_takes_its_points_out() -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        mapper(at(0.0), wall(10.0), NOTHING, 0)
    assert mapper.size > 100
    mask = np.ones_like(NOTHING)
    for _ in range(3):
        mapper(at(0.0), wall(10.0), mask, 0)
    assert mapper.size == 0


@pytest.mark.parametrize(
    "geometry",
    [
        wall(10.0, confidence=0.1),
        wall(10.0, sigma=5.0),
        wall(80.0),
        wall(0.5),
        wall(np.nan),
        wall(np.inf),
        wall(-3.0),
        wall(10.0, sigma=np.nan),
        wall(10.0, confidence=np.nan),
    ],
    ids=[
        "unsure",
        "vague",
        "far",
        "the car itself",
        "no depth",
        "infinite",
        "behind",
        "no sigma",
        "no confidence",
    ],
)
def test_what_is_not_worth_it_stays_out(geometry: Geometry) -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        mapper(at(0.0), geometry, NOTHING, 0)
    assert mapper.size == 0


def test_flying_pixels_stay_out() -> None:
    geometry = wall(10.0)
    geometry.depth[0, :, 50:] = 20.0
    geometry.depth[0, :, 49] = 14.0  # between the two: on nothing
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        mapper(at(0.0), geometry, NOTHING, 0)
    x = mapper.points()[0][:, 0]
    assert (
        np.any(np.isclose(x, 10.0))
        and np.any(np.isclose(x, 20.0))
        and not np.any((x > 10.1) & (x < 19.9))
    )


def test_a_slanted_surface_is_no_discontinuity() -> None:
    v = np.arange(H, dtype=np.float32)[:, None] - (H / 2 - 0.5)
    ground = np.where(v > 4, 1.5 * 60.0 / np.maximum(v, 1), np.nan) * np.ones((1, W), np.float32)
    flat = wall(1.0)
    geometry = Geometry(ground[None].astype(np.float32), flat.sigma, flat.confidence, flat.color)
    gate = Gate(0.0, 100.0, 0.3, 0.6, 0.25, 3)
    kept = sample(geometry, NOTHING, 0, rays(calibration())[0], gate, (1, 1), (0, 0)).points
    assert len(kept) > 0.5 * np.count_nonzero(np.isfinite(ground))
    np.testing.assert_allclose(kept[:, 1], 1.5, atol=1e-4)


def test_phases_cover_every_pixel_once() -> None:
    step = steps((H, W), 500)
    assert H * W / (step[0] * step[1]) <= 500 * 1.2
    seen = np.zeros((H, W), int)
    for turn in range(step[0] * step[1]):
        seen[turn // step[1] :: step[0], turn % step[1] :: step[1]] += 1
    assert np.all(seen == 1)


def test_a_lost_pose_changes_nothing() -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(6):
        mapper(at(0.0), wall(10.0), NOTHING, 0)
    before = mapper.points()[0]
    for tracking in (Tracking.STARTING, Tracking.DEGRADED, Tracking.LOST):
        delta = mapper(at(99.0, tracking=tracking), wall(5.0), NOTHING, 0)
    assert (len(delta.keys), len(delta.removed), delta.sequence) == (0, 0, 8)
    np.testing.assert_array_equal(mapper.points()[0], before)


# ---- what leaves


def test_a_parked_car_that_leaves_goes_from_the_map() -> None:
    mapper = Mapper(calibration(), SMALL)
    car = wall(20.0)
    car.depth[0, 10:30, 30:60] = 10.0
    for _ in range(10):
        mapper(at(0.0), car, NOTHING, 0)
    x = mapper.points()[0][:, 0]
    assert (
        np.count_nonzero(np.isclose(x, 10.0)) > 50 and np.count_nonzero(np.isclose(x, 20.0)) > 500
    )
    removed = 0
    for _ in range(40):
        removed += len(mapper(at(0.0), wall(20.0), NOTHING, 0).removed)
    x = mapper.points()[0][:, 0]
    assert np.count_nonzero(x < 19.0) == 0 and np.count_nonzero(np.isclose(x, 20.0)) > 500
    assert removed > 50


def test_a_mover_that_no_mask_found_is_gone_soon_after_it_passed() -> None:
    """What was seen lately is looked through in every second frame, not only when its part of the
    table has its turn."""
    mapper = Mapper(calibration(), SMALL)
    for step in range(5):  # a car crosses, one metre a frame
        view = wall(20.0)
        view.depth[0, 10:30, 20 + 6 * step : 50 + 6 * step] = 10.0
        mapper(at(0.0), view, NOTHING, 0)
    assert np.count_nonzero(mapper.points()[0][:, 0] < 19.0) > 50
    for _ in range(MappingParameters().revisit_frames):
        mapper(at(0.0), wall(20.0), NOTHING, 0)
    assert np.count_nonzero(mapper.points()[0][:, 0] < 19.0) == 0


def test_a_surface_in_front_takes_nothing_away() -> None:
    mapper = Mapper(calibration(), SMALL)
    for _ in range(10):
        mapper(at(0.0), wall(20.0), NOTHING, 0)
    before = mapper.size
    for _ in range(30):
        mapper(at(0.0), wall(10.0, confidence=1.0), np.ones_like(NOTHING), 0)
    assert np.count_nonzero(np.isclose(mapper.points()[0][:, 0], 20.0)) == before


def test_free_space_ends_before_what_is_measured_and_before_thin_things() -> None:
    depth = np.full((9, 9), 20.0, np.float32)
    depth[:, 4] = 5.0
    depth[0, 0] = np.nan
    limit = free_until(
        depth, np.full((9, 9), 0.1, np.float32), np.ones((9, 9), np.float32), 0.3, 0.3
    )
    assert np.all(limit[:, 3:6] < 5.0) and np.all(limit[:2, :2] == 0.0)
    assert limit[8, 8] == pytest.approx(20.0 * 0.97 - 0.3)
    assert np.all(
        free_until(depth, np.zeros_like(depth), np.full((9, 9), np.nan, np.float32), 0.3, 0.3)
        == 0.0
    )


@pytest.mark.parametrize("keep", ["file", "drop"])
def test_the_map_is_bounded_by_the_radius(keep: str, tmp_path: Path) -> None:
    mapper = Mapper(calibration(), replace(SMALL, radius=20.0, keep_outside=keep))
    for step in range(100):
        mapper(at(float(step)), wall(10.0), NOTHING, 0)
    for _ in range(10):
        mapper(at(100.0), wall(np.nan), NOTHING, 0)
    xyz = mapper.points()[0]
    # every wall was one look only, so build one that is sure and leave it behind
    for _ in range(6):
        mapper(at(100.0), wall(10.0), NOTHING, 0)
    sure = mapper.size
    for _ in range(10):
        mapper(at(200.0), wall(np.nan), NOTHING, 0)
    assert mapper.size == 0 and sure > 100
    saved = mapper.save(tmp_path / "map.ply")
    assert saved == len(read_cloud(tmp_path / "map.ply")) == mapper.outside
    assert (saved >= sure) if keep == "file" else (saved == 0)
    assert len(xyz) == 0 or np.abs(xyz[:, 0] - 100.0).max() < 22.0


def test_a_place_driven_by_twice_is_saved_once(tmp_path: Path) -> None:
    mapper = Mapper(calibration(), replace(SMALL, radius=20.0))
    sizes = []
    for _ in range(3):
        for _ in range(8):
            mapper(at(0.0), wall(10.0), NOTHING, 0)
        sizes.append(mapper.size)
        for _ in range(10):
            mapper(at(100.0), wall(np.nan), NOTHING, 0)
    assert mapper.outside == sum(sizes) and mapper.save(tmp_path / "a.ply") == max(sizes)
    for _ in range(8):
        mapper(at(0.0), wall(10.0), NOTHING, 0)
    assert mapper.save(tmp_path / "b.ply") == max(sizes)


def test_too_little_room_costs_radius_and_never_the_drive() -> None:
    mapper = Mapper(calibration(), replace(SMALL, max_voxels=1000, voxel_size=0.1))
    for distance in np.repeat(np.linspace(20, 4, 10), 4):
        mapper(at(0.0), wall(float(distance)), NOTHING, 0)
    assert 0 < mapper.size <= 2048 and mapper.refused > 0


# ---- what is told


def follow(view: dict[tuple[int, ...], tuple[float, ...]], delta: MapDelta) -> None:
    """A reader of the deltas, as a node's subscriber would be: removals first, then changes."""
    for key in delta.removed.tolist():
        del view[tuple(key)]
    view.update(
        {
            tuple(key): tuple(point)
            for key, point in zip(delta.keys.tolist(), delta.points.tolist(), strict=True)
        }
    )


@pytest.mark.parametrize("max_delta", [50, 100_000])
def test_whoever_follows_the_deltas_has_the_map(max_delta: int) -> None:
    rng = np.random.default_rng(1)
    mapper = Mapper(calibration(), replace(SMALL, mask_margin=0, radius=25.0, max_delta=max_delta))
    view: dict[tuple[int, ...], tuple[float, ...]] = {}
    gone = 0
    for step in range(40):
        mask = rng.random(NOTHING.shape) < 0.05
        delta = mapper(at(4.0 * (step // 4)), wall(float(4 + 3 * (step // 4 % 4))), mask, 0)
        assert delta.sequence == step and len(delta.keys) <= max_delta
        follow(view, delta)
        gone += len(delta.removed)
    assert gone > 0
    for _ in range(400):  # until the queue is empty; nothing new is seen
        follow(view, mapper(at(36.0, tracking=Tracking.LOST), wall(10.0), NOTHING, 0))
    xyz = mapper.points()[0]
    assert len(view) == mapper.size == len(xyz) > 0
    assert {
        tuple(np.floor(np.array(point) / 0.2 + 1e-4).astype(int)) for point in view.values()
    } == set(view)


def test_repeated_runs_are_identical_and_reset_forgets() -> None:
    def run(mapper: Mapper) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(5)
        for step in range(15):
            mapper(
                at(0.3 * step),
                wall(float(rng.uniform(5, 15)), sigma=0.2),
                rng.random(NOTHING.shape) < 0.05,
                0,
            )
        return mapper.points()

    mapper = Mapper(calibration(), SMALL)
    first = run(mapper)
    mapper.reset()
    assert mapper.size == 0
    for a, b, c in zip(first, run(mapper), run(Mapper(calibration(), SMALL)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


# ---- what is saved


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 300), st.sampled_from([".ply", ".pcd", ".PLY"]))
def test_clouds_come_back_as_they_were(count: int, suffix: str) -> None:
    rng = np.random.default_rng(count)
    rgb = rng.integers(0, 256, (count, 3)).astype(np.uint8)
    cloud = Cloud(
        rng.normal(size=(count, 3)).astype(np.float32), rgb, rng.random(count, np.float32)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"map{suffix}"
        write_cloud(path, cloud)
        back = read_cloud(path)
        assert os.listdir(folder) == [path.name], "something was left beside the file"
    for field in ("xyz", "rgb", "weight"):
        np.testing.assert_array_equal(getattr(back, field), getattr(cloud, field))


@pytest.mark.parametrize(
    "path", ["/proc/map.ply", "/nowhere/at/all/map.ply", "/dev/full/map.ply", "map.stl", "map"]
)
def test_what_cannot_be_written_is_one_sentence(path: str, tmp_path: Path) -> None:
    mapper = Mapper(calibration(), SMALL)
    with pytest.raises(OutputError, match=r"cannot write map .*map") as error:
        mapper.save(tmp_path / path)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_a_full_disk_leaves_the_old_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.ply"
    cloud = Cloud(np.ones((5, 3), np.float32), np.ones((5, 3), np.uint8), np.ones(5, np.float32))
    write_cloud(path, cloud)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_cloud(path, cloud)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["map.ply"]


def test_a_truncated_or_foreign_cloud_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "map.ply"
    write_cloud(
        path, Cloud(np.ones((5, 3), np.float32), np.ones((5, 3), np.uint8), np.ones(5, np.float32))
    )
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Recon4dError, match="truncated"):
        read_cloud(path)
    path.write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(Recon4dError, match="no PLY of ours"):
        read_cloud(path)
    with pytest.raises(Recon4dError, match="cannot read cloud"):
        read_cloud(tmp_path / "missing.pcd")


# ---- the simulated drive, with its exact truth


@pytest.fixture(scope="module")
def drive() -> tuple[Mapper, Boxes, np.ndarray]:
    """2.5 s of traffic seen by a small wide camera, mapped from true depth and poses with the true
    masks; where movers were."""
    sim = pytest.importorskip("recon4d_ros.sim.simulate")
    k = np.array([[80.0, 0, 79.5], [0, 80.0, 44.5], [0, 0, 1]])
    camera = Camera("front", 160, 90, k, OPTICAL)
    small = Calibration(
        ("front",),
        np.zeros((1, 90, 160, 2), np.float32),
        k[None],
        OPTICAL[None],
        (90, 160),
        (90, 160),
    )
    mapper = Mapper(small, MappingParameters(max_voxels=100_000))
    rng = np.random.default_rng(0)
    boxes, truth, start = [], [], None
    for frame in sim.simulate(Rig("small", (camera,)), seconds=2.5, rate=10, seed=3):
        start = inverse(frame.T_world_base) if start is None else start
        pose = start @ frame.T_world_base
        depth = frame.depth[0] * (1 + 0.005 * rng.standard_normal((90, 160))).astype(np.float32)
        geometry = Geometry(
            depth[None], (0.01 * depth)[None], np.ones_like(depth)[None], frame.images[0][None]
        )
        estimate = PoseEstimate(
            pose, (pose @ OPTICAL)[None], Tracking.TRACKING, np.eye(6), np.eye(6), np.zeros(6)
        )
        mapper(estimate, geometry, frame.moving[0][None], frame.stamp_ns)
        seen = unproject(frame.depth[0], k)[~frame.moving[0] & (frame.depth[0] < 30)]
        truth.append(transform(pose @ OPTICAL, seen)[::7])
        for thing in frame.objects:
            if np.linalg.norm(thing.velocity) > 1.0:
                at_map = start @ thing.T_world_object
                boxes.append([*at_map[:3, 3], *thing.size, np.arctan2(at_map[1, 0], at_map[0, 0])])
    every = np.array(boxes)
    return mapper, Boxes(every[:, :3], every[:, 3:6], every[:, 6]), np.concatenate(truth)


def test_where_movers_drove_the_map_of_a_simulated_drive_is_empty(
    drive: tuple[Mapper, Boxes, np.ndarray],
) -> None:
    mapper, boxes, _ = drive
    xyz = mapper.points()[0]
    assert len(xyz) > 2000 and len(boxes.yaw) > 20
    assert inside_boxes(xyz, boxes).mean() < 0.01


def test_the_map_of_a_simulated_drive_is_where_the_world_is(
    drive: tuple[Mapper, Boxes, np.ndarray],
) -> None:
    mapper, _, truth = drive
    score = score_cloud(mapper.points()[0], truth, threshold=0.3)
    assert score.accuracy < 0.12 and score.precision > 0.95, score
    assert score.recall > 0.5, score


def test_a_disk_that_fills_up_keeps_whole_voxels_and_counts_the_others():
    """A write that finds room for a part is no error to the system: it says how much it took."""
    spill = Spill()
    spill.add(np.arange(10), np.zeros(10, PLY_POINT))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        spill.add(np.arange(10, 40), np.zeros(30, PLY_POINT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 10 < spill.count < 40 and spill.count + spill.lost == 40
    spill.add(np.arange(40, 45), np.zeros(5, PLY_POINT))  # there is room again
    keys = np.concatenate([keys for keys, _ in spill.blocks()])
    np.testing.assert_array_equal(keys, [*range(spill.count - 5), *range(40, 45)])
