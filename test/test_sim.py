"""The procedural world's truth is exact, its rigs render, and the same seed gives the same
bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.cameras.distortion import to_pixels, to_rays
from recon4d_ros.cameras.rig import load_rig
from recon4d_ros.errors import OutputError
from recon4d_ros.geometry import exp, inverse, log, transform
from recon4d_ros.paths import rigs
from recon4d_ros.sim import models
from recon4d_ros.sim.bag import depth_png, write_bag
from recon4d_ros.sim.models import Body
from recon4d_ros.sim.raster import FIRST, GROUND, cast
from recon4d_ros.sim.road import PAVEMENT, Road
from recon4d_ros.sim.simulate import HORIZON_S, Drive, SimFrame, Simulator, simulate, swept_by
from recon4d_ros.sim.solids import FACES, Skin, box, concatenate, cylinder, ellipsoid
from recon4d_ros.sim.view import make_view
from recon4d_ros.types import Camera, Rig

RIGS = ("nuscenes_like", "kitti_like", "mono", "fisheye_surround", "stereo_plumb_bob")


def small(rig: Rig, divide: int = 2) -> Rig:
    """The same rig with images of a fraction of the size, to be quick."""
    cameras = []
    for camera in rig.cameras:
        k = camera.k / divide
        k[2, 2] = 1.0
        k[:2, 2] = (camera.k[:2, 2] + 0.5) / divide - 0.5
        cameras.append(
            replace(camera, width=camera.width // divide, height=camera.height // divide, k=k)
        )
    return Rig(rig.name, tuple(cameras))


@pytest.fixture(scope="module")
def surround() -> Simulator:
    return Simulator(small(load_rig(rigs() / "nuscenes_like.yaml")), seconds=20.0)


@pytest.fixture(scope="module")
def drive(surround: Simulator) -> Drive:
    return surround.drive


@pytest.fixture(scope="module")
def road() -> Road:
    return Road(3, 3200.0)


@pytest.fixture(scope="module")
def frames(surround: Simulator) -> list[SimFrame]:
    return [surround.frame(index) for index in (40, 41, 120)]


def world_points(frame: SimFrame, camera: Camera, number: int) -> np.ndarray:
    """[H, W, 3] world points of a picture's depth; NaN for the sky."""
    v, u = np.indices(frame.depth[number].shape, dtype=np.float64)
    rays = to_rays(camera, np.stack([u, v], -1))
    depth = frame.depth[number].astype(np.float64)
    return transform(
        frame.T_world_base @ camera.T_base_camera,
        np.stack([rays[..., 0] * depth, rays[..., 1] * depth, depth], -1),
    )


def seen_again(
    points: np.ndarray, frame: SimFrame, camera: Camera, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (nearest, [K, 2] int), their depth z, and which points [K, 3] fall into another
    picture."""
    local = transform(inverse(frame.T_world_base @ camera.T_base_camera), points)
    z = local[:, 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        pixels = to_pixels(camera, np.where(z[:, None] > 0.3, local[:, :2] / z[:, None], np.nan))
        inside = (
            (pixels > 0.5).all(1)
            & (pixels[:, 0] < camera.width - 1.5)
            & (pixels[:, 1] < camera.height - 1.5)
        )
    return np.where(inside[:, None], pixels, 0.0), z, inside


@pytest.mark.parametrize("name", RIGS)
def test_every_rig_renders(name: str) -> None:
    rig = small(load_rig(rigs() / f"{name}.yaml"))
    frame = Simulator(rig).frame(10)
    for picture, camera in zip(frame.pictures, rig.cameras, strict=True):
        assert (
            picture.image.shape == (camera.height, camera.width, 3)
            and picture.image.dtype == np.uint8
        )
        assert (
            picture.depth.dtype == np.float32
            and picture.instance.dtype == np.int32
            and picture.moving.dtype == bool
        )
        seen = np.isfinite(picture.depth)
        assert 0.3 < seen.mean() <= 1.0 and picture.depth[seen].min() > 0.1
        grey = picture.image[seen].mean(-1)
        assert (
            30 < grey.mean() < 200 and grey.std() > 12
        )  # neither black nor blown out, and textured
        assert (picture.instance[~seen] == 0).all() and (picture.instance[picture.moving] > 0).all()


def test_depth_of_solids_is_that_of_the_textbook() -> None:
    """Independent formulas, float64, pixel by pixel: sphere, tube and slanted plane."""
    camera = Camera(
        "c",
        200,
        160,
        np.array([[150.0, 0, 99.3], [0, 150.0, 80.1], [0, 0, 1]]),
        np.eye(4) @ np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
    )
    pose = exp(np.array([0.3, -0.2, 1.4, 0.02, 0.05, 0.3])) @ camera.T_base_camera
    skin = Skin()
    ball, tube = np.array([9.0, 2.0, 2.0]), np.array([12.0, 4.4, 2.5])
    solids = concatenate(
        [
            ellipsoid(ball, (1, 1, 1), skin),
            cylinder(tube, 0.4, 5.0, skin),
            box((30.0, 9, 2), (2, 8, 6), skin),
        ]
    )
    hits = cast(solids, make_view(camera), pose)
    v, u = np.indices((160, 200))
    rays = np.stack([(u - 99.3) / 150, (v - 80.1) / 150, np.ones_like(u)], -1) @ pose[:3, :3].T
    eye = pose[:3, 3]
    to_ball = eye - ball
    b, a, c = rays @ to_ball, (rays**2).sum(-1), to_ball @ to_ball - 1
    with np.errstate(invalid="ignore"):
        t_ball = (-b - np.sqrt(b * b - a * c)) / a
        flat, off = rays[..., :2], eye[:2] - tube[:2]
        b, a, c = flat @ off, (flat**2).sum(-1), off @ off - 0.16
        t_tube = (-b - np.sqrt(b * b - a * c)) / a
        t_ground = np.where(rays[..., 2] < 0, -eye[2] / rays[..., 2], np.nan)
    kinds = np.where(
        hits.surface >= FIRST, hits.solids.kind[np.maximum(hits.surface - FIRST, 0) // FACES], 255
    )
    side = (kinds == 2) & ((hits.surface - FIRST) % FACES == 6)
    depth = 1.0 / np.where(hits.inverse_depth > 0, hits.inverse_depth, np.nan)
    for mask, expected, least in (
        (kinds == 1, t_ball, 700),
        (side, t_tube, 200),
        (hits.surface == GROUND, t_ground, 3000),
    ):
        assert mask.sum() > least
        mask &= depth < 250.0
        np.testing.assert_allclose(depth[mask], expected[mask], rtol=3e-5)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_depth_of_one_time_falls_on_the_surface_of_another(
    frames: list[SimFrame], surround: Simulator, number: int
) -> None:
    """Static points of frame A, moved into frame B, lie on B's surface within millimetres wherever
    B sees them."""
    first, second = frames[0], frames[1]
    camera = surround.rig.cameras[number]
    points, static = (
        world_points(first, camera, number),
        ~first.moving[number] & (first.depth[number] < 60),
    )
    pixels, z, inside = seen_again(points[static], second, camera, number)
    corner = np.floor(pixels).astype(int)
    # B's surface through the four pixels around, in inverse depth (a plane is linear there); only
    # where they see one smooth piece.
    with np.errstate(invalid="ignore", divide="ignore"):
        w = 1.0 / second.depth[number].astype(np.float64)
    around = np.stack(
        [w[corner[:, 1] + dy, corner[:, 0] + dx] for dy in (0, 1) for dx in (0, 1)], -1
    )
    f = pixels - corner
    weights = np.stack(
        [
            (1 - f[:, 0]) * (1 - f[:, 1]),
            f[:, 0] * (1 - f[:, 1]),
            (1 - f[:, 0]) * f[:, 1],
            f[:, 0] * f[:, 1],
        ],
        -1,
    )
    planar = np.abs(around[:, 0] - around[:, 1] - around[:, 2] + around[:, 3]) < 1e-6
    moving = np.stack(
        [
            second.moving[number][corner[:, 1] + dy, corner[:, 0] + dx]
            for dy in (0, 1)
            for dx in (0, 1)
        ],
        -1,
    ).any(-1)
    surface = 1.0 / (around * weights).sum(-1)
    use = inside & planar & ~moving & np.isfinite(surface)
    error = (surface - z)[use]
    visible = error > -0.05 * z[use]  # what is clearly nearer in B hides the point
    assert use.sum() > 3000 and visible.mean() > 0.93
    assert np.quantile(np.abs(error[visible]), 0.95) < 0.003


def test_pictures_agree_where_the_truth_says_the_same_point(
    frames: list[SimFrame], surround: Simulator
) -> None:
    """Photometric: the grey values of static points correlate between two times, exposure aside."""
    first, second = frames[0], frames[1]
    camera = surround.rig.cameras[0]
    grey = [
        cv2.GaussianBlur(cv2.cvtColor(frame.images[0], cv2.COLOR_RGB2GRAY), (5, 5), 1.2).astype(
            np.float64
        )
        for frame in (first, second)
    ]
    near = ~first.moving[0] & (first.depth[0] < 40)
    points = world_points(first, camera, 0)
    pixels, z, inside = seen_again(points[near], second, camera, 0)
    index = np.rint(pixels).astype(int)
    same = inside & (np.abs(second.depth[0][index[:, 1], index[:, 0]] - z) < 0.03 * z)
    a, b = grey[0][near][same], grey[1][index[same, 1], index[same, 0]]
    assert same.sum() > 5000 and np.corrcoef(a, b)[0, 1] > 0.9


def test_boxes_contain_their_pixels_tightly(frames: list[SimFrame], surround: Simulator) -> None:
    checked = 0
    for frame in frames:
        boxes = {thing.id: thing for thing in frame.objects}
        for number, camera in enumerate(surround.rig.cameras):
            points = world_points(frame, camera, number)
            for identity in np.unique(frame.instance[number]):
                if identity == 0:
                    continue
                thing, mask = boxes[int(identity)], frame.instance[number] == identity
                local = (points[mask] - thing.T_world_object[:3, 3]) @ thing.T_world_object[:3, :3]
                assert (np.abs(local) <= 0.5 * thing.size + 0.005).all(), thing
                if mask.sum() > 600:  # seen well: its pixels reach the box's sides
                    checked += 1
                    assert (np.abs(local).max(0) > 0.3 * thing.size).any()
    assert checked > 5


def test_box_is_the_bound_of_the_body() -> None:
    """The tight extent holds every body's surface, sampled by rays from all sides."""
    for kind in ("car", "van", "truck", "cyclist", "pedestrian"):
        solids = models.build(Body(kind, 3), 1.1)
        low, high = models.extent(solids)
        reach = [np.full(3, np.inf), np.full(3, -np.inf)]
        camera = load_rig(rigs() / "mono.yaml").cameras[0]
        for yaw in np.arange(4) * np.pi / 2:
            turn = exp(np.array([0, 0, 0, 0, 0, yaw]))
            pose = turn @ exp(np.array([-9.0, 0, 1.2, 0, 0, 0])) @ camera.T_base_camera
            hits = cast(solids, make_view(camera), pose)
            v, u = np.nonzero(hits.surface >= FIRST)
            depth = 1.0 / hits.inverse_depth[v, u].astype(np.float64)
            rays = to_rays(camera, np.stack([u, v], -1).astype(np.float64))
            points = transform(pose, np.concatenate([rays * depth[:, None], depth[:, None]], 1))
            reach = [np.minimum(reach[0], points.min(0)), np.maximum(reach[1], points.max(0))]
        assert (reach[0] >= low - 0.002).all() and (reach[1] <= high + 0.002).all(), kind
        # From above, a tyre's lowest visible point is a little over the ground.
        assert (reach[0] <= low + np.array((0.06, 0.06, 0.2))).all() and (
            reach[1] >= high - 0.06
        ).all(), (kind, reach, low, high)


def test_moving_mask_is_what_moves(frames: list[SimFrame]) -> None:
    for frame in frames:
        boxes = {thing.id: thing for thing in frame.objects}
        for instance, moving in zip(frame.instance, frame.moving, strict=True):
            for identity in np.unique(instance):
                expected = identity != 0 and np.linalg.norm(boxes[int(identity)].velocity) > 0.25
                assert (moving[instance == identity] == expected).all()


def test_velocity_is_the_change_of_position(surround: Simulator) -> None:
    before, now, after = (surround.drive.scene(t) for t in (7.98, 8.0, 8.02))
    places = [
        {thing.id: thing.T_world_object[:3, 3] for thing in scene.objects}
        for scene in (before, after)
    ]
    both = [thing for thing in now.objects if thing.id in places[0] and thing.id in places[1]]
    fast = [thing for thing in both if np.linalg.norm(thing.velocity) > 1.0]
    assert len(fast) > 15
    for thing in fast:
        if thing.kind not in (
            "pedestrian",
            "cyclist",
        ):  # a limb that swings moves their box's middle
            np.testing.assert_allclose(
                (places[1][thing.id] - places[0][thing.id]) / 0.04, thing.velocity, atol=0.05
            )


@given(t=st.floats(0.5, 300.0))
@settings(max_examples=60, deadline=None)
def test_the_car_drives_like_a_car(drive: Drive, t: float) -> None:
    """Twist is the pose's derivative, speed and acceleration are bounded, base_link stays on the
    ground and does not slip sideways."""
    h = 0.02
    a, b, c = (drive.T_world_base(t + d) for d in (-h, 0.0, h))
    twist = drive.velocity(t)
    np.testing.assert_allclose(log(inverse(a) @ c) / (2 * h), twist, atol=0.02)
    assert a[2, 3] == b[2, 3] == c[2, 3] == 0.0
    assert -0.01 < twist[0] < 14.5 and abs(twist[1]) < 0.15 and abs(twist[5]) < 0.6
    acceleration = (c[:3, 3] - 2 * b[:3, 3] + a[:3, 3]) / h**2
    assert np.linalg.norm(acceleration) < 4.0


def test_a_long_drive_speeds_up_slows_down_turns_and_stops(drive: Drive) -> None:
    times = np.arange(0.0, 200.0, 0.5)
    speed = np.gradient(drive.traffic.ego.s(times), times)
    assert speed.min() < 0.05 and speed.max() > 9.0
    s = drive.traffic.ego.s(times)
    _, heading = drive.world.road.place(s, np.zeros_like(s))
    assert np.ptp(heading) > np.deg2rad(60)
    for t in (0.0, 100.0, 199.0):  # far down the road the world is as full, and no fuller
        scene = drive.scene(t)
        assert 400 < len(scene.solids) < 4000
    assert len(drive.world._chunks) <= 16


@pytest.mark.parametrize("seed", [0, pytest.param(2, marks=pytest.mark.full)])
def test_movers_of_all_kinds_and_directions_and_no_collision(seed: int) -> None:
    drive = Drive(seed)
    kinds, directions = set(), set()
    for t in np.arange(0.0, 20.0, 0.7):
        ego = drive.T_world_base(t)
        for thing in drive.scene(t).objects:
            local = transform(inverse(ego), thing.T_world_object[:3, 3])
            assert not (-1.2 < local[0] < 4.0 and abs(local[1]) < 0.95), (
                t,
                thing,
            )  # nobody inside the ego vehicle
            if np.linalg.norm(thing.velocity) > 1.0 and np.linalg.norm(local) < 40:
                kinds.add(thing.kind)
                v = ego[:3, :3].T @ thing.velocity
                directions.add(
                    "same" if v[0] > abs(v[1]) else "oncoming" if -v[0] > abs(v[1]) else "crossing"
                )
    assert {"car", "cyclist", "pedestrian"} <= kinds and directions == {
        "same",
        "oncoming",
        "crossing",
    }


def test_a_parked_car_leaves(drive: Drive) -> None:
    parked_then, moving_later = set(), set()
    for t in np.arange(0.0, 20.0, 2.0):
        for thing in drive.scene(t).objects:
            if 2_000_000 <= thing.id < 4_000_000:
                (moving_later if thing.moving else parked_then).add(thing.id)
    assert parked_then & moving_later
    assert len(parked_then) > 10


def test_swept_by(drive: Drive) -> None:
    objects = drive.scene(3.0).objects
    mover, parked = next(o for o in objects if o.moving), next(o for o in objects if not o.moving)
    points = np.stack(
        [
            mover.T_world_object[:3, 3],
            parked.T_world_object[:3, 3],
            mover.T_world_object[:3, 3] + [0, 0, 50],
        ]
    )
    assert swept_by(objects, points).tolist() == [True, False, False]


@given(s=st.floats(-200.0, 3000.0), lateral=st.floats(-10.0, 10.0))
@settings(max_examples=100, deadline=None)
def test_road_coordinates_invert(road: Road, s: float, lateral: float) -> None:
    xy, heading = road.place(np.array([s]), np.array([lateral]))
    again = road.locate(xy)
    np.testing.assert_allclose(
        [again[0][0], again[1][0], again[2][0]], [s, lateral, heading[0]], atol=0.02
    )


def test_nothing_built_stands_on_the_road() -> None:
    drive = Drive(2)
    for index in range(-2, 12):
        scenery = drive.world.chunk(index).scenery
        low = scenery.corners[scenery.corners[..., 2].min(1) < 2.0].reshape(-1, 3)
        assert drive.world.road.clearance(low[:, :2]) > 8.6, index
    assert PAVEMENT > 8.6


def test_same_seed_same_bytes(surround: Simulator, frames: list[SimFrame]) -> None:
    """Another simulator, another length and order of frames, fewer cameras: the same bytes; another
    seed: another world."""
    rig = Rig("two", surround.rig.cameras[:2])
    again = Simulator(rig, seconds=5.0).frame(41)
    for a, b in zip(again.pictures, frames[1].pictures, strict=False):
        assert (a.image == b.image).all() and (a.instance == b.instance).all()
        np.testing.assert_array_equal(a.depth, b.depth)
    other = next(simulate(rig, seed=2, frames=[41]))
    assert (other.images[0] != frames[1].images[0]).mean() > 0.5
    assert Drive(0, 5.0).horizon_s == HORIZON_S and Drive(0, 700.0).horizon_s == 2 * HORIZON_S


def test_skewed_cameras_see_their_own_time(surround: Simulator) -> None:
    rig = Rig("pair", (surround.rig.cameras[0], replace(surround.rig.cameras[0], name="later")))
    frame = Simulator(rig, skew_s=0.1).frame(40)
    late = Simulator(Rig("one", rig.cameras[:1])).frame(41)
    assert (
        frame.stamps_ns[1] - frame.stamps_ns[0] == 100_000_000
        and frame.stamp_ns == frame.stamps_ns[0]
    )
    np.testing.assert_array_equal(frame.depth[1], late.depth[0])
    assert (frame.depth[0] != frame.depth[1]).any()


def test_depth_png_is_sixteen_bit_metres_times_256() -> None:
    depth = np.array([[1.0, 2.504, np.nan, 300.0, 254.9]], np.float32)
    read = cv2.imdecode(np.frombuffer(depth_png(depth), np.uint8), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint16 and read.tolist() == [[256, 641, 0, 0, 65254]]


def test_bag_has_images_and_truth(tmp_path: Path) -> None:
    bags = pytest.importorskip("recon4d_ros.bags")
    rig = small(load_rig(rigs() / "kitti_like.yaml"), 4)
    done: list[tuple[int, int]] = []
    write_bag(
        tmp_path / "one",
        rig,
        seconds=0.5,
        seed=2,
        workers=1,
        ground_truth_every=2,
        progress=lambda a, b: done.append((a, b)),
    )
    write_bag(tmp_path / "two", rig, seconds=0.5, seed=2, workers=2, ground_truth_every=2)
    assert done == [(i + 1, 5) for i in range(5)]
    contents = []
    for name in ("one", "two"):
        with bags.BagReader(tmp_path / name) as bag:
            read = bag.rig()
            contents.append(
                [
                    (topic, kind, stamp, bytes(data))
                    for topic, kind, stamp, data in bag.raw_messages()
                ]
            )
            counts = {topic: info.count for topic, info in bag.topics.items()}
    assert contents[0] == contents[1]
    assert read.names == rig.names
    np.testing.assert_allclose(read.T_base_camera, rig.T_base_camera, atol=1e-9)
    assert (
        counts["/camera/left/image_raw/compressed"]
        == counts["/ground_truth/odom"]
        == counts["/ground_truth/objects"]
        == 5
    )
    assert counts["/ground_truth/right/depth"] == counts["/ground_truth/left/dynamic_mask"] == 3
    frame = Simulator(rig, 0.5, seed=2).frame(2)
    with bags.BagReader(tmp_path / "one") as bag:
        messages = {
            topic: message
            for topic, _, message in bag.messages()
            if topic != "/tf_static" and message.header.stamp.nanosec == 200_000_000
        }
    depth = (
        cv2.imdecode(
            np.frombuffer(bytes(messages["/ground_truth/left/depth"].data), np.uint8),
            cv2.IMREAD_UNCHANGED,
        )
        / 256.0
    )
    expected = np.nan_to_num(np.where(frame.depth[0] > 255, 0, frame.depth[0]))
    assert np.abs(depth - expected).max() <= 0.5 / 256 + 1e-4
    mask = cv2.imdecode(
        np.frombuffer(bytes(messages["/ground_truth/left/dynamic_mask"].data), np.uint8),
        cv2.IMREAD_UNCHANGED,
    )
    np.testing.assert_array_equal(mask, frame.moving[0] * np.uint8(255))
    image = cv2.imdecode(
        np.frombuffer(bytes(messages["/camera/left/image_raw/compressed"].data), np.uint8),
        cv2.IMREAD_COLOR,
    )[..., ::-1]
    assert np.abs(image.astype(float) - frame.images[0]).mean() < 4.0
    listed = messages["/ground_truth/objects"].objects
    assert [o.id for o in listed] == [o.id for o in frame.objects if o.moving]
    assert messages["/ground_truth/objects"].header.frame_id == "world"
    odom = messages["/ground_truth/odom"]
    assert odom.header.frame_id == "world" and odom.child_frame_id == "base_link"
    np.testing.assert_allclose(
        [odom.pose.pose.position.x, odom.pose.pose.position.y], frame.T_world_base[:2, 3]
    )


def test_bag_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_bag(tmp_path / "bag", load_rig(rigs() / "mono.yaml"), seconds=0.1, workers=1)
