"""Point3R against the authors' outputs (test/golden), and its memory of fixed size against the rule
written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import golden_weights, manifest, outputs, relative

torch = pytest.importorskip("torch")

from recon4d_ros.networks import point3r  # noqa: E402
from recon4d_ros.networks.pointer_stream import Fusion, InView, PointerStream, fuse, threshold  # noqa: E402
from recon4d_ros.networks.rotary import SPACE_BASES, image_rotation, patch_positions, space_rotation  # noqa: E402

SMALL = point3r.Configuration(encoder_depth=4, decoder_depth=4)
TINY = point3r.Configuration(1, 64, 2, 2, 96, 2, 4, 8, 1, 32)


@pytest.mark.parametrize(
    ("name", "configuration"), [("point3r_small", SMALL), ("point3r_512", point3r.Configuration())]
)
def test_parameter_names_and_shapes(name: str, configuration: point3r.Configuration) -> None:
    with torch.device("meta"):
        network = point3r.build(configuration)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == manifest(
        name
    )


@pytest.mark.parametrize("frames", [2, pytest.param(6, marks=pytest.mark.full)])
def test_the_authors_outputs_frame_by_frame(frames: int) -> None:
    """With 40 slots to spare; the authors' memory has none."""
    with torch.device("meta"):
        network = point3r.build(SMALL)
    network.load_state_dict(golden_weights("point3r_small"), assign=True)
    golden = outputs("point3r_small")
    stream = PointerStream(network, (96, 128), capacity=192)
    memory = stream.begin()
    names = ("pts3d_in_self_view", "conf_self", "camera_pose", "pts3d_in_other_view", "conf")
    worst = {}
    with torch.inference_mode():
        for i, image in enumerate(golden["images"][:frames]):
            prediction, memory = stream(torch.from_numpy(image)[None], memory)
            worst |= {
                f"{i}/{name}": relative(x[0], golden[f"{i}/{name}"])
                for name, x in zip(names, prediction, strict=True)
            }
            assert int(memory.valid.sum()) == golden["memory_sizes"][i], f"pointers after frame {i}"
    assert len(worst) == 5 * frames and max(worst.values()) < 1e-3, worst
    if frames < len(golden["images"]):
        return
    assert relative(memory.position[memory.valid], golden["final_pointer_positions"]) < 1e-3
    assert (
        relative(memory.feature[memory.valid].mean(1), golden["final_pointer_features_mean"]) < 1e-3
    )


def test_rotation_in_space_is_the_mean_over_the_bases() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = 20 * torch.randn(1, 5, 3, generator=generator)
    x = torch.randn(1, 2, 5, 64, generator=generator)
    each = torch.stack([space_rotation(positions, 64, (base,))(x) for base in SPACE_BASES])
    torch.testing.assert_close(space_rotation(positions, 64)(x), each.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(space_rotation(torch.zeros(1, 5, 3), 64)(x), x, rtol=0, atol=0)


def test_rotation_in_the_image_sees_relative_positions() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 64, generator=generator)
    grid = patch_positions(3, 4)
    assert grid[5].tolist() == [1, 1] and grid.shape == (12, 2)

    def score(a: int, b: int) -> float:
        return float(
            (image_rotation(grid[a : a + 1], 64)(q) * image_rotation(grid[b : b + 1], 64)(k)).sum()
        )

    assert score(0, 6) == pytest.approx(score(5, 11), rel=1e-4)
    assert abs(score(0, 6) - score(0, 7)) > 1e-3
    torch.testing.assert_close(
        image_rotation(grid, 64)(q.expand(1, 1, 12, 64)).norm(dim=-1),
        q.norm(dim=-1).expand(1, 1, 12),
    )


def plainly(
    position: np.ndarray,
    feature: np.ndarray,
    new_position: np.ndarray,
    new_feature: np.ndarray,
    cells: float,
) -> tuple:
    """The published rule in words: offers nearer to a pointer than the threshold replace it by
    their mean, the others follow it."""
    everything = np.concatenate([position, new_position])
    reach = np.linalg.norm(np.ptp(everything, axis=0) / cells)
    distance = np.linalg.norm(new_position[:, None] - position[None], axis=-1)
    nearest, merges = distance.argmin(1), distance.min(1) < reach
    position, feature = position.copy(), feature.copy()
    for pointer in set(nearest[merges].tolist()):
        position[pointer] = new_position[merges & (nearest == pointer)].mean(0)
        feature[pointer] = new_feature[merges & (nearest == pointer)].mean(0)
    return np.concatenate([position, new_position[~merges]]), np.concatenate(
        [feature, new_feature[~merges]]
    )


def empty(capacity: int, channels: int = 7) -> point3r.Pointers:
    return point3r.Pointers(
        torch.zeros(capacity, channels),
        torch.zeros(capacity, 3),
        torch.zeros(capacity, dtype=torch.bool),
    )


@pytest.mark.parametrize("seed", range(5))
def test_fusion_is_the_published_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pointers = empty(300)
    position, feature = np.zeros((0, 3), np.float32), np.zeros((0, 7), np.float32)
    for i in range(6):
        new_position = rng.normal([i, 0, 10], [3, 1, 3], (40, 3)).astype(np.float32)
        new_feature = rng.normal(size=(40, 7)).astype(np.float32)
        if i == 0:
            position, feature = new_position, new_feature
        else:
            position, feature = plainly(position, feature, new_position, new_feature, 8.0)
        pointers = fuse(
            pointers,
            torch.from_numpy(new_feature),
            torch.from_numpy(new_position),
            Fusion(cells=8.0),
        )
        assert int(pointers.valid.sum()) == len(position) and bool(
            pointers.valid[: len(position)].all()
        )
        np.testing.assert_allclose(
            pointers.position[: len(position)].numpy(), position, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            pointers.feature[: len(position)].numpy(), feature, rtol=1e-5, atol=1e-5
        )
    assert 40 < len(position) < 240, "some merged, some did not"


def test_a_full_memory_keeps_what_is_near() -> None:
    """A drive along x: the pointers of the latest part stay, none twice, and the number never
    exceeds the capacity."""
    rng = np.random.default_rng(3)
    pointers = empty(100)
    fusion = Fusion(longest=0.1)
    for i in range(40):
        position = torch.from_numpy(
            rng.uniform([i, -2, 0], [i + 3, 2, 2], (30, 3)).astype(np.float32)
        )
        pointers = fuse(pointers, torch.full((30, 7), float(i)), position, fusion)
        assert all(bool(torch.isfinite(value).all()) for value in pointers)
        nearest = torch.cdist(position, pointers.position[pointers.valid]).min(1).values
        assert float(nearest.max()) < 0.2, (
            "every offer is in the memory, or close to where it merged"
        )
    assert bool(pointers.valid.all())
    assert float(pointers.position[:, 0].min()) > 30, "what lies far behind has left"
    assert len(torch.unique(pointers.position, dim=0)) == 100


def test_a_full_memory_keeps_what_the_other_cameras_see() -> None:
    """Six cameras around a car that drives along x; 240 offers a frame into 300 slots: after each
    frame all of them are near a pointer."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    pointers, fusion = empty(300), Fusion(longest=0.5)
    for i in range(20):
        middle = 10 * np.stack([np.cos(angle), np.sin(angle), np.zeros(6)], 1) + [2.0 * i, 0, 0]
        seen = torch.from_numpy(
            (middle[:, None] + rng.uniform(-2, 2, (6, 40, 3))).astype(np.float32)
        )
        in_view = InView(seen.flatten(0, 1), torch.ones(240, dtype=torch.bool))
        for position in seen:
            pointers = fuse(pointers, torch.zeros(40, 7), position, fusion, None, in_view)
        nearest = torch.cdist(in_view.position, pointers.position[pointers.valid]).min(1).values
        assert float((nearest < 1.0).double().mean()) > 0.99
    assert bool(pointers.valid.all())


def test_what_is_not_in_view_leaves_first() -> None:
    pointers = empty(4)
    pointers = fuse(
        pointers,
        torch.zeros(4, 7),
        torch.tensor([[0.0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]),
        Fusion(longest=0.1),
    )
    view = InView(
        torch.tensor([[0.0, 0, 0], [100, 0, 0], [30, 0, 0]]), torch.tensor([True, False, True])
    )
    after = fuse(
        pointers, torch.zeros(1, 7), torch.tensor([[99.0, 0, 0]]), Fusion(longest=0.1), None, view
    )
    left = set(pointers.position[:, 0].tolist()) - set(after.position[:, 0].tolist())
    assert left in ({10.0}, {20.0}), (
        "ten metres from what is in view; what is not there does not count"
    )


def test_threshold_grows_with_what_was_seen_unless_bounded() -> None:
    pointers = empty(10)
    position = torch.tensor([[0.0, 0, 0], [3, 4, 12]])
    assert float(threshold(pointers, position, Fusion())) == pytest.approx(13 / 20)
    pointers.position[4], pointers.valid[4] = torch.tensor([-300.0, 0, 0]), True
    assert float(threshold(pointers, position, Fusion())) == pytest.approx(
        (303**2 + 160) ** 0.5 / 20
    )
    assert float(threshold(pointers, position, Fusion(longest=0.5))) == 0.5


@pytest.fixture(scope="module")
def tiny() -> point3r.Point3R:
    torch.manual_seed(0)
    network = point3r.build(TINY).eval()
    for parameter in (
        network.pose_token,
        network.pose_retriever.mem,
        network.pose_retriever.masked_token,
    ):
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 48, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1


def rollout(stream: PointerStream, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Points of every image in order, and the valid pointers' positions."""
    memory, points = stream.begin(), []
    with torch.inference_mode():
        for group in images.split(stream.cameras):
            prediction, memory = stream(group, memory)
            points += list(prediction.points)
    return points, memory.position[memory.valid]


def test_capacity_does_not_matter_while_there_is_room(
    tiny: point3r.Point3R, images: torch.Tensor
) -> None:
    tight, pointers = rollout(PointerStream(tiny, (48, 64), capacity=48), images)
    roomy, same = rollout(PointerStream(tiny, (48, 64), capacity=500), images)
    for a, b in zip(tight, roomy, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pointers, same, rtol=1e-4, atol=1e-5)


def test_two_cameras_begin_like_a_stream_of_their_images(
    tiny: point3r.Point3R, images: torch.Tensor
) -> None:
    single, _ = rollout(PointerStream(tiny, (48, 64), capacity=60), images[:2])
    pair, _ = rollout(PointerStream(tiny, (48, 64), cameras=2, capacity=60), images[:2])
    for a, b in zip(single, pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.full  # test_export_learned.py exports it as a user does
def test_the_step_is_one_static_graph(tiny: point3r.Point3R, images: torch.Tensor) -> None:
    """torch.export takes it with the memory as input, without a guard on values; the graph does
    what the module does, at any fill."""
    stream = PointerStream(tiny, (48, 64), capacity=60)
    memory = stream.begin()
    with torch.inference_mode(False), torch.no_grad():
        graph = torch.export.export(stream, (images[:1], memory)).module()
        for image in images[1:].split(1):
            ours, after = stream(image, memory)
            exported, exported_after = graph(image, memory)
            for a, b in zip((*ours, *after), (*exported, *exported_after), strict=True):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
            memory = after


def test_sizes_that_cannot_be(tiny: point3r.Point3R) -> None:
    with pytest.raises(point3r.EngineError, match="multiples of 16"):
        PointerStream(tiny, (50, 64))
    with pytest.raises(
        point3r.EngineError,
        match="11 pointers are too few: an image of 12 patches offers 12 at a time",
    ):
        PointerStream(tiny, (48, 64), capacity=11)
    with pytest.raises(
        point3r.EngineError,
        match="23 pointers are too few: 2 images of 12 patches offer 24 at a time",
    ):
        PointerStream(tiny, (48, 64), cameras=2, capacity=23)
