"""Engines of any size: the shipped ones, specialised for rigs when they are loaded; no PyTorch."""

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros import engine as engines
from recon4d_ros import paths
from recon4d_ros.cameras.calibration import make_calibration, reduction, sizes_for
from recon4d_ros.cameras.preprocess import Preprocessor
from recon4d_ros.engine.any_size import at_sizes, input_shapes, value_of, write_fixed
from recon4d_ros.engine.choose import NoEngineFits, choose_engine
from recon4d_ros.engine.hosted import constant_inputs, empty_outputs
from recon4d_ros.errors import EngineError
from recon4d_ros.export.scene import example_inputs
from recon4d_ros.types import Camera, Frame, FrameSet, RawImage, Rig

SHIPPED = sorted(path.name for path in paths.engines().glob("geometric_*"))
OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
WALL = 6.0  # metres ahead


def camera(name, width, height, right=0.0, focal=0.7, turn=0.0):
    pose = OPTICAL.copy()
    pose[:3, :3] = rotation(turn) @ pose[:3, :3]
    pose[1, 3] = -right
    f = focal * max(width, height)
    k = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])
    return Camera(name, width, height, k, pose)


def rotation(yaw):
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def rig(*sizes, baseline=0.5, turn=0.0):
    return Rig(
        "test",
        tuple(
            camera(f"c{i}", *size, right=baseline * i, turn=turn * i)
            for i, size in enumerate(sizes)
        ),
    )


def noise():
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(np.random.default_rng(3).random((512, 512)), 0.7, mode="wrap")
    return (x - x.min()) / (x.max() - x.min())


TEXTURE = noise()


def photograph(one, across):
    """The wall's image [height, width] in a camera of a car that has moved `across` metres to the
    right, and its depth, metres."""
    from scipy.ndimage import map_coordinates

    v, u = np.indices((one.height, one.width), np.float64)
    rays = np.stack([(u - one.k[0, 2]) / one.k[0, 0], (v - one.k[1, 2]) / one.k[1, 1]], -1)
    x = rays[..., 0] * WALL - one.T_base_camera[1, 3] + across
    y = rays[..., 1] * WALL
    grey = map_coordinates(
        TEXTURE, [np.mod(y * 10, 512).ravel(), np.mod(x * 10, 512).ravel()], order=1, mode="wrap"
    )
    return (grey.reshape(u.shape) * 200 + 20).astype(np.uint8)


def drive(car, encoding="mono8", steps=3, runtime=""):
    """The last step's Geometry of a drive past the wall with the shipped engine that fits."""
    folder = choose_engine("", car)
    engine = engines.load(folder, car, runtime=runtime)
    calibration = make_calibration(car, engine.spec.input_size, engine.spec.working_size)
    preprocessor = Preprocessor(car, calibration, engine.spec.channels)
    still = np.zeros((len(car.cameras), *engine.spec.working_size), bool)
    for step in range(steps):
        images = {}
        for one in car.cameras:
            pixels = photograph(one, 0.5 * step)
            pixels = np.repeat(pixels[..., None], 3, 2) if encoding == "rgb8" else pixels
            data = np.frombuffer(pixels.tobytes(), np.uint8)
            images[one.name] = RawImage(step, encoding, data, one.width, one.height)
        frame, dropped = preprocessor(FrameSet(step, images))
        assert not dropped
        pose = np.eye(4)
        pose[1, 3] = -0.5 * step
        geometry = engine.step(frame, calibration, pose @ car.T_base_camera, still)
    engine.close()
    return geometry


def errors(geometry):
    """Share of sure pixels by camera, and their median relative error: a few lie far off, with the
    graphs of fixed sizes too."""
    sure = geometry.confidence > 0.3
    return sure.mean((1, 2)), np.median(np.abs(geometry.depth - WALL)[sure] / WALL)


def test_there_is_one_for_every_number_of_cameras_and_for_a_pair():
    assert SHIPPED == ["geometric_stereo", *(f"geometric_surround{n}" for n in range(1, 9))]
    for count in range(1, 9):
        car = rig(*[(640, 480)] * count, turn=0.7)
        assert choose_engine("", car).name == f"geometric_surround{count}"
    assert choose_engine("", rig((1241, 376), (1241, 376))).name == "geometric_stereo"
    # right camera first, and a pair of two sizes: not what stereo is made for
    assert choose_engine("", rig((640, 480), (640, 480), baseline=-0.5)).name.endswith("surround2")
    assert choose_engine("", rig((640, 480), (1280, 720))).name.endswith("surround2")
    with pytest.raises(NoEngineFits, match="no shipped engine is for 9 cameras") as caught:
        choose_engine("", rig(*[(640, 480)] * 9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sizes, encoding",
    [
        ([(640, 480)] * 2, "mono8"),
        ([(1226, 370)] * 2, "rgb8"),
        ([(480, 640)] * 2, "mono8"),  # portrait
        ([(333, 217)] * 2, "mono8"),
    ],
)
def test_a_pair_of_any_size_finds_the_wall(sizes, encoding):
    known, error = errors(drive(rig(*sizes, baseline=0.3), encoding, steps=1))
    assert known.min() > 0.7 and error < 0.02


@pytest.mark.parametrize(
    "sizes",
    [
        [(1242, 375)],
        [(600, 960)],
        [(968, 608), (640, 480), (480, 640)],  # mixed, one of them portrait
    ],
)
def test_any_rig_finds_the_wall(sizes):
    known, error = errors(drive(rig(*sizes)))
    assert known.min() > 0.3 and error < 0.06


@pytest.mark.full
def test_both_cpu_runtimes_take_any_size():
    a, b = (drive(rig((500, 300)), steps=4, runtime=name) for name in ("openvino", "onnxruntime"))
    assert a.depth.shape == (1, *sizes_for(rig((500, 300)), False)[1])
    both = np.isfinite(a.depth) & np.isfinite(b.depth)
    assert both.mean() > 0.3
    assert (np.isfinite(a.depth) != np.isfinite(b.depth)).mean() < 0.01
    assert (np.abs(a.depth - b.depth)[both] > 0.01 * a.depth[both]).mean() < 0.01


def test_a_model_can_be_fixed_to_its_sizes(tmp_path):
    """What a runtime builds from that knows fixed sizes only: the same results, no symbols."""
    folder = paths.engines() / "geometric_surround1"
    spec = at_sizes(engines.load_spec(folder), (100, 150), (80, 120))
    write_fixed(folder / spec.model, spec, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    shapes = input_shapes(spec)
    assert {value.name: tuple(value.shape) for value in session.get_inputs()} == shapes
    given_ = {name: array for name, array in example_inputs(spec, 1).items() if name in spec.inputs}
    memory = {name: np.zeros(shapes[name], np.float32) for name in spec.options["memory"]}
    fixed = session.run(["depth"], given_ | memory)[0]
    runtime = engines.start_runtime(folder, spec, "onnxruntime")
    outputs = empty_outputs(spec)
    runtime.run(given_, outputs)
    assert np.array_equal(outputs["depth"], fixed)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(32, 8192), st.integers(32, 8192)), min_size=8, max_size=8),
    st.booleans(),
)
def test_sizes_for_any_rig_are_ones_that_an_engine_has(count, sizes, stereo):
    """Multiples of 4 from 64 up, about the images' proportions; all images fit, averaged down no
    further than to twice the working size."""
    sizes = sizes[:count]
    car = rig(*sizes)
    (height, width), (h, w) = sizes_for(car, stereo)
    assert h % 4 == 0 == w % 4 and 64 <= min(h, w) and max(h, w) <= 896
    aspect = sorted(height / width for width, height in sizes)[count // 2]
    assert min(h, w) == 64 or h / w == pytest.approx(aspect, rel=2.1 / min(h, w) + 0.001)
    for one in car.cameras:
        reduce = reduction(one, (height, width))  # refuses a camera that does not fit
        assert reduce == 1 or (one.height / reduce > 1.9 * h and one.width / reduce > 1.9 * w)


def test_an_image_smaller_than_the_input_goes_on_at_its_border():
    car = rig((640, 480), (100, 80), baseline=1.0)
    (height, width), working = sizes_for(car, False)
    preprocessor = Preprocessor(car, make_calibration(car, (height, width), working), 1)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100), np.uint8)
    image = RawImage(0, "mono8", pixels.ravel(), 100, 80)
    frame, _ = preprocessor(FrameSet(0, {"c1": image}))
    assert isinstance(frame, Frame) and frame.images.shape == (2, height, width, 1)
    expected = np.pad(pixels, ((0, height - 80), (0, width - 100)), mode="edge")
    assert np.array_equal(frame.images[1, ..., 0], expected)
    assert not frame.images[0].any() and frame.present.tolist() == [False, True]


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_dimensions_are_what_their_expressions_say(h, w):
    sizes = {"h": h, "w": w}
    assert value_of("6*(h//32)*(w//32)", sizes) == 6 * (h // 32) * (w // 32)
    assert value_of("h//2", sizes) == h // 2 and value_of(7, sizes) == 7


@pytest.mark.parametrize("text", ["", "h-1", "__import__('os')", "q", "h//0", "h**9", "2.5", "h("])
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ValueError, match="no dimension"):
        value_of(text, {"h": 64, "w": 64})


@pytest.mark.parametrize(
    "shapes",
    [
        {"images": [1, "H", "W", 3]},
        {"images": ["h - 1"]},
        {"images": None},
        [1, 2],
        {"images": [{}]},
    ],
)
def test_bad_shapes_in_engine_yaml_are_one_sentence(tmp_path, shapes):
    tree = yaml.safe_load((paths.engines() / "geometric_surround1/engine.yaml").read_text())
    (tmp_path / "engine.yaml").write_text(yaml.safe_dump({**tree, "shapes": shapes}))
    with pytest.raises(EngineError, match="shapes is") as caught:
        engines.load_spec(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_specification_says_the_rigs_sizes_and_the_file_those_it_was_measured_at():
    folder = paths.engines() / "geometric_surround2"
    car = rig((1600, 900), (1600, 900), turn=1.0)
    spec, measured = engines.load_spec(folder, car), engines.load_spec(folder)
    assert (spec.input_size, spec.working_size) == sizes_for(car, False)
    assert spec.options["memory"]["key_inverse"] == [2, *(s // 2 for s in spec.working_size)]
    assert measured.input_size != spec.input_size
    assert at_sizes(spec, measured.input_size, measured.working_size) == measured
    assert "of any size" in engines.describe(folder)
    fixed = dataclasses.replace(measured, shapes={})
    assert at_sizes(fixed, (10, 10), (10, 10)) is fixed
    calibration = make_calibration(car, spec.input_size, spec.working_size)
    assert constant_inputs(spec, calibration)["partner"].shape == (
        2,
        *(s // 2 for s in spec.working_size),
    )
