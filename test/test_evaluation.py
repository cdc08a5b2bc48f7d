"""Metrics against values worked out by hand, and a run's folder written, read and scored against a
bag with truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon4d_ros.bags import BagWriter, rig_transforms
from recon4d_ros.cameras.preprocess import Preprocessor, make_calibration
from recon4d_ros.errors import MessageError, OutputError, Recon4dError
from recon4d_ros.evaluation import Evaluator, format_report
from recon4d_ros.evaluation.metrics.clouds import Boxes, inside_boxes, score_cloud
from recon4d_ros.evaluation.metrics.depth import DepthAccumulator
from recon4d_ros.evaluation.metrics.masks import MaskAccumulator, split_movers
from recon4d_ros.evaluation.metrics.tracking import Movers, TrackingAccumulator
from recon4d_ros.evaluation.metrics.trajectory import (
    align_first,
    score_trajectory,
    segment_errors,
    umeyama,
)
from recon4d_ros.evaluation.objects import objects_at
from recon4d_ros.evaluation.truth import Truth
from recon4d_ros.evaluation.visibility import project_visible
from recon4d_ros.geometry import exp, inverse, se3
from recon4d_ros.mapping import Mapper, MappingParameters
from recon4d_ros.messages import cloud_points, point_rows
from recon4d_ros.runs.evaluate import evaluate_run
from recon4d_ros.runs.files import (
    read_depth,
    read_objects,
    read_trajectory,
    tum_line,
    without_nan,
    write_depth,
)
from recon4d_ros.runs.writer import RunWriter
from recon4d_ros.types import (
    Camera,
    DynamicObject,
    FrameSet,
    Geometry,
    MapDelta,
    Motion,
    PoseEstimate,
    RawImage,
    Reconstruction,
    Rig,
    Tracking,
)

# ---- trajectory


def straight(frames: int, step: float = 1.0) -> np.ndarray:
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = step * np.arange(frames)
    return poses


def test_a_scale_error_of_two_percent_is_two_percent_of_drift() -> None:
    truth, estimate = straight(301), straight(301, 1.02)
    score = score_trajectory(estimate, truth)
    assert score.path == pytest.approx(300.0)
    assert score.end_drift == pytest.approx(2.0) and score.segment_drift == pytest.approx(2.0)
    assert score.rpe_translation == pytest.approx(0.02) and score.rpe_rotation == pytest.approx(
        0.0, abs=1e-6
    )
    x = 0.02 * np.arange(301)
    assert score.ate_first == pytest.approx(np.sqrt(np.mean(x**2)))
    assert score.ate == pytest.approx(np.std(x))  # the best rigid fit takes the mean error away
    assert score.errors[-1] == pytest.approx(6.0)


def test_a_short_clip_has_a_segment_drift_and_a_standing_car_none() -> None:
    assert segment_errors(straight(51, 1.01), straight(51), np.arange(51.0))[0] == pytest.approx(
        1.0
    )
    assert np.isnan(score_trajectory(straight(3, 0.0), straight(3, 0.0)).end_drift)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.integers(0, 10_000))
def test_trajectories_that_differ_by_a_rigid_motion_have_no_error(
    xi: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = [np.eye(4)]
    for _ in range(20):
        truth.append(truth[-1] @ exp(np.concatenate([rng.uniform(0, 1, 3), rng.normal(0, 0.1, 3)])))
    motion = exp(np.array(xi))
    score = score_trajectory(motion @ np.stack(truth), np.stack(truth))
    assert max(score.ate, score.ate_first, score.rpe_translation) < 1e-9
    np.testing.assert_allclose(
        umeyama((motion @ np.stack(truth))[:, :3, 3], np.stack(truth)[:, :3, 3]),
        inverse(motion),
        atol=1e-8,
    )
    np.testing.assert_allclose(
        align_first(motion @ np.stack(truth), np.stack(truth)), np.stack(truth), atol=1e-9
    )


def test_rotation_of_a_degree_per_frame_is_a_degree_of_rpe() -> None:
    truth, estimate = straight(5), straight(5)
    for index in range(5):
        estimate[index, :3, :3] = Rotation.from_euler("z", index, degrees=True).as_matrix()
    assert score_trajectory(estimate, truth).rpe_rotation == pytest.approx(1.0)


# ---- depth


def test_depth_scores_by_hand() -> None:
    accumulator = DepthAccumulator(["a", "b"])
    truth = np.array([5.0, 10.0, 10.0, 30.0, 100.0, np.nan, 0.0], np.float32)
    accumulator.add(0, np.array([5.5, 10.0, np.nan, 60.0, 100.0, 7.0, 7.0], np.float32), truth)
    every = accumulator.score()
    assert every.pixels == 5 and every.coverage == pytest.approx(0.8)
    assert every.abs_rel == pytest.approx((0.1 + 0 + 1 + 0) / 4)
    assert every.sq_rel == pytest.approx((0.05 + 0 + 30 + 0) / 4)
    assert every.rmse == pytest.approx(np.sqrt((0.25 + 900) / 4))
    assert (every.delta1, every.delta3) == (0.75, 0.75)
    near = accumulator.score(nearer=40.0)
    assert near.pixels == 4 and near.abs_rel == pytest.approx(1.1 / 3)
    assert accumulator.score("a", farther=10.0, nearer=20.0).coverage == pytest.approx(0.5)
    assert np.isnan(accumulator.score("b").abs_rel) and accumulator.score("b").pixels == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_depth_in_parts_is_depth_at_once(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    truth, depth = rng.uniform(1, 120, 200), rng.uniform(1, 120, 200)
    depth[rng.random(200) < 0.2] = np.nan
    whole, split = DepthAccumulator(["a"]), DepthAccumulator(["a"])
    whole.add(0, depth, truth)
    for index in np.array_split(np.arange(200), parts):
        split.add(0, depth[index], truth[index])
    np.testing.assert_allclose(whole.sums, split.sums)


# ---- masks


def test_mask_scores_by_hand_and_small_movers_do_not_count() -> None:
    truth = np.zeros((100, 100), bool)
    truth[10:30, 10:30] = True  # 400 px: asked for
    truth[60:70, 60:70] = True  # 100 px: neither asked for nor wrong
    asked, small, movers = split_movers(truth)
    assert (asked.sum(), small.sum(), movers) == (400, 100, 1)
    mask = np.zeros_like(truth)
    mask[10:30, 10:20] = True  # half of the mover
    mask[60:70, 60:70] = True  # the small one
    mask[0, :50] = True  # 50 px of the static world
    accumulator = MaskAccumulator(["a"])
    accumulator.add(0, mask, truth)
    score = accumulator.score()
    assert (
        score.iou == pytest.approx(200 / 450)
        and score.recall == pytest.approx(0.5)
        and score.precision == pytest.approx(200 / 250)
    )
    assert score.static_marked == pytest.approx(50 / 9500) and score.movers == 1
    slow = np.zeros_like(truth)
    slow[0, :50] = True
    accumulator = MaskAccumulator(["a"])
    accumulator.add(0, mask, truth, ignore=slow)
    assert accumulator.score("a").static_marked == 0.0


# ---- tracking


def movers(*entries: tuple[int, float, float], asked: bool = True, velocity: float = 5.0) -> Movers:
    position = np.array([[x, y, 0] for _, x, y in entries], np.float64).reshape(-1, 3)
    return Movers(
        np.array([i for i, _, _ in entries], np.int64),
        position,
        np.full_like(position, velocity),
        np.full(len(entries), asked),
    )


def test_tracking_scores_by_hand() -> None:
    accumulator = TrackingAccumulator()
    accumulator.add(movers((1, 0, 0), (2, 10, 0)), movers((7, 0.5, 0), (8, 10, 1)))  # both found
    accumulator.add(
        movers((1, 10, 0), (9, 50, 50)), movers((7, 0, 0), (8, 10, 0))
    )  # 8 is now track 1, 7 is lost, 9 is invented
    score = accumulator.score()
    assert (score.matches, score.movers, score.switches) == (3, 4, 1)
    assert score.mota == pytest.approx(1 - (1 + 1 + 1) / 4)
    assert score.precision == pytest.approx(3 / 4) and score.recall == pytest.approx(3 / 4)
    assert score.position_error == pytest.approx(0.5) and score.velocity_error == 0.0


def test_a_mover_that_is_not_asked_for_is_no_miss_and_no_invention() -> None:
    accumulator = TrackingAccumulator()
    accumulator.add(movers((1, 0, 0)), movers((7, 0.5, 0), asked=False))
    accumulator.add(movers(), movers((7, 0.5, 0), asked=False))
    score = accumulator.score()
    assert (
        (score.matches, score.movers) == (0, 0)
        and np.isnan(score.mota)
        and np.isnan(score.precision)
    )


def test_two_tracks_on_one_mover_are_one_too_many_and_neighbours_keep_their_pairs() -> None:
    accumulator = TrackingAccumulator()
    accumulator.add(movers((1, 0, 0), (2, 0.5, 0)), movers((7, 0, 0)))
    assert accumulator.score().precision == pytest.approx(0.5)
    accumulator = TrackingAccumulator()
    accumulator.add(movers((1, 0, 0), (2, 3, 0)), movers((7, 0, 0), (8, 3, 0)))
    accumulator.add(
        movers((1, 1.4, 0), (2, 1.6, 0)), movers((7, 1.6, 0), (8, 1.4, 0))
    )  # they pass each other
    assert accumulator.score().switches == 0


# ---- clouds


def test_cloud_scores_by_hand() -> None:
    truth = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]])
    score = score_cloud(np.array([[0.0, 0.1, 0], [1, 0.1, 0], [2, 5, 0]]), truth, threshold=0.3)
    assert (
        score.accuracy == pytest.approx(0.1)
        and score.precision == pytest.approx(2 / 3)
        and score.recall == pytest.approx(0.5)
    )
    assert np.isnan(score_cloud(np.zeros((0, 3)), truth).accuracy)


def test_points_in_a_turned_box() -> None:
    boxes = Boxes(
        np.array([[10.0, 0, 1.0]]), np.array([[4.0, 2.0, 2.0]]), np.array([np.pi / 2])
    )  # its length lies along y
    points = np.array(
        [[10, 1.8, 1], [10, 2.2, 1], [10.8, 0, 1], [11.2, 0, 1], [10, 0, 0.1], [10, 0, 1.8]],
        np.float64,
    )
    np.testing.assert_array_equal(
        inside_boxes(points, boxes), [True, False, True, False, False, True]
    )
    assert not inside_boxes(points[:0], boxes).any()


# ---- the folder of a run, and its truth

RIG = Rig(
    "one",
    (
        Camera(
            "front",
            160,
            120,
            np.array([[100.0, 0, 79.5], [0, 100, 59.5], [0, 0, 1]]),
            np.array([[0, 0, 1, 1.0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], np.float64),
        ),
    ),
)
STAMPS = [1_700_000_000_000_000_123 + 100_000_000 * index for index in range(8)]
CAR = np.array([15.0, 0.0, 1.0])


def world_pose(index: int) -> np.ndarray:
    return se3(
        Rotation.from_euler("z", 0.5).as_matrix(), np.array([100.0 + 0.3 * index, -40.0, 2.0])
    )


def true_depth() -> np.ndarray:
    depth = np.full((120, 160), 25.0, np.float32)
    depth[40:80, 60:100] = 12.0
    return depth


def true_mask() -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[40:80, 60:100] = True
    return mask


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive with truth: a wall 25 m ahead, a car 15 m ahead that drives away at 4 m/s in the
    direction of the view."""
    path = tmp_path_factory.mktemp("truth") / "bag"
    with BagWriter(path) as writer:
        writer.write_tf_static(STAMPS[0], rig_transforms(RIG))
        for index, stamp in enumerate(STAMPS):
            writer.write_image(
                "/camera/front/image_raw/compressed",
                stamp,
                "front",
                np.full((120, 160, 3), 90, np.uint8),
                "rgb8",
                "png",
            )
            writer.write_camera_info("/camera/front/camera_info", stamp, "front", RIG.cameras[0])
            writer.write_odometry("/ground_truth/odom", stamp, world_pose(index), frame_id="world")
            depth = np.round(true_depth() * 256).astype(np.uint16)
            _write_truth_objects(writer, stamp, world_pose(index))
            _write_truth_image(writer, "/ground_truth/front/depth", stamp, depth, "16UC1; png")
            _write_truth_image(
                writer,
                "/ground_truth/front/dynamic_mask",
                stamp,
                true_mask().astype(np.uint8) * 255,
                "mono8; png",
            )
    return path


def _write_truth_image(
    writer: BagWriter, topic: str, stamp: int, image: np.ndarray, form: str
) -> None:
    name = "sensor_msgs/msg/CompressedImage"
    data = np.asarray(cv2.imencode(".png", image)[1]).ravel()
    writer.write(topic, name, writer.type(name)(writer.header(stamp, "front"), form, data), stamp)


def _write_truth_objects(writer: BagWriter, stamp: int, T_world_base: np.ndarray) -> None:
    parts = (
        "Point",
        "Quaternion",
        "Pose",
        "PoseWithCovariance",
        "Vector3",
        "Twist",
        "TwistWithCovariance",
    )
    make = {
        name.rsplit("/", 1)[-1]: writer.type(name)
        for name in (
            *(f"geometry_msgs/msg/{part}" for part in parts),
            "recon4d_msgs/msg/DynamicObject",
            "recon4d_msgs/msg/DynamicObjectArray",
        )
    }
    center = T_world_base[:3, :3] @ CAR + T_world_base[:3, 3]
    velocity = T_world_base[:3, :3] @ [4.0, 0, 0]
    pose = make["Pose"](
        make["Point"](*map(float, center)),
        make["Quaternion"](0.0, 0.0, float(np.sin(0.25)), float(np.cos(0.25))),
    )
    twist = make["Twist"](make["Vector3"](*map(float, velocity)), make["Vector3"](0.0, 0.0, 0.0))
    car = make["DynamicObject"](
        9,
        make["PoseWithCovariance"](pose, np.zeros(36)),
        make["Vector3"](4.0, 3.0, 3.0),
        make["TwistWithCovariance"](twist, np.zeros(36)),
        1.0,
        0,
        0,
        "car",
        1.0,
    )
    name = "recon4d_msgs/msg/DynamicObjectArray"
    writer.write(
        "/ground_truth/objects",
        name,
        make["DynamicObjectArray"](writer.header(stamp, "world"), [car]),
        stamp,
    )


def results(depth_scale: float = 1.0) -> list[Reconstruction]:
    calibration = make_calibration(RIG, (120, 160), (120, 160))
    preprocessor = Preprocessor(RIG, calibration, 3)
    png = np.asarray(cv2.imencode(".png", np.full((120, 160, 3), 90, np.uint8))[1]).ravel()
    out = []
    for index, stamp in enumerate(STAMPS):
        frame_set = FrameSet(stamp, {"front": RawImage(stamp, "png", png)})
        pose = inverse(world_pose(0)) @ world_pose(index)
        depth = depth_scale * true_depth()[None]
        geometry = Geometry(
            depth,
            np.full_like(depth, 0.1),
            np.full_like(depth, 0.9),
            np.full((1, 120, 160, 3), 90, np.uint8),
        )
        size, velocity = np.array([4.0, 2, 1.5]), np.array([4.0, 0, 0])
        mover = DynamicObject(
            3, pose[:3, 3] + CAR, 0.0, size, velocity, np.eye(3), np.eye(3), 0.9, index, 0
        )
        nothing = MapDelta(
            index,
            0.2,
            *(np.zeros((0, 3), t) for t in (np.int32, np.float32, np.uint8)),
            np.zeros(0, np.float32),
            np.zeros((0, 3), np.int32),
        )
        estimate = PoseEstimate(
            pose, pose @ RIG.T_base_camera, Tracking.TRACKING, np.eye(6), np.eye(6), np.zeros(6)
        )
        out.append(
            Reconstruction(
                frame_set,
                preprocessor(frame_set)[0],
                estimate,
                geometry,
                Motion(true_mask()[None], (mover,)),
                nothing,
                {"engine": 0.01},
                0.0,
            )
        )
    return out


def write_run(out: Path, bag: Path | None, save_frames: bool, depth_scale: float = 1.0) -> dict:
    calibration = make_calibration(RIG, (120, 160), (120, 160))
    preprocessor = Preprocessor(RIG, calibration, 3)
    mapper = Mapper(calibration, MappingParameters(max_voxels=20_000))
    writer = RunWriter(
        out, rig=RIG, save_frames=save_frames, evaluator=Evaluator(bag, RIG) if bag else None
    )
    for result in results(depth_scale):
        mapper(result.pose, result.geometry, result.motion.mask, result.frame.stamp_ns)
        writer.add(result, preprocessor)
    summary = writer.finish(mapper, {"frames": len(STAMPS)})
    return summary


def test_a_run_is_written_as_the_contract_says_and_scored_alike_live_and_from_its_files(
    bag: Path, tmp_path: Path
) -> None:
    summary = write_run(tmp_path / "run", bag, save_frames=True, depth_scale=1.1)
    out = tmp_path / "run"
    lines = (out / "trajectory.tum").read_text().splitlines()
    assert len(lines) == len(STAMPS)
    assert lines[0].split() == [
        "1700000000.000000123",
        *["0.000000"] * 3,
        *["0.000000000"] * 3,
        "1.000000000",
    ]
    stamps, poses = read_trajectory(out / "trajectory.tum")
    np.testing.assert_array_equal(stamps, STAMPS)
    np.testing.assert_allclose(poses[-1], inverse(world_pose(0)) @ world_pose(7), atol=1e-6)
    assert [entry.ids.tolist() for entry in read_objects(out / "objects.jsonl")] == [[3]] * len(
        STAMPS
    )
    saved = read_depth(out / "depth" / "front" / f"{STAMPS[2]}.png")
    assert saved is not None and saved.shape == (120, 160)
    np.testing.assert_allclose(saved[5:-5, 5:-5], 1.1 * true_depth()[5:-5, 5:-5], atol=1 / 256)
    assert (
        json.loads((out / "summary.json").read_text())["map_points"] == summary["map_points"] > 100
    )
    picture = cv2.imread(str(out / "overview.png"))
    assert picture is not None and picture.shape[1] == 2000 and picture.std() > 10

    live, later = summary["metrics"], evaluate_run(out, bag)
    assert live["trajectory"]["ate_first"] == pytest.approx(0.0, abs=1e-6) and live["trajectory"][
        "path"
    ] == pytest.approx(2.1)
    assert live["depth"]["near"]["abs_rel"] == pytest.approx(0.1, abs=1e-3)
    assert live["depth"]["near"]["pixels"] == 8 * (120 * 160 - 1600)  # static pixels only
    assert live["depth"]["near_confident"]["coverage"] == live["depth"]["near"]["coverage"] > 0.95
    assert live["masks"]["iou"] > 0.95 and live["masks"]["movers"] == 8
    assert 0.4 < live["cloud"]["accuracy"] < 2.5  # 10 % of 25 m behind a wall that moved 2.1 m
    objects = live["objects"]
    assert (objects["matches"], objects["movers"], objects["switches"]) == (8, 8, 0) and objects[
        "mota"
    ] == 1.0
    assert objects["velocity_error"] == pytest.approx(0.0, abs=1e-6) and objects[
        "position_error"
    ] == pytest.approx(0.0, abs=1e-6)
    assert live["map_swept"]["boxes"] == 8 and live["map_swept"]["inside"] == 0
    for part in ("trajectory", "masks", "cloud", "objects", "map_swept"):
        for name, value in live[part].items():
            if isinstance(value, float):
                assert later[part][name] == pytest.approx(value, abs=1e-4, nan_ok=True), (
                    part,
                    name,
                )
    assert later["depth"]["near"]["abs_rel"] == pytest.approx(
        live["depth"]["near"]["abs_rel"], abs=1e-4
    )
    report = format_report(summary)
    assert (
        "AbsRel 0.100" in report
        and "drift" in report
        and "IoU" in report
        and format_report(later).splitlines()[0] in report
    )


def test_runs_repeat_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, None, save_frames=False)
    for file in ("trajectory.tum", "map.ply", "objects.jsonl", "summary.json", "overview.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_folder_in_use_is_left_alone_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not empty"):
        RunWriter(out, rig=RIG)
    RunWriter(out, rig=RIG, force=True, save_frames=True)
    assert (out / "mine.txt").read_text() == "keep" and (out / "depth" / "front").is_dir()


@pytest.mark.parametrize("out", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_one_sentence(out: str) -> None:
    with pytest.raises(OutputError, match=r"cannot write output folder .*run: ") as error:
        RunWriter(out, rig=RIG)
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_up_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path / "run", rig=RIG, save_frames=True)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    preprocessor = Preprocessor(RIG, make_calibration(RIG, (120, 160), (120, 160)), 3)
    with pytest.raises(OutputError, match="No space left on device"):
        writer.add(results()[0], preprocessor)


def test_damaged_runs_and_bags_without_truth_are_one_sentence(tmp_path: Path, bag: Path) -> None:
    with pytest.raises(Recon4dError, match="cannot be read"):
        evaluate_run(tmp_path / "missing", bag)
    (tmp_path / "trajectory.tum").write_text("1.0 2 3\n")
    with pytest.raises(Recon4dError, match="line 1: expected seconds x y z"):
        evaluate_run(tmp_path, bag)
    (tmp_path / "trajectory.tum").write_text("1.0 a b c d e f g\n")
    with pytest.raises(Recon4dError, match="damaged"):
        evaluate_run(tmp_path, bag)
    (tmp_path / "objects.jsonl").write_text("{]\n")
    with pytest.raises(Recon4dError, match="line 1 is damaged"):
        list(read_objects(tmp_path / "objects.jsonl"))


def test_truth_between_samples_and_outside(bag: Path) -> None:
    truth = Truth(bag)
    middle = truth.pose(STAMPS[0] + 50_000_000)
    assert middle is not None
    np.testing.assert_allclose(middle[:3, 3], [100.15, -40, 2], atol=1e-5)
    assert truth.pose(STAMPS[0] - 1) is None and truth.pose(STAMPS[-1] + 1) is None
    assert truth.depth("front", STAMPS[3]) is not None and truth.depth("back", STAMPS[3]) is None
    assert truth.depth("front", STAMPS[3] + 50_000_000) is None, "of another time"
    assert truth.points(STAMPS[3], 10**9) is None, "there is no lidar"
    truth.close()


# ---- small parts


def test_tum_lines_keep_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "t.tum"
    path.write_text(tum_line(1_234_567_890_123_456_789, np.eye(4)) + tum_line(5, np.eye(4)))
    assert read_trajectory(path)[0].tolist() == [1_234_567_890_123_456_789, 5]


def test_depth_files_keep_what_sixteen_bits_can(tmp_path: Path) -> None:
    depth = np.array([[np.nan, 0.0, -1.0, np.inf], [0.001, 1.0, 255.9, 300.0]], np.float32)
    write_depth(tmp_path / "d.png", depth)
    back = read_depth(tmp_path / "d.png")
    assert back is not None and np.isnan(back[0]).all() and np.isnan(back[1, 3])
    np.testing.assert_allclose(back[1, :3], [1 / 256, 1.0, 255.9], atol=1 / 512 + 1e-6)


def test_json_has_no_nan() -> None:
    assert without_nan({"a": [float("nan"), 1.0, (float("inf"), "x")]}) == {
        "a": [None, 1.0, [None, "x"]]
    }


def test_lidar_points_behind_what_the_camera_sees_are_left_out() -> None:
    points = np.array([[11.0, 0, 1.5], [31.0, 0.0, 1.5], [31.0, 10.0, 1.5], [-5.0, 0, 1.5]])
    pixels, depth = project_visible(points, replace(RIG.cameras[0]))
    np.testing.assert_allclose(sorted(depth), [10.0, 30.0])
    assert pixels[np.argmin(depth)].tolist() == [80, 60]


def test_point_clouds_of_any_layout_are_read() -> None:
    packed = np.zeros(3, np.dtype([("i", ">u2"), ("z", ">f4"), ("y", ">f4"), ("x", ">f4")]))
    packed["x"], packed["y"], packed["z"] = [1, 2, np.nan], [3, 4, 5], [6, 7, 8]
    fields = [SimpleNamespace(name=name, offset=packed.dtype.fields[name][1]) for name in "zyxi"]  # type: ignore[index]
    message = SimpleNamespace(
        fields=fields, is_bigendian=True, point_step=14, width=3, height=1, data=packed.tobytes()
    )
    np.testing.assert_array_equal(cloud_points(message), [[1, 3, 6], [2, 4, 7]])
    with pytest.raises(MessageError, match="no field intensity: it has z, y, x, i"):
        point_rows(message, ["x", "intensity"])


def test_where_movers_drove_is_told_by_the_pose_with_which_the_place_was_mapped(bag: Path) -> None:
    """A run that turns by 0.1 rad after its first frames has the map, which is made near the car,
    turned with it."""
    evaluator = Evaluator(bag, RIG)
    turned = se3(Rotation.from_euler("z", 0.1).as_matrix(), np.zeros(3))
    poses = [inverse(world_pose(0)) @ world_pose(index) for index in range(len(STAMPS))]
    poses = [pose if index < 4 else turned @ pose for index, pose in enumerate(poses)]
    for index, stamp in enumerate(STAMPS):
        nothing = objects_at(stamp, ())
        evaluator.add(
            stamp, np.array([stamp]), poses[index], lambda n: None, lambda n: None, nothing
        )
    boxes = evaluator.swept
    expected = np.stack(
        [
            (
                poses[-1]
                @ inverse(world_pose(7))
                @ np.append(world_pose(index)[:3, :3] @ CAR + world_pose(index)[:3, 3], 1)
            )[:3]
            for index in range(8)
        ]
    )
    np.testing.assert_allclose(
        boxes.center, expected, atol=1e-6
    )  # every place was nearest to the car in its last frame
    assert np.allclose(boxes.yaw, boxes.yaw[0])
    assert len(Evaluator(bag, RIG).swept.yaw) == 0
