"""Driv3R against the authors' outputs (test/golden), its memory of fixed size against the rule
written plainly, its step and its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_files import golden_weights, manifest, outputs, relative
from graph_parity import check_graph

torch = pytest.importorskip("torch")

from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.networks import checkpoint, driv3r, driv3r_stream, ray_camera  # noqa: E402
from recon4d_ros.networks import step as contract  # noqa: E402
from recon4d_ros.networks.driv3r_step import Driv3RStep, join  # noqa: E402
from recon4d_ros.networks.driv3r_stream import SensorStream, StreamMemory  # noqa: E402
from recon4d_ros.networks.sensor_memory import Pool, Rules, add, alike, pool_shapes, read, unit  # noqa: E402

SMALL = driv3r.Configuration(encoder_depth=3, decoder_depth=10)
TINY = driv3r.Configuration(1, 64, 1, 2, 64, 1, 1)
SIZE = (48, 64)  # 12 patches


@pytest.mark.parametrize(
    ("name", "configuration"), [("driv3r_small", SMALL), ("driv3r", driv3r.Configuration())]
)
def test_parameter_names_and_shapes(name: str, configuration: driv3r.Configuration) -> None:
    assert driv3r.configuration_of(manifest(name), None) == configuration
    with torch.device("meta"):
        network = driv3r.build(configuration)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == manifest(
        name
    )


@pytest.mark.parametrize("frames", [2, pytest.param(5, marks=pytest.mark.full)])
def test_the_authors_outputs_frame_by_frame(frames: int) -> None:
    """With the published capacity; the authors' memory grows, to 784 entries here. All five frames
    take 20 s."""
    with torch.device("meta"):
        network = driv3r.build(SMALL)
    network.load_state_dict(golden_weights("driv3r_small"), assign=True)
    golden = outputs("driv3r_small")
    stream = SensorStream(network, (224, 224))
    assert stream.capacity == 4980
    memory = stream.begin()
    worst: dict[str, float] = {}

    def compare(name: str, ours: driv3r.PointMap) -> None:
        points = "pts3d" if name == "0" else "pts3d_in_other_view"
        worst[f"{name}/points"] = relative(ours.points[0, ::4, ::4], golden[f"{name}/{points}"])
        worst[f"{name}/confidence"] = relative(ours.confidence[0, ::4, ::4], golden[f"{name}/conf"])

    with torch.inference_mode():
        for i, image in enumerate(golden["images"][:frames]):
            pair, memory = stream(torch.from_numpy(image)[None], memory)
            if i:
                compare(str(i - 1), pair.before)
        if frames == len(golden["images"]):
            compare(str(i), pair.now)
    assert len(worst) >= 2 * (frames - 1) and max(worst.values()) < 1e-3, worst
    if frames < len(golden["images"]):
        return
    assert len(worst) == 10
    valid = memory.pool.valid > 0.5
    assert int(valid.sum()) == golden["memory_keys_shape"][1]
    assert relative(memory.pool.used[valid], golden["memory_attention"]) < 1e-3


class Plain:
    """The published memory in words, one sensor: blocks are appended; what got the least attention
    per block leaves."""

    def __init__(self, rules: Rules, tokens: int) -> None:
        self.rules, self.tokens, self.entries, self.blocks = (
            rules,
            tokens,
            [],
            [],
        )  # entries: [key, value, used, age]

    def read(self, query: np.ndarray) -> np.ndarray:
        keys, values = (np.array([entry[i] for entry in self.entries]) for i in (0, 1))
        attention = np.exp(query @ keys.T / np.sqrt(query.shape[1]))
        attention /= attention.sum(1, keepdims=True)
        attention[attention < self.rules.least_attention] = 0
        attention /= attention.sum(1, keepdims=True)
        for entry, got in zip(self.entries, attention.sum(0), strict=True):
            entry[2] += got
        return attention @ values

    def add(self, key: np.ndarray, value: np.ndarray) -> bool:
        direction = key / np.linalg.norm(key, axis=1, keepdims=True)
        if any(
            (direction * block).sum(1).mean() > self.rules.alike
            for block in self.blocks[-self.rules.working :]
        ):
            return False
        self.blocks.append(direction)
        for entry in self.entries:
            entry[3] += 1
        self.entries += [[k, v, 0.0, 0] for k, v in zip(key, value, strict=True)]
        if len(self.entries) > self.rules.long + self.rules.working * self.tokens:
            worth = [
                np.inf if age < self.rules.settled else used / age
                for _, _, used, age in self.entries
            ]
            self.entries = [self.entries[i] for i in np.argsort(worth)[::-1][: self.rules.long]]
        return True


def empty_pool(
    rules: Rules, tokens: int, channels: int = 16, capacity: int | None = None, sensors: int = 1
) -> Pool:
    shapes = pool_shapes(sensors, capacity or rules.capacity(tokens), tokens, channels, rules)
    return Pool(*(torch.zeros(shape) for shape in shapes.values()))


def offer(
    pool: Pool,
    key: torch.Tensor,
    value: torch.Tensor,
    rules: Rules,
    offered: torch.Tensor | None = None,
) -> tuple[Pool, bool]:
    adds = ~alike(pool, unit(key), rules)
    everything = torch.ones(key.shape[:2], dtype=torch.bool)
    return add(
        pool, key, value, unit(key), everything if offered is None else offered, adds, rules
    ), bool(adds[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_pool_is_the_published_rule(seed: int) -> None:
    """Readings, sizes, what is kept, over many prunings and blocks that look like another."""
    generator = torch.Generator().manual_seed(seed)
    rules = Rules(long=80, working=2, settled=4, least_attention=0.005)
    pool, plain = empty_pool(rules, 10), Plain(rules, 10)
    skipped = pruned = 0
    key = torch.randn(1, 10, 16, generator=generator)
    for i in range(60):
        key = key + 0.02 if i % 5 == 4 else torch.randn(1, 10, 16, generator=generator)
        value, query = torch.randn(2, 1, 10, 16, generator=generator)
        if i:
            answer, attention = read(pool, query, rules)
            pool = pool._replace(used=pool.used + attention)
            assert relative(answer[0], plain.read(query[0].double().numpy())) < 1e-4
        before = len(plain.entries)
        added = plain.add(key[0].double().numpy(), value[0].double().numpy())
        pool, ours = offer(pool, key, value, rules)
        assert ours == added
        skipped, pruned = skipped + (not added), pruned + (len(plain.entries) < before)
        valid = pool.valid[0] > 0.5
        columns = [pool.key[0], pool.value[0], pool.used[0, :, None], pool.age[0, :, None]]
        kept = torch.cat(columns, 1)[valid].double().numpy()
        expected = np.array(
            [np.concatenate([k, v, [used, age]]) for k, v, used, age in plain.entries]
        )
        assert kept.shape == expected.shape
        np.testing.assert_allclose(
            kept[np.argsort(kept[:, 0])], expected[np.argsort(expected[:, 0])], rtol=1e-4, atol=1e-4
        )
    assert skipped == 12 and pruned >= 5


def test_a_tight_pool_keeps_the_newest() -> None:
    """Three blocks of room: never more than the capacity, the newest block always there, the first
    to leave is the oldest."""
    generator = torch.Generator().manual_seed(5)
    rules = Rules()
    pool = empty_pool(rules, 10, capacity=35)
    for i in range(30):
        key = torch.randn(1, 10, 16, generator=generator)
        pool, _ = offer(pool, key, torch.full((1, 10, 16), float(i)), rules)
        valid = pool.valid[0] > 0.5
        there = pool.value[0, valid, 0]
        assert 10 * min(i + 1, 2) <= int(valid.sum()) <= 35
        assert int((there == i).sum()) == 10 and (i == 0 or int((there == i - 1).sum()) == 10)
        assert float(there.min()) >= i - 3 and all(
            bool(torch.isfinite(part).all()) for part in pool
        )
    nothing, attention = read(empty_pool(rules, 10), key, rules)
    assert not nothing.any() and not attention.any(), "an empty pool has nothing to say, and no NaN"


def test_tokens_that_are_not_offered_leave_no_trace() -> None:
    """Also where they would have been written over what is there."""
    generator = torch.Generator().manual_seed(6)
    rules = Rules(long=12, working=2)
    pool = empty_pool(rules, 8)  # 28 entries
    some = torch.arange(8)[None] % 2 == 0
    for i in range(9):
        key = torch.randn(1, 8, 16, generator=generator)
        pool, _ = offer(
            pool,
            key,
            torch.where(some[..., None], torch.full((1, 8, 16), i + 1.0), torch.nan),
            rules,
            some,
        )
        assert not torch.isnan(pool.value).any()
        if i < 7:
            assert int(pool.valid.sum()) == 4 * (i + 1), (
                "7 half blocks fit, though not 7 whole ones"
            )
    assert sorted(set(pool.value[0, pool.valid[0] > 0.5, 0].tolist()))[-2:] == [8.0, 9.0]


@pytest.fixture(scope="module")
def tiny() -> driv3r.Driv3R:
    torch.manual_seed(0)
    network = driv3r.build(TINY).eval()
    for head in (network.dust3r.downstream_head1, network.dust3r.downstream_head2):
        torch.nn.init.normal_(
            head.dpt.head[4].weight, std=0.2
        )  # points that differ from pixel to pixel
        head.dpt.head[4].bias.data[2] += 2  # and lie in front of the camera
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(8, 3, *SIZE, generator=torch.Generator().manual_seed(4)) * 2 - 1


def rollout(
    stream: SensorStream,
    images: torch.Tensor,
    present: torch.Tensor | None = None,
    moved: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], StreamMemory]:
    """images [F, N, 3, H, W] -> points [N, H, W, 3] of every frame, and the memory after it."""
    memory, points = stream.begin(), []
    with torch.inference_mode():
        for i, frame in enumerate(images):
            pair, memory = stream(
                frame,
                memory,
                None if present is None else present[i],
                None if moved is None else moved[i],
            )
            points.append(pair.now.points)
    return points, memory


def test_capacity_does_not_matter_while_there_is_room(
    tiny: driv3r.Driv3R, images: torch.Tensor
) -> None:
    tight, memory = rollout(SensorStream(tiny, SIZE, capacity=84), images[:, None])
    roomy, same = rollout(SensorStream(tiny, SIZE), images[:, None])
    torch.testing.assert_close(torch.stack(tight), torch.stack(roomy), rtol=1e-4, atol=1e-5)
    assert int(memory.pool.valid.sum()) == int(same.pool.valid.sum()) == 84


@pytest.mark.full
def test_cameras_side_by_side_are_cameras_alone(tiny: driv3r.Driv3R, images: torch.Tensor) -> None:
    """One of them begins late and misses a frame; it is as if that frame had not been, and the
    other one does not notice."""
    stream = SensorStream(tiny, SIZE, cameras=2, capacity=60)
    present = torch.tensor([[True, i not in (0, 4)] for i in range(8)])
    pairs = torch.stack([images, images.flip(0)], 1)
    pairs[~present] = (
        torch.nan
    )  # what an absent camera shows must not matter; its output does not either
    both, memory = rollout(stream, pairs, present)
    for camera in range(2):
        alone, own = rollout(
            SensorStream(tiny, SIZE, capacity=60), pairs[present[:, camera], camera, None]
        )
        seen = [
            points[camera] for points, here in zip(both, present[:, camera], strict=True) if here
        ]
        torch.testing.assert_close(torch.stack(seen), torch.cat(alone), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(memory.pool.key[camera], own.pool.key[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(memory.seen[camera], own.seen[0])


def test_what_moved_does_not_enter_the_memory(tiny: driv3r.Driv3R, images: torch.Tensor) -> None:
    """Patches of frame t - 1 are barred at step t, or at the next one at which the camera is
    there."""
    stream = SensorStream(tiny, SIZE)
    moved = torch.zeros(4, 1, 12, dtype=torch.bool)
    moved[1, :, :5] = moved[2, :, 5:8] = True
    _, memory = rollout(stream, images[:4, None], moved=moved)
    assert int(memory.pool.valid.sum()) == 36 - 8
    absent = torch.tensor([[True], [False], [False], [True]])
    _, memory = rollout(stream, images[:4, None], absent, moved)
    assert int(memory.pool.valid.sum()) == 12 - 8


def test_a_clip_begins_like_a_stream(tiny: driv3r.Driv3R, images: torch.Tensor) -> None:
    """After 3 images the third one is the origin of the next three."""
    clipped, _ = rollout(SensorStream(tiny, SIZE, clip=3), images[:5, None])
    anew, _ = rollout(SensorStream(tiny, SIZE), images[2:5, None])
    torch.testing.assert_close(
        torch.stack(clipped[3:5]), torch.stack(anew[1:]), rtol=1e-4, atol=1e-5
    )


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def rays_and_points(
    rng: np.random.Generator, scale: float
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Rays of a turned camera, points of a street on them, and where it stands."""
    k = torch.tensor([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]])
    rays = (
        ray_camera.directions(k, SIZE) @ torch.from_numpy(random_rotation(rng).astype(np.float32)).T
    )
    centre = scale * rng.normal(size=3) * [2, 0.3, 8]
    distance = torch.from_numpy(scale * rng.uniform(4, 60, (1, *SIZE, 1)).astype(np.float32))
    return rays, rays * distance + torch.from_numpy(centre.astype(np.float32)), centre


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_centre_of_a_camera_from_its_points(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rays, points, centre = rays_and_points(rng, scale)
    found = ray_camera.centre(points, rays, torch.ones(1, *SIZE))
    assert np.abs(found[0].numpy() - centre).max() < 2e-3 * scale
    wrong = torch.from_numpy(rng.random((1, *SIZE)) < 0.1)[..., None]
    off = torch.from_numpy(rng.normal(size=points.shape).astype(np.float32)) * 20 * scale
    found = ray_camera.centre(torch.where(wrong, points + off, points), rays, torch.ones(1, *SIZE))
    assert np.abs(found[0].numpy() - centre).max() < 0.5 * scale, "a tenth of the points 20 m off"
    found = ray_camera.centre(
        torch.where(wrong, points + off, points), rays, (~wrong[..., 0]).float()
    )
    assert np.abs(found[0].numpy() - centre).max() < 2e-3 * scale, "what has no weight has no say"


OPTIONS = contract.StepOptions(cameras=2, input_size=(60, 80), working_size=SIZE, pointers=40)


def drive(frames: int, options: contract.StepOptions = OPTIONS) -> list[dict[str, torch.Tensor]]:
    """Frames of a rig that drives on and turns; the second camera misses one, things move, the
    anchor follows."""
    generator = torch.Generator().manual_seed(8)
    n, (height, width), (h, w) = options.cameras, options.input_size, options.working_size
    v, u = torch.meshgrid(
        torch.linspace(0, height - 1, h), torch.linspace(0, width - 1, w), indexing="ij"
    )
    out = []
    for i in range(frames):
        angle = torch.tensor(0.05 * i)
        pose = torch.eye(4).repeat(n, 1, 1)
        pose[:, 0, 0] = pose[:, 2, 2] = angle.cos()
        pose[:, 0, 2], pose[:, 2, 0] = angle.sin(), -angle.sin()
        pose[:, 2, 3] = 1.0 * i
        everything = {
            "images": torch.randint(
                0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator
            ),
            "present": torch.tensor([1.0, float(i != 2)][:n]),
            "grid": torch.stack([u, v], -1).repeat(n, 1, 1, 1),
            "k": torch.tensor([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]]).repeat(n, 1, 1),
            "pose": pose,
            "moving": (torch.rand(n, h, w, generator=generator) < 0.01).to(torch.uint8),
        }
        out.append(everything)
    return out


def run(
    step: torch.nn.Module, frames: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    memory = [torch.zeros(shape) for shape in step.memory_shapes().values()]
    names = [*contract.OUTPUTS, *step.extra_outputs, *step.memory_shapes()]
    out = []
    with torch.inference_mode():
        for frame in frames:
            out.append(
                dict(
                    zip(
                        names,
                        step(*(frame[name] for name in step.frame_inputs()), *memory),
                        strict=True,
                    )
                )
            )
            memory = [out[-1][name] for name in step.memory_shapes()]
    return out


def test_the_step_keeps_its_contract(tiny: driv3r.Driv3R) -> None:
    step = Driv3RStep(tiny, OPTIONS)
    frames = drive(4)
    for name, (kind, shape) in step.frame_inputs().items():
        assert frames[0][name].dtype == kind and tuple(frames[0][name].shape) == shape
    results = run(step, frames)
    for i, out in enumerate(results):
        here = frames[i]["present"] > 0.5
        assert out["color"].dtype == torch.uint8 and tuple(out["color"].shape) == (2, *SIZE, 3)
        assert tuple(out["network_position"].shape) == (2, 3)
        for name in contract.OUTPUTS[:3]:
            assert out[name].dtype == torch.float32 and tuple(out[name].shape) == (2, *SIZE)
            assert bool(torch.isfinite(out[name]).all()) and float(out[name].min()) >= 0
            assert not out[name][~here].any() and bool((out[name][here] > 0).float().mean() > 0.3)
        assert float(out["confidence"].max()) <= 1
        for name, shape in step.memory_shapes().items():
            assert (
                out[name].dtype == torch.float32
                and tuple(out[name].shape) == shape
                and bool(torch.isfinite(out[name]).all())
            )
    assert not results[0]["network_position"].any(), "a camera's first position is its origin"


def test_depth_is_what_the_camera_sees_of_its_points(tiny: driv3r.Driv3R) -> None:
    """At the first image the third coordinate of its points; later the centre is that of the rays,
    in the anchor's directions."""
    frames = drive(3)
    results = run(Driv3RStep(tiny, OPTIONS), frames)
    stream = SensorStream(tiny, SIZE, cameras=2, capacity=40)
    memory = stream.begin()
    with torch.inference_mode():
        for i, (frame, out) in enumerate(zip(frames, results, strict=True)):
            moved = torch.nn.functional.max_pool2d(frame["moving"].float(), 16).flatten(1) > 0
            image = out["color"].permute(0, 3, 1, 2)
            pair, memory = stream(image / 127.5 - 1, memory, frame["present"] > 0.5, moved)
            points = pair.now.points[0]
            turned = frames[i]["pose"][0, :3, :3]  # the first camera's origin is the identity
            seen = (points - out["network_position"][0]) @ turned
            expected = torch.where(seen[..., 2] > 0, seen[..., 2], 0.0)
            assert relative(out["depth"][0], expected.numpy()) < 0.02, (
                "up to the rounding of the image to bytes"
            )


class Wall:
    """Stands in for the network's stream: exact points of a wall at 20 m, in the frame of each
    camera's origin. units: of each clip, units per metre."""

    def __init__(
        self, step: Driv3RStep, poses: list[torch.Tensor], k: torch.Tensor, units: tuple[float, ...]
    ) -> None:
        self.inner, self.poses, self.rays, self.units, self.i = (
            step.stream,
            poses,
            ray_camera.directions(k, SIZE),
            units,
            -1,
        )
        self.memory_shapes, self.restarts = step.stream.memory_shapes, step.stream.restarts
        self.origin, self.last, self.clips = (
            poses[0].clone(),
            poses[0].clone(),
            torch.zeros(len(k), dtype=torch.int64),
        )

    def points(self, pose: torch.Tensor) -> torch.Tensor:
        T = torch.linalg.inv(self.origin) @ pose
        turned = pose[:, :3, :3]
        distance = (20 - pose[:, 2, 3, None, None]) / (
            self.rays.flatten(1, 2) @ turned.transpose(1, 2)
        ).view_as(self.rays)[..., 2]
        rays = (self.rays.flatten(1, 2) @ T[:, :3, :3].transpose(1, 2)).view_as(self.rays)
        points = rays * distance[..., None] + T[:, None, None, :3, 3]
        return points * torch.tensor(self.units)[self.clips, None, None, None]

    def __call__(
        self, images: torch.Tensor, memory: StreamMemory, here: torch.Tensor, moved: torch.Tensor
    ) -> tuple:
        self.i += 1
        again = self.restarts(memory)
        _, new = self.inner(images, memory, here, moved)
        self.clips += again
        self.origin = torch.where(again[:, None, None], self.last, self.origin)
        before, now = self.points(self.last), self.points(self.poses[self.i])
        self.last = torch.where(here[:, None, None], self.poses[self.i], self.last)
        sure = torch.full(now.shape[:3], 5.0)
        return driv3r_stream.Pair(driv3r.PointMap(now, sure), driv3r.PointMap(before, sure)), new


@pytest.mark.parametrize("clip", [0, 3])
def test_positions_and_depth_of_a_known_wall(tiny: driv3r.Driv3R, clip: int) -> None:
    """Over clips too, each of which has a unit of its own: all in that of the first."""
    frames = drive(8)
    step = Driv3RStep(tiny, OPTIONS, clip=clip)
    poses = [frame["pose"] for frame in frames]
    wall = Wall(step, poses, frames[0]["k"], (0.5, 0.6, 0.3, 0.8, 0.4))
    del step._modules["stream"]
    step.stream = wall
    for frame, out in zip(frames, run(step, frames), strict=True):
        here = frame["present"] > 0.5
        moved = (frame["pose"][:, :3, 3] - poses[0][:, :3, 3]) / 2
        torch.testing.assert_close(out["network_position"][here], moved[here], rtol=0, atol=2e-4)
        points = ray_camera.directions(frame["k"], SIZE)
        world = (points.flatten(1, 2) @ frame["pose"][:, :3, :3].transpose(1, 2)).view_as(points)
        depth = (20 - frame["pose"][:, 2, 3])[:, None, None] / world[..., 2] * points[..., 2] / 2
        torch.testing.assert_close(out["depth"][here], depth[here], rtol=1e-4, atol=1e-4)
    assert not clip or wall.clips.tolist() == [3, 2]


def test_two_clips_are_joined_by_what_both_say_of_one_image() -> None:
    rng = np.random.default_rng(2)
    before = torch.from_numpy(rng.uniform(2, 60, (3, 20, 30)).astype(np.float32))
    noise = torch.from_numpy(np.exp(rng.normal(0, 0.05, before.shape)).astype(np.float32))
    now = before / torch.tensor([0.4, 3.0, 1.0])[:, None, None] * noise
    now[:, :4] *= 1.5  # what one of them has wrong
    before[:, -3:] = 0
    before[2] = 0
    assert join(before, now, torch.rand(before.shape)).numpy() == pytest.approx(
        [0.4, 3.0, 1.0], rel=0.03
    )


@pytest.mark.full  # in make test the engine of test_learned_replay.py is compared by its export
def test_the_graph_does_what_the_module_does(tiny: driv3r.Driv3R, tmp_path: Path) -> None:
    """Frame by frame through a pruning, an absent camera and things that move."""
    step = Driv3RStep(tiny, OPTIONS, clip=5).eval()
    frames = drive(7)
    expected = run(step, frames)
    check_graph(step, frames, expected, tmp_path / "model.onnx")
    held = [float(wanted["pool_valid"][0].sum()) for wanted in expected]
    assert any(0 < now < before + 5 for before, now in zip([0.0, *held], held, strict=False))


def test_a_checkpoint_is_recognised_and_loaded(tiny: driv3r.Driv3R, tmp_path: Path) -> None:
    import argparse

    path = tmp_path / "driv3r.pth"
    model = "Spann3R(dus3r_name='./checkpoints/DUSt3R.pth', use_feat=False, mem_pos_enc=False)"
    state = {f"module.{name}": value for name, value in tiny.state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(model=model)}, path)
    found = checkpoint.identify(path)
    assert found.title == "Driv3R" and found.configuration == TINY and not found.problems
    loaded = checkpoint.load(path, "driv3r")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), tiny.state_dict().values(), strict=True)
    )
    torch.save(
        {
            "model": state,
            "args": argparse.Namespace(
                model=model.replace("mem_pos_enc=False", "mem_pos_enc=True")
            ),
        },
        path,
    )
    assert "mem_pos_enc=True, expected False" in checkpoint.identify(path).problems[0]


def test_sizes_that_cannot_be(tiny: driv3r.Driv3R) -> None:
    with pytest.raises(EngineError, match="multiples of its patches of 16"):
        SensorStream(tiny, (50, 64))
    with pytest.raises(
        EngineError,
        match="23 pointers are too few: driv3r's memory holds two images or more, 24 at 48x64",
    ):
        SensorStream(tiny, SIZE, capacity=23)
    with pytest.raises(EngineError, match="clip is 1"):
        SensorStream(tiny, SIZE, clip=1)
    with pytest.raises(EngineError, match="9 heads do not divide 1024"):
        driv3r.Configuration(encoder_heads=9)
