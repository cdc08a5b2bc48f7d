"""UniScene's training: labels against the simulated world's truth, the loss of the detection head,
what carries over from a checkpoint, a run that learns, goes on and is exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_files import manifest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs PyTorch (requirements/dev.txt)")

from recon4d_ros import bev  # noqa: E402
from recon4d_ros.bags import BagWriter, rig_transforms  # noqa: E402
from recon4d_ros.cameras.rig import load_rig  # noqa: E402
from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.errors import BagError, EngineError  # noqa: E402
from recon4d_ros.evaluation.metrics.detection import (  # noqa: E402
    Found,
    average_precision,
    mean_average_precision,
)
from recon4d_ros.geometry import inverse, se3, transform  # noqa: E402
from recon4d_ros.networks import checkpoint, uniscene  # noqa: E402
from recon4d_ros.networks.mended_labels import (  # noqa: E402
    FREE,
    OCCUPIED,
    UNKNOWN,
    MovingBoxes,
    Sweep,
    inside_any,
    mended_labels,
    passed,
)
from recon4d_ros.networks.occupancy_labels import LabelRule  # noqa: E402
from recon4d_ros.paths import rigs  # noqa: E402
from recon4d_ros.sim.simulate import START_NS  # noqa: E402
from recon4d_ros.training import uniscene_bags as bags  # noqa: E402
from recon4d_ros.training import uniscene_data as data  # noqa: E402
from recon4d_ros.training.run_folder import RunFolder, cosine, warmed_up  # noqa: E402
from recon4d_ros.training.set_prediction import Targets, match, set_loss, targets_of  # noqa: E402
from recon4d_ros.training.uniscene import (  # noqa: E402
    Recipe,
    Shard,
    Trainer,
    look,
    mirror,
)
from recon4d_ros.training.uniscene_start import start_network, what_carries_over  # noqa: E402

SIZE = (32, 64)
TINY = uniscene.Configuration(
    "occupancy", 18, width=16, rows=12, columns=14, cameras=3, encoders=1, decoders=2, queries=12,
    levels_z=4, reach=16.0, bottom=-1.0, top=3.0, geometry="mended",
)  # fmt: skip
RULE = LabelRule((-8.0, -8.0, -1.0), (8.0, 8.0, 3.0), (33, 33, 9))  # voxels of half a metre


def three_cameras():
    rig = load_rig(rigs() / "nuscenes_like.yaml")
    return type(rig)("three", rig.cameras[:3])


def tiny_shard(seed: int = 0, count: int = 4) -> dict[str, np.ndarray]:
    """A car that drives ahead past a wall and a car; nothing of it is rendered."""
    rng = np.random.default_rng(seed)
    small = data.working_rig(three_cameras(), SIZE)
    occupancy = np.full((count, TINY.columns, TINY.rows, TINY.levels_z), UNKNOWN, np.uint8)
    occupancy[:, 7:-1, 1:-1, 1:-1] = FREE
    occupancy[:, 7:-1, 2, 1:-1] = OCCUPIED
    poses = np.stack([se3(np.eye(3), np.array([3.0 * t, 0, 0])) for t in range(count)])
    images = rng.integers(0, 255, (count, 3, *SIZE, 3), np.uint8)
    return {
        "images": images,
        "present": np.ones((count, 3), bool),
        "covered": np.ones((3, *SIZE), bool),
        "lidar": np.array([1.0, 0.2, 1.8]),
        "k": np.stack([camera.k for camera in small.cameras]),
        "T_base_camera": small.T_base_camera,
        "T_map_base": poses,
        "velocity": np.tile([6.0, 0, 0, 0, 0, 0], (count, 1)),
        "occupancy": occupancy,
        "labels": np.array(data.labels_of(TINY)),
        "boxes": np.array(
            [[9 - 2.0 * t, 3, 0.8, 4, 1.8, 1.6, 0.1, 2, 0] for t in range(count)], np.float32
        ),
        "box_class": np.zeros(count, np.int64),
        "box_frame": np.arange(count),
    }


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (0, 1, 4):  # the last is held out
        data.write_shard(tiny_shard(number), folder / f"{number:05d}.npz")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other spin, on a machine with other work for minutes."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


# --- labels


def voxel(point: np.ndarray) -> tuple[int, ...]:
    return tuple(np.floor((point - RULE.low) / RULE.voxel_size).astype(int).tolist())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rays_go_through_what_fine_steps_find(seed: int) -> None:
    """Every voxel that a point well inside of it lies in is found, and none far from the rays."""
    rng = np.random.default_rng(seed)
    starts, ends = (rng.uniform(-12, 12, (6, 3)) * (1, 1, 0.3) for _ in range(2))
    found = passed(starts, ends, RULE)
    steps = np.linspace(0, 1, 400)[:, None]
    wanted = np.zeros(RULE.shape, bool)
    for a, b in zip(starts, ends, strict=True):
        place = (a + steps * (b - a) - RULE.low) / RULE.voxel_size
        last = np.floor((b - RULE.low) / RULE.voxel_size)
        clear = (np.abs(place - np.rint(place)) > 1e-3).all(1) & (np.floor(place) != last).any(1)
        index = np.floor(place[clear]).astype(int)
        index = index[((index >= 0) & (index < RULE.shape)).all(1)]
        wanted[tuple(index.T)] = True
    assert not (wanted & ~found).any()
    assert found.sum() <= wanted.sum() + 6 * 12, "corners that steps jump over, and no more"


def test_a_wall_hides_what_is_behind_it() -> None:
    y, z = np.meshgrid(np.linspace(-3, 3, 60), np.linspace(-0.4, 2.4, 30))
    wall = np.stack([np.full(y.size, 4.2), y.ravel(), z.ravel()], 1)
    sweep = Sweep(wall, np.array([0.1, 0.1, 1.1]), np.eye(4), MovingBoxes.none())
    labels = mended_labels([sweep], 0, RULE)

    def at(x: float, y: float, z: float) -> int:
        return int(
            labels[tuple(np.floor((np.array([x, y, z]) - RULE.low) / RULE.voxel_size).astype(int))]
        )

    assert at(4.2, 0.1, 1.1) == OCCUPIED and at(2.2, 0.1, 1.1) == FREE
    assert at(6.2, 0.1, 1.1) == UNKNOWN and at(-3.2, 0.1, 1.1) == UNKNOWN
    border = np.ones(RULE.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert (labels[border] == UNKNOWN).all()


def test_what_moves_leaves_no_trail() -> None:
    """A car drives ahead of ours; a post stands beside the road."""
    rng = np.random.default_rng(0)
    sweeps = []
    for t in range(4):
        centre = np.array([5.0 + 0.5 * t, 1.0, 0.7])
        pose = se3(np.eye(3), np.array([1.0 * t, 0, 0]))  # ours follows: the gap shrinks
        on_car = centre + rng.uniform(-0.5, 0.5, (200, 3)) * (1.0, 1.6, 1.2)
        post = np.array([6.0 - 1.0 * t, -3.0, 1.2]) + rng.uniform(-0.1, 0.1, (50, 3))
        box = MovingBoxes(centre[None], np.array([[1.2, 1.8, 1.4]]), np.zeros(1))
        sweeps.append(Sweep(np.concatenate([on_car, post]), np.array([0.0, 0, 1.6]), pose, box))
    still = [replace(s, moving=MovingBoxes.none()) for s in sweeps]
    for key in (0, 3):
        mended, naive = mended_labels(sweeps, key, RULE), mended_labels(still, key, RULE)
        for point in (sweeps[key].moving.centre[0], sweeps[key].points[-1]):
            assert mended[voxel(point)] == OCCUPIED, "it is where it is, and so is the post"
        assert (naive == OCCUPIED).sum() > 1.3 * (mended == OCCUPIED).sum(), "a trail"


@pytest.mark.full
def test_a_simulated_drive_is_labelled_where_things_are() -> None:
    """Of a rendered drive: every box that is asked for has an occupied voxel in it."""
    c = replace(TINY, rows=24, columns=24, levels_z=8)
    images, data.IMAGES = data.IMAGES, 3
    try:
        shard = data.simulated_drive(
            data.Piece("city", 0, 4), three_cameras(), SIZE, c, np.zeros(3)
        )
    finally:
        data.IMAGES = images
    occupancy, rule = shard["occupancy"], data.label_rule(c)
    assert occupancy.shape == (3, 24, 24, 8) and set(np.unique(occupancy)) == {0, 1, 2}
    assert 0.01 < (occupancy == OCCUPIED).mean() < (occupancy == FREE).mean() < 0.6
    centres = (np.indices(rule.shape).reshape(3, -1).T + 0.5) * rule.voxel_size + rule.low
    asked = 0
    for box, t in zip(shard["boxes"], shard["box_frame"], strict=True):
        if np.abs(box[:2]).max() > 0.9 * c.reach:
            continue
        grown = MovingBoxes(box[None, :3], box[None, 3:6] + rule.voxel_size, box[None, 6])
        near = inside_any(centres, grown).reshape(rule.shape)
        assert (occupancy[t][near] == OCCUPIED).any()
        asked += 1
    assert asked >= 3 and (shard["boxes"][:, 3:6] > 0.3).all()


# --- the loss


def test_targets_are_what_the_published_detector_says() -> None:
    """Boxes go to the network's numbers and back by uniscene.detections."""
    boxes = np.array([[10.0, -4, 0.9, 4.5, 1.9, 1.6, 0.6, 3.0, 1.0]])
    lidar = np.array([0.94, 0.0, 1.84])
    for geometry in uniscene.GEOMETRIES:
        c = replace(TINY, kind="detection", geometry=geometry, reach=51.2)
        box, label = targets_of(boxes, np.array([0]), c, lidar)
        found = uniscene.detections(torch.tensor([[9.0]]), box, 1).box[0].numpy()
        x, y, bottom, width, length, height, yaw, vx, vy = found
        heading = yaw
        if geometry == "published":  # uniscene.Detections; then from the lidar's axes to ours
            heading = (-yaw - np.pi / 2) - np.pi / 2
            x, y, bottom, vx, vy = y + lidar[0], -x, bottom + lidar[2], vy, -vx
        np.testing.assert_allclose([x, y, bottom + height / 2], boxes[0, :3], atol=1e-5)
        np.testing.assert_allclose([length, width, height], boxes[0, 3:6], rtol=1e-5)
        np.testing.assert_allclose([vx, vy], boxes[0, 7:], atol=1e-5)
        assert np.cos(heading - 0.6) == pytest.approx(1, abs=1e-6)
        assert label.tolist() == [0]
    far = boxes + np.eye(9)[0] * 100
    assert len(targets_of(far, np.array([0]), replace(TINY, kind="detection"), lidar).label) == 0


def test_every_true_box_gets_the_query_that_says_it() -> None:
    torch.manual_seed(0)
    truth = Targets(torch.randn(3, 10), torch.tensor([2, 0, 2]))
    scores, boxes = torch.full((6, 4), -4.0), torch.randn(6, 10) + 8
    for query, true in ((4, 0), (1, 1), (5, 2)):
        scores[query, truth.label[true]] = 3.0
        boxes[query] = truth.box[true]
    query, true = match(scores, boxes, truth)
    assert dict(zip(true.tolist(), query.tolist(), strict=True)) == {0: 4, 1: 1, 2: 5}
    right = set_loss(uniscene.Boxes(scores[None], boxes[None]), truth)
    worse = boxes.clone()
    worse[4, 0] += 1.0
    moved = set_loss(uniscene.Boxes(scores[None], worse[None]), truth)
    assert float(moved - right) == pytest.approx(0.25 / 3, rel=1e-4)
    none = Targets(torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))
    assert np.isfinite(float(set_loss(uniscene.Boxes(scores[None], boxes[None]), none)))


def test_average_precision_of_what_is_known() -> None:
    frame, xy = np.array([0, 0, 1]), np.array([[0.0, 0], [5, 0], [0, 0]])
    perfect = average_precision(frame, xy, np.array([0.9, 0.8, 0.7]), frame, xy, 0.5)
    assert perfect == pytest.approx(1.0)
    assert average_precision(frame, xy + 3, np.ones(3), frame, xy, 0.5) == 0.0
    twice = average_precision(
        np.repeat(frame, 2), np.repeat(xy, 2, 0), np.tile([0.9, 0.8], 3), frame, xy, 0.5
    )
    assert 0.5 < twice < 1, "the second box of a thing is wrong"
    found = Found(frame, np.array([0, 0, 1]), xy, np.ones(3))
    score, by_class = mean_average_precision(found, found)
    assert score == pytest.approx(1.0) and set(by_class) == {0, 1}


# --- what a run starts from


def test_what_carries_over_at_the_published_sizes() -> None:
    """857 of 873 tensors, as the authors' code takes them."""
    with torch.device("meta"):
        own = {name: torch.empty(x) for name, x in manifest("uniscene_full_detection").items()}
        kept = {name: torch.empty(x) for name, x in manifest("uniscene_full").items()}
    told = what_carries_over(Path("epoch_24.pth"), kept, own)
    assert (told.taken, len(told.left), len(told.new)) == (857, 16, 232)
    assert "857 of 873 tensors carry over" in told.sentence
    assert "transformer.predicter" in told.sentence


def test_the_start_is_the_published_one() -> None:
    network = start_network(replace(TINY, kind="detection"), 0)
    layer = network.head.transformer.encoder["layers"][0]
    spatial = layer.attentions[1].deformable_attention
    ring = spatial["sampling_offsets"].bias.reshape(8, 4, 8, 2)
    assert not spatial["sampling_offsets"].weight.any()
    torch.testing.assert_close(ring[0, 0], torch.tensor([[i + 1.0, 0] for i in range(8)]))
    torch.testing.assert_close(ring[2, 3, :, 1], torch.arange(1.0, 9.0))
    temporal = layer.attentions[0].sampling_offsets.bias.reshape(8, 2, 4, 2)
    torch.testing.assert_close(temporal[4, 1, :, 0], -torch.arange(1.0, 5.0))
    box = network.head.transformer.decoder["layers"][0].attentions[1].sampling_offsets.bias
    torch.testing.assert_close(box.reshape(8, 4, 2)[0, :, 0], torch.arange(1.0, 5.0))


# --- a run


def test_it_learns_and_goes_on_and_is_exported(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(steps=8, rate=2e-3, backbone=1.0, warm_up=2)
    first = Trainer(shards, tmp_path / "pre", TINY, recipe)
    assert len(first.drives) == 2 and len(first.held_out) == 1
    losses = [first.one_step() for _ in range(7)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])
    first.step = 7
    score = first.run()
    assert 0 <= score["iou"] <= 1
    log = [json.loads(line) for line in (tmp_path / "pre" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 8 and log[-1]["iou"] == score["iou"]
    again = Trainer(shards, tmp_path / "pre", TINY, recipe)
    assert again.step == 8
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    last = tmp_path / "pre" / "last.pt"
    detector = replace(TINY, kind="detection")
    fine = Trainer(shards, tmp_path / "fine", detector, replace(recipe, steps=1), init=last)
    assert fine.carried_over is not None and len(fine.carried_over.left) == 16
    name = "pts_bbox_head.bev_embedding.weight"
    assert torch.equal(fine.network.state_dict()[name], first.network.state_dict()[name])
    assert "map" in fine.run()
    for run, wanted in (("pre", TINY), ("fine", detector)):
        known = checkpoint.identify(tmp_path / run / "last.pt")
        assert known.problems == () and known.configuration.geometry == "mended"
        assert known.configuration.reach == wanted.reach and known.configuration.kind == wanted.kind
    with pytest.raises(EngineError, match="of another run"):
        Trainer(shards, tmp_path / "pre", replace(TINY, reach=20.0), recipe)
    with pytest.raises(EngineError, match="its labels are"):
        Trainer(shards, tmp_path / "new", replace(TINY, levels_z=8), recipe)


def test_the_trained_network_is_what_the_step_computes(shards: Path, tmp_path: Path) -> None:
    """What training gives the network is what an engine's host gives it: export in the mended
    geometry, both kinds."""
    from recon4d_ros.cameras.calibration import make_calibration
    from recon4d_ros.engine import occupancy as host
    from recon4d_ros.networks.step import StepOptions

    rig = data.working_rig(three_cameras(), SIZE)
    calibration = make_calibration(rig, SIZE, SIZE)
    arrays = tiny_shard()
    for kind in uniscene.KINDS:
        c = replace(TINY, kind=kind)
        network = start_network(c, 1).eval()
        options = StepOptions(3, SIZE, SIZE, 3, 8)
        step = checkpoint.make_step(network, "uniscene", options, {}, calibration).eval()
        assert step.described["grid_frame"] == "base_link" and step.described["mended_shift"] == 1
        assert step.described["lidar"] == [0.0, 0.0, 0.0]
        shard, before, memory = Shard(arrays, c), None, step_memory(step)
        state = None
        for t in range(2):
            with torch.no_grad():
                out, before = look(network, shard, t, before)
            now = shard.state(t)
            given = bev.streamed(now, state)
            state = now
            shifts = bev.history_shifts(given, c.grid, c.in_lidar, True)
            points = bev.project_pillars(c.grid, bev.image_from_grid(calibration), SIZE)
            tables = bev.cells_in_view(*points, step.slots, step.views)
            with torch.no_grad():
                got = step(
                    torch.from_numpy(arrays["images"][t]),
                    torch.ones(3),
                    torch.from_numpy(calibration.grid),
                    torch.from_numpy(given).float(),
                    torch.from_numpy(shifts).float(),
                    torch.from_numpy(bev.turned_cells(given[bev.YAW_DEGREES], c.grid)),
                    *(torch.from_numpy(x) for x in (tables.cell, tables.point, tables.slot)),
                    torch.from_numpy(
                        bev.trained_places(
                            calibration.T_base_camera, tuple(step.described["trained_cameras"])
                        )
                    ),
                    *memory,
                )
            wanted = out.softmax(-1)[..., 1] if kind == "occupancy" else out.scores[-1]
            torch.testing.assert_close(got[0], wanted, rtol=1e-3, atol=1e-4)
            memory = got[-2:]
    assert host.AT_REST[2] == bev.GRAVITY


def step_memory(step) -> tuple:
    return tuple(torch.zeros(shape) for shape in step.memory_shapes().values())


def test_a_mirrored_drive_is_the_same_mirrored() -> None:
    """The network's tables see mirrored cells where the plain ones see theirs."""
    arrays = tiny_shard()
    for c in (TINY, replace(TINY, kind="detection")):
        plain, other = Shard(arrays, c), Shard(arrays, c, mirrored=True)
        seen = [set(shard.views(0).cell.flatten().tolist()) for shard in (plain, other)]
        rows = [{(cell // c.columns, cell % c.columns) for cell in cells} for cells in seen]
        flipped = {(c.rows - 1 - row, column) for row, column in rows[0]}
        assert len(flipped ^ rows[1]) <= 2  # cell 0 fills empty slots
    twice = mirror(mirror(arrays))
    for name, value in arrays.items():
        if value.dtype.kind != "U":
            np.testing.assert_allclose(twice[name], value, atol=1e-9, err_msg=name)
    assert plain.targets(0).box[0, 1] == -other.targets(0).box[0, 1] != 0


def test_the_rate_rises_and_falls() -> None:
    rates = [cosine(step / 100, 1e-3) * warmed_up(step, 10, 1 / 3) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 3 + 1 / 15, abs=1e-3) and max(rates) > 0.97
    assert rates[100] == pytest.approx(1e-3, rel=1e-6) and np.argmax(rates) == 9
    assert (np.diff(rates[9:]) < 0).all()


# --- bags and the command


def write_lidar_bag(path: Path, frame: str = "lidar") -> None:
    """Three cameras and a lidar that drive along a wall on the left, two metres a key frame."""
    import cv2

    rig = data.working_rig(three_cameras(), SIZE)
    mount = se3(np.eye(3), np.array([1.0, 0.0, 1.8]))
    x, z = np.meshgrid(np.linspace(-20, 40, 600), np.linspace(0.2, 2.8, 14))
    wall = np.stack([x.ravel(), np.full(x.size, 5.0), z.ravel()], 1)
    with BagWriter(path) as bag:
        bag.write_tf_static(START_NS, [*rig_transforms(rig), ("base_link", "lidar", mount)])
        for index in range(9):
            stamp = START_NS + index * 250_000_000
            pose = se3(np.eye(3), np.array([1.0 * index, 0, 0]))
            bag.write_odometry("/odom", stamp, pose)
            to = inverse(pose if frame == "base_link" else pose @ mount)
            near = transform(to, wall).astype(np.float32)
            near = near[np.linalg.norm(near[:, :2], axis=1) < 25]
            bag.write_points("/lidar/points", stamp, frame, near)
            for camera in rig.cameras:
                image = np.full((*SIZE, 3), 20 * index, np.uint8)
                jpeg = cv2.imencode(".jpg", image)[1].tobytes()
                bag.write_camera_info(
                    f"/camera/{camera.name}/camera_info", stamp, camera.name, camera
                )
                message = bag.type("sensor_msgs/msg/CompressedImage")(
                    bag.header(stamp, camera.name), "jpeg", np.frombuffer(jpeg, np.uint8)
                )
                bag.write(
                    f"/camera/{camera.name}/image_raw/compressed",
                    "sensor_msgs/msg/CompressedImage", message, stamp,
                )  # fmt: skip


@pytest.mark.parametrize("geometry", uniscene.GEOMETRIES)
def test_a_bags_labels_lie_where_its_lidar_saw_the_wall(tmp_path: Path, geometry: str) -> None:
    write_lidar_bag(tmp_path / "bag")
    c = replace(TINY, rows=32, columns=32, geometry=geometry)
    shard, notes = bags.bag_drive(tmp_path / "bag", SIZE, c, np.zeros(3))
    assert shard["images"].shape == (5, 3, *SIZE, 3)
    assert [int(image.mean()) for image in shard["images"][:, 0]] == [0, 40, 80, 120, 160]
    np.testing.assert_allclose(shard["T_map_base"][:, 0, 3], [0, 2, 4, 6, 8], atol=1e-6)
    np.testing.assert_allclose(shard["velocity"][2, :3], [4, 0, 0], atol=1e-6)
    rule = data.label_rule(c)
    row = int((5.0 - rule.low[1]) / rule.voxel_size[1])
    occupied = shard["occupancy"][2] == OCCUPIED
    assert occupied[8:24, row].any(1).all() and not np.delete(occupied, row, 1).any()
    free = shard["occupancy"][2][:, 17:row, :]
    if geometry == "mended":
        assert (free == FREE).mean() > 0.2 and (shard["occupancy"][2][1:-1, :10] == UNKNOWN).all()
    assert any("no boxes" in note for note in notes)


def test_what_a_bag_lacks_is_said(tmp_path: Path) -> None:
    write_lidar_bag(tmp_path / "bag")
    with pytest.raises(BagError, match=r"labels need a lidar's points.*/lidar/points"):
        bags.bag_drive(tmp_path / "bag", SIZE, TINY, np.zeros(3), bags.BagTopics(lidar="/velodyne"))
    with pytest.raises(BagError, match="labels need odometry"):
        bags.bag_drive(tmp_path / "bag", SIZE, TINY, np.zeros(3), bags.BagTopics(odometry="/gps"))
    with pytest.raises(BagError, match="no boxes on /boxes"):
        bags.bag_drive(tmp_path / "bag", SIZE, TINY, np.zeros(3), bags.BagTopics(boxes="/boxes"))
    write_lidar_bag(tmp_path / "in_base", "base_link")
    _, notes = bags.bag_drive(tmp_path / "in_base", SIZE, TINY, np.array([1.0, 0, 1.8]))
    assert any("does not say where the lidar stands: taken to be 1, 0, 1.8 m" in n for n in notes)


def test_pieces_follow_from_their_numbers() -> None:
    pieces = [data.make_piece(n) for n in range(300)]
    assert pieces == [data.make_piece(n) for n in range(300)]
    assert all(data.FIRST_SEED <= piece.seed < 1000 for piece in pieces)


def test_a_damaged_run_is_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load() is None
    folder.save({"step": 3})
    assert folder.load() == {"step": 3}
    folder.checkpoint.write_bytes(b"PK")
    with pytest.raises(EngineError, match="is no checkpoint of this run"):
        folder.load()


@pytest.mark.full
def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pre-train on a bag, fine-tune, export."""
    write_lidar_bag(tmp_path / "bag")
    out = tmp_path / "run"
    sizes = (
        "depth=18,width=16,rows=12,columns=14,cameras=3,encoders=1,levels_z=4,reach=16,decoders=1,"
        "queries=8"
    )
    common = ["train", "--network", "uniscene", "--size", "32x64", "--steps", "2"]
    given = [*common, "--data", str(tmp_path / "bag"), "--model", sizes]
    assert main([*given, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no boxes" in said and "iou" in said
    fine = [*given[:-2], "--kind", "detection", "--init", str(out / "last.pt")]
    assert main([*fine, "--out", str(tmp_path / "fine"), "--model", "decoders=1,queries=8"]) == 0
    assert "171 of 187 tensors carry over" in capsys.readouterr().out
    theirs = [*given, "--labels", "published", "--out", str(tmp_path / "published")]
    assert main([*theirs, "--steps", "1"]) == 0
    assert "--option lidar_x=1 --option lidar_y=0 --option lidar_z=1.8" in capsys.readouterr().out
    assert main([*given, "--out", str(tmp_path / "x"), "--size", "30x64"]) == 2
    assert "multiples of 32" in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "x"), "--init", str(tmp_path / "none.pt")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.full
def test_a_real_bags_lidar_is_read(ddad_bag: Path) -> None:
    """Six cameras and a lidar, 0.2 s: one key frame, three sweeps. Nothing is trained on it."""
    c = replace(TINY, cameras=6, rows=50, columns=50, levels_z=8, reach=25.6)
    shard, notes = bags.bag_drive(ddad_bag, SIZE, c, np.array([0.94, 0, 1.84]))
    assert shard["images"].shape == (1, 6, *SIZE, 3) and shard["images"].std() > 20
    share = [(shard["occupancy"] == label).mean() for label in (FREE, OCCUPIED, UNKNOWN)]
    assert 0.02 < share[1] < 0.3 and share[0] > 0.1
    assert any("where the lidar stands" in note for note in notes)
