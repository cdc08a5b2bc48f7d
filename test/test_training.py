"""Training of the motion network: pieces that follow from their numbers, shards that are what the
vehicle makes, a run that learns and goes on where it was cut off."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch (requirements/dev.txt)")

from recon4d_ros.cli import main  # noqa: E402
from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.networks.motion import Look, cues, load_network  # noqa: E402
from recon4d_ros.training import motion as training  # noqa: E402
from recon4d_ros.training import motion_data  # noqa: E402
from recon4d_ros.training.motion import (  # noqa: E402
    Recipe,
    Shards,
    Trainer,
    batch,
    loss_of,
    read,
    start_stream,
)
from recon4d_ros.training.motion_data import make_piece, rig_of, write_piece  # noqa: E402

H, W, T = 32, 48, 6


def write_shard(file: Path, seed: int) -> None:
    """A patch that goes across the rigid flow of a car that stands."""
    rng = np.random.default_rng(seed)
    label = np.zeros((T, 1, H, W), np.uint8)
    flow = np.zeros((T, 1, 2, H, W), np.float16)
    for t in range(T):
        patch = np.s_[t, 0, 10:18, 8 + 4 * t : 18 + 4 * t]
        label[patch] = 255
        flow[t, 0, 0][patch[2:]] = -4
    np.savez(
        file,
        grey=rng.integers(0, 255, (T, 1, H, W), np.uint8),
        grey_before=rng.integers(0, 255, (T, 1, H, W), np.uint8),
        q=np.full((T, 1, H, W), 0.05, np.float16),
        sigma=np.full((T, 1, H, W), 0.05, np.float16),
        confidence=np.ones((T, 1, H, W), np.float16),
        q_before=np.full((T, 1, H, W), 0.05, np.float16),
        flow=flow,
        road=np.tile(np.array([0, -1, 0, 1.5], np.float32), (T, 1, 1)),
        T_before_now=np.tile(np.eye(4, dtype=np.float32), (T, 1, 1, 1)),
        seconds=np.full(T, 0.1, np.float32),
        label=label,
        weight=np.full((T, 1, H, W), 50, np.uint8),
        kind=np.zeros((T, 1, H, W), np.uint8),
        k=np.array([[[60, 0, 23.5], [0, 60, 15.5], [0, 0, 1]]], np.float32),
        covered=np.zeros((1, H, W), np.uint8),
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (0, 1, 2, 9):  # the last is held out
        write_shard(folder / f"{number:05d}.npz", number)
    return folder


def test_it_learns(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WARM_UP", 1)
    trainer = Trainer(shards, tmp_path / "run", Recipe(streams=2))
    losses = [trainer._one_step(0.0) for _ in range(24)]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_run_that_was_cut_off_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = Trainer(shards, out, Recipe(minutes=0.005, streams=2))
    trainer.run()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["shards"] == 3, "one is held out"
    assert 0 <= log[-1]["iou"] <= 1
    again = Trainer(shards, out, Recipe(minutes=0.005, streams=2))
    assert again._step == log[-1]["step"] > 0
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    again.run()
    assert again._step == log[-1]["step"], "its minutes are spent"


def test_mirrored_streams_show_the_same_mirrored(shards: Path) -> None:
    rng = np.random.default_rng(3)
    stream = start_stream(Shards(shards, False).by_size[H, W], 3, rng)
    shard = dict(stream.shard)
    shard["T_before_now"] = shard["T_before_now"].copy()
    shard["T_before_now"][..., 0, 3] = 0.3  # to the right
    shard["T_before_now"][..., 2, 3] = 0.8
    plain = replace(stream, shard=shard, at=1, mirror=False)
    other = replace(stream, shard=shard, at=1, mirror=True)
    known = []
    for one in (plain, other):
        look, label, _ = batch([read(one, None)])
        known.append((cues(look, torch.zeros(1, 9, H, W))[0], label))
    (a, label), (b, mirrored) = known
    assert torch.equal(label.flip(2), mirrored)
    across, rigid_u, off_u = 1, 4, 6  # change their sign
    signs = torch.ones(a.shape[1])
    signs[[across, rigid_u, off_u]] = -1
    assert (a.flip(3) * signs[:, None, None] - b).abs().max() < 1e-3


def test_pixels_that_are_not_asked_do_not_count() -> None:
    logit, label = torch.randn(1, 4, 4), torch.ones(1, 4, 4)
    weight = torch.ones(1, 4, 4)
    weight[:, :2] = 0
    wrong = logit.clone()
    wrong[:, :2] = -50
    assert loss_of(logit, label, weight) == pytest.approx(float(loss_of(wrong, label, weight)))


def test_a_pieces_number_says_all_of_it() -> None:
    pieces = [make_piece(n) for n in range(400)]
    assert pieces == [make_piece(n) for n in range(400)]
    first, last = motion_data.FIRST_SEED, motion_data.LAST_SEED
    assert all(first <= piece.seed <= last < 1000 for piece in pieces), "the benchmark's are others"
    assert {piece.rig for piece in pieces} == {*motion_data.RIGS, *motion_data.FRONTS}
    rig = rig_of(replace(pieces[0], rig="kitti_mono", zoom=1.2, name="city"))
    assert len(rig.cameras) == 1
    plain = rig.cameras[0]
    (moved,) = rig_of(
        replace(pieces[0], rig="kitti_mono", name="city", lift=0.2, tilt=0.03)
    ).cameras
    np.testing.assert_allclose(
        moved.T_base_camera[:3, 3] - plain.T_base_camera[:3, 3], [0, 0, 0.2], atol=1e-9
    )
    assert moved.T_base_camera[2, 2] == pytest.approx(-np.sin(0.03))  # it looks down
    (wide,) = rig_of(replace(pieces[0], rig="waymo_mono", name="city", zoom=1.0)).cameras
    assert (wide.width, wide.height, wide.k[0, 0]) == motion_data.WIDE_FRONT


def test_a_run_starts_from_anothers_weights_and_keeps_their_mean(
    shards: Path, tmp_path: Path
) -> None:
    first = Trainer(shards, tmp_path / "first", Recipe(minutes=0.005, streams=2))
    first.run()
    checkpoint = tmp_path / "first" / "last.pt"
    kept, averaged = load_network(checkpoint).state_dict(), first.averaged.state_dict()
    assert all(torch.equal(kept[name], averaged[name]) for name in kept)
    second = Trainer(shards, tmp_path / "second", Recipe(streams=2, start=checkpoint))
    before = {name: value.clone() for name, value in kept.items()}
    assert all(torch.equal(second.network.state_dict()[name], before[name]) for name in before)
    second._one_step(0.0)
    name = "out.weight"
    moved = (second.network.state_dict()[name] - before[name]).abs().max()
    mean = (second.averaged.state_dict()[name] - before[name]).abs().max()
    assert 0 < mean <= moved
    with pytest.raises(EngineError, match="no such file"):
        Trainer(shards, tmp_path / "third", Recipe(start=tmp_path / "none.pt"))


def test_cameras_that_are_faster_are_in_the_later_pieces() -> None:
    rates = [make_piece(n).rate for n in range(motion_data.FAST, motion_data.FAST + 100)]
    assert {15.0, 20.0, 30.0} <= set(rates)
    assert max(make_piece(n).rate for n in range(motion_data.FAST)) == 10.0


def test_a_fast_cameras_pair_goes_to_the_network_as_on_the_vehicle(shards: Path) -> None:
    """The image before is not the last one: the memory goes with a share of the flow."""
    shard = dict(Shards(shards, False).by_size[H, W][0])
    stream = start_stream([shard], 3, np.random.default_rng(0))
    assert float(batch([read(replace(stream, at=0), None)])[0].share) == 1.0  # from before
    shard["share"] = np.full(T, 1 / 3, np.float32)
    look, _, _ = batch([read(replace(stream, shard=shard, at=0), None)])
    assert float(look.share) == pytest.approx(1 / 3)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6])
def test_labels_lie_where_the_pixels_do(side: int) -> None:
    """The middle of mass of a square stays where it is, whether the window is even or odd."""
    image = np.zeros((60, 80), np.float32)
    image[20:33, 30:47] = 1.0
    v, u = np.mgrid[0:60, 0:80].astype(np.float32)
    label = motion_data._averaged(image, np.stack([u, v], -1), side)
    middle = [float((label * axis).sum() / label.sum()) for axis in (u, v)]
    np.testing.assert_allclose(middle, [38.0, 26.0], atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_a_pixel_of_the_input_is_the_middle_of_those_it_is_the_mean_of(scale: float) -> None:
    raw = np.arange(24, dtype=np.float32)
    averaged = raw.reshape(-1, int(scale)).mean(1)  # their own places, averaged
    at = np.stack([np.arange(len(averaged), dtype=np.float32)] * 2, -1)
    np.testing.assert_allclose(motion_data._raw(at, scale)[:, 0], averaged)


@pytest.mark.full
def test_a_shard_is_what_the_vehicle_makes_with_the_truth(tmp_path: Path) -> None:
    piece = replace(make_piece(0), name="city", rig="kitti_mono", start=0, rate=10.0, fed="truth")
    file = tmp_path / "00000.npz"
    count = write_piece(piece, file)
    assert count > 10
    with np.load(file) as shard:
        assert {field.name for field in fields(Look)} - {"keep"} <= set(shard)
        h, w = shard["size"]
        moving = shard["label"][..., :h, :w] > 127
        assert 0 < moving.mean() < 0.5 and not shard["label"][..., h:, :].any()
        whole = shard["label"][..., :h, :w] == 255  # outlines are shared with what is behind
        assert whole.any()
        assert shard["kind"][..., :h, :w][whole].min() > 0, "what moves is of some kind"


def test_what_cannot_be_trained_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path), "--pieces", "0"]) == 2
    assert "--pieces is 0" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path), "--minutes", "-1"]) == 2
    assert "--minutes is -1" in capsys.readouterr().err
