"""Pieces of the geometric graph against what they stand for, written plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from recon4d_ros.networks.geometric import (  # noqa: E402
    CUE_ROUNDS,
    RECALL_ROUNDS,
    GeometricStep,
    finer,
)
from recon4d_ros.networks.geometric_options import SURROUND, GeometricOptions  # noqa: E402
from recon4d_ros.networks.pointer_memory import FEATURE, SIGMA, Memory  # noqa: E402
from recon4d_ros.networks.splat import nearest_of  # noqa: E402


def z_buffer(pixel, inverse, value, pixels):
    """The scatter with reduction that nearest_of stands for."""
    there = pixel >= 0
    nearest, of_nearest = np.zeros(pixels, np.float32), np.zeros(pixels, np.float32)
    np.maximum.at(nearest, pixel[there], inverse[there])
    front = there & (inverse >= nearest[np.maximum(pixel, 0)])
    np.maximum.at(of_nearest, pixel[front], value[front])
    return nearest, of_nearest


def splat(pixel, inverse, value, pixels, rounds):
    return [
        tensor.numpy()
        for tensor in nearest_of(
            torch.from_numpy(pixel.astype(np.float32)),
            torch.from_numpy(inverse),
            torch.from_numpy(value),
            pixels,
            rounds,
        )
    ]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(-1, 40), st.integers(1, 99), st.integers(0, 9)),
        min_size=1,
        max_size=200,
    ),
    st.integers(41, 300),
)
def test_the_nearest_of_each_pixel_wins(points, pixels):
    pixel = np.array([point[0] for point in points])
    inverse, value = (np.array([p[i] for p in points], np.float32) for i in (1, 2))
    # no two as near as each other, which may fall either way
    inverse += np.arange(len(points), dtype=np.float32) * np.float32(1e-3)
    if len(set(inverse.tolist())) < len(points):
        return
    most = int(np.bincount(pixel[pixel >= 0], minlength=1).max()) if (pixel >= 0).any() else 1
    expected = z_buffer(pixel, inverse, value, pixels)
    got = splat(pixel, inverse, value, pixels, max(1, most))
    assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])


@pytest.mark.parametrize("rounds", [RECALL_ROUNDS, CUE_ROUNDS])
def test_as_many_points_as_rounds_are_told_apart_in_the_worst_order(rounds):
    inverse = np.linspace(2.0, 1.0, rounds, dtype=np.float32)  # a scatter in order keeps the last
    for order in (inverse, inverse[::-1].copy()):
        nearest, value = splat(np.zeros(rounds, int), order, order * 3, 2, rounds)
        assert nearest.tolist() == [2.0, 0.0] and value.tolist() == [6.0, 0.0]


def test_more_points_than_rounds_are_told_apart_in_any_usual_order():
    rng = np.random.default_rng(0)
    pixel = rng.integers(0, 500, 20_000)  # forty points a pixel
    inverse = rng.permutation(20_000).astype(np.float32) + 1
    expected = z_buffer(pixel, inverse, inverse, 500)[0]
    assert (splat(pixel, inverse, inverse, 500, CUE_ROUNDS)[0] == expected).mean() > 0.9


def step(config="surround", cameras=2, pointers=128):
    own = {} if config == "stereo" else SURROUND
    return GeometricStep(
        GeometricOptions(config, cameras, (96, 160), 3, (96, 160), pointers, **own)
    )


def pointers_seen(rng, network, n):
    """A memory and where its pointers are seen, many in the same places."""
    m = network.o.pointers
    memory = Memory(
        torch.zeros(m, 3),
        torch.from_numpy(rng.random((m, FEATURE)).astype(np.float32)),
        torch.from_numpy(rng.integers(0, 20, m).astype(np.float32)),
        torch.zeros(m),
        torch.ones(m),
    )
    seen = {
        "u": rng.integers(0, 160, (n, m)) // 8 * 8.0,
        "v": rng.integers(0, 96, (n, m)) // 8 * 8.0,
        "z": rng.permutation(n * m).reshape(n, m) / 10 + 1.0,
        "match": rng.random((n, m)) * 1.2,
    }
    return memory, {key: torch.from_numpy(np.float32(value)) for key, value in seen.items()}


@pytest.mark.parametrize("config", ["stereo", "surround"])
def test_the_cue_of_each_pixel_is_its_nearest_pointer(config):
    network = step(config)
    o, rng = network.o, np.random.default_rng(1)
    memory, seen = pointers_seen(rng, network, 2)
    inverse, spread = network.pointer_cue(memory, seen, torch.zeros(2, 1, 96, 160))
    y, x = o.volume_size
    u, v, z = (seen[key].numpy() for key in "uvz")
    pixel = (np.arange(2)[:, None] * y + np.int64(v // o.stride)) * x + np.int64(u // o.stride)
    pixel[seen["match"].numpy() <= o.agree] = -1
    sigma = memory.feature[None, :, SIGMA].numpy() / (z * z)
    expected = z_buffer(pixel.ravel(), np.float32(1 / z).ravel(), sigma.ravel(), 2 * y * x)
    assert np.allclose(inverse.numpy().ravel(), expected[0], rtol=1e-6)
    assert np.allclose(spread.numpy().ravel(), expected[1], rtol=1e-6)
    assert (expected[0] > 0).sum() > 50


@pytest.mark.parametrize("config", ["stereo", "surround"])
def test_the_pointer_of_each_cell_is_the_one_seen_best(config):
    network = step(config)
    o, rng = network.o, np.random.default_rng(2)
    n, rows, columns = o.token_cameras, 3, 5
    memory, seen = pointers_seen(rng, network, 2)
    chosen, hit = network.best_again(memory, seen, n, rows, columns)
    match, weight = seen["match"].numpy(), memory.weight.numpy()
    merit = np.clip(match * weight / (weight + 4), 0, 1)
    levels = 2**24 // o.pointers - 2
    packed = np.floor(merit * np.float32(levels - 1)) * o.pointers + np.arange(o.pointers) + 1
    for cell in range(n * rows * columns):
        camera, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        inside = (
            (seen["v"][camera].numpy() // o.cell == row)
            & (seen["u"][camera].numpy() // o.cell == column)
            & (match[camera] > o.agree)
        )
        assert bool(hit[cell]) == inside.any()
        if inside.any():
            best = np.where(inside, packed[camera], 0).argmax()
            assert int(chosen[cell]) == best


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_finer_is_bilinear(factor):
    x = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1))
    around = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    ours = torch.nn.functional.pixel_shuffle(
        torch.nn.functional.conv2d(around, finer(factor)), factor
    )
    theirs = torch.nn.functional.interpolate(
        x, scale_factor=float(factor), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(ours, theirs)
