"""Engines as the rest of the package uses them: exported, loaded, stepped on scenes whose depth is
known."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from recon4d_ros import engine as engines  # noqa: E402
from recon4d_ros import paths  # noqa: E402
from recon4d_ros.cameras.calibration import make_calibration  # noqa: E402
from recon4d_ros.engine.any_size import at_sizes, write_fixed  # noqa: E402
from recon4d_ros.engine.base import sha256_of  # noqa: E402
from recon4d_ros.errors import EngineError, OutputError, ParameterError  # noqa: E402
from recon4d_ros.export import ExportArguments, default_export_arguments, export_engine  # noqa: E402
from recon4d_ros.types import Camera, Frame, Rig  # noqa: E402

SIZE, WORKING = (128, 256), (128, 256)
OPTICAL = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]]
)  # optical axes in base_link, 1.5 m up


def make_rig(count, baseline=0.5):
    cameras = []
    for index in range(count):
        pose = OPTICAL.copy()
        pose[1, 3] = -baseline * index  # to the right
        cameras.append(
            Camera(
                f"camera_{index}",
                SIZE[1],
                SIZE[0],
                np.array([[200.0, 0, 127.5], [0, 200.0, 63.5], [0, 0, 1]]),
                pose,
            )
        )
    return Rig("test", tuple(cameras))


def texture(seed=3):
    """A wall's grey value at (x, y) metres: smooth noise, periodic every 51.2 m."""
    noise = np.random.default_rng(seed).random((512, 512))
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(noise, 0.7, mode="wrap")
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())

    def at(x, y):
        from scipy.ndimage import map_coordinates

        return map_coordinates(
            smooth,
            [np.mod(y * 10, 512).ravel(), np.mod(x * 10, 512).ravel()],
            order=1,
            mode="grid-wrap",
        ).reshape(x.shape)

    return at


WALL = texture()


def render(rig, T_map_base, slant=0.0, distance=8.0):
    """Images [N, H, W, 1] of the wall `x = distance + slant * y` in map (x forward, y left), and
    true depth [N, H, W]."""
    images, depths = [], []
    v, u = np.indices(SIZE, np.float64)
    for camera in rig.cameras:
        pose = T_map_base @ camera.T_base_camera
        rays = (
            np.stack(
                [
                    (u - camera.k[0, 2]) / camera.k[0, 0],
                    (v - camera.k[1, 2]) / camera.k[1, 1],
                    np.ones_like(u),
                ],
                -1,
            )
            @ pose[:3, :3].T
        )
        origin = pose[:3, 3]
        depth = (distance + slant * origin[1] - origin[0]) / (rays[..., 0] - slant * rays[..., 1])
        hit = origin + rays * depth[..., None]
        images.append(WALL(hit[..., 1] + 20, hit[..., 2] + 20) * 200 + 20)
        depths.append(depth)
    return np.stack(images)[..., None].astype(np.uint8), np.stack(depths)


def at(x=0.0, y=0.0):
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def frame(images, present=None, stamp=0):
    count = len(images)
    return Frame(
        stamp, images, np.ones(count, bool) if present is None else present, np.full(count, stamp)
    )


def still(count):
    return np.zeros((count, *WORKING), bool)


def shipped(name, folder):
    """A shipped engine of one size."""
    source = paths.engines() / name
    spec = at_sizes(engines.load_spec(source), SIZE, WORKING)
    folder.mkdir()
    write_fixed(source / spec.model, spec, folder / "model.onnx")
    digest = sha256_of(folder / "model.onnx")
    dataclasses.replace(spec, shapes={}, model_sha256=digest).save(folder / "engine.yaml")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One of one camera exported here (grey), the others as they are shipped: to export takes most
    of a minute, and test_a_pair_and_three_cameras_are_exported (`full`) does it with them."""
    folder = tmp_path_factory.mktemp("engines")
    export_engine(folder / "mono", ExportArguments("surround", 1, SIZE, WORKING, 1, pointers=256))
    shipped("geometric_stereo", folder / "stereo")
    shipped("geometric_surround3", folder / "trio")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("config, cameras", [("stereo", 2), ("surround", 3)])
def test_a_pair_and_three_cameras_are_exported(tmp_path, config, cameras):
    arguments = ExportArguments(config, cameras, SIZE, WORKING, 1, pointers=256)
    export_engine(tmp_path / "engine", arguments)
    reports_its_parity(tmp_path / "engine")
    is_static(tmp_path / "engine")
    rig = make_rig(cameras)
    geometry, depth = drive(engines.load(tmp_path / "engine", rig), rig, 3)
    sure = geometry.confidence > 0.3
    assert sure.mean() > 0.5
    assert np.mean(np.abs(geometry.depth - depth)[sure] / depth[sure]) < 0.05


def drive(engine, rig, steps, runtime_absent=(), moving=None, **scene):
    """Steps past the wall, 0.6 m a step to the side; the last Geometry and its true depth."""
    calibration = make_calibration(rig, SIZE, WORKING)
    for step in range(steps):
        pose = at(0.0, -0.6 * step)
        images, depth = render(rig, pose, **scene)
        present = np.array([index not in runtime_absent for index in range(len(rig.cameras))])
        images[~present] = 0
        images = np.repeat(images, engine.spec.channels, -1)
        geometry = engine.step(
            frame(images, present),
            calibration,
            pose @ rig.T_base_camera,
            still(len(rig.cameras)) if moving is None else moving,
        )
    return geometry, depth


@pytest.mark.parametrize("slant", [0.0, 0.3])
def test_stereo_finds_a_wall_whose_depth_is_known(built, slant):
    rig = make_rig(2)
    engine = engines.load(built / "stereo", rig)
    geometry, depth = drive(engine, rig, 1, slant=slant)
    for index in range(2):
        known = np.isfinite(geometry.depth[index])
        assert known.mean() > 0.85
        error = np.abs(geometry.depth[index] - depth[index])[known]
        assert np.mean(error / depth[index][known]) < 0.02
        assert np.median(error / geometry.sigma[index][known]) < 2
    assert geometry.color.shape == (2, *WORKING, 3)
    assert geometry.confidence.min() >= 0 and geometry.confidence.max() <= 1


@pytest.mark.parametrize("name, count", [("mono", 1), ("trio", 3)])
def test_motion_and_rig_neighbours_find_the_wall(built, name, count):
    rig = make_rig(count)
    engine = engines.load(built / name, rig)
    geometry, depth = drive(engine, rig, 3)
    sure = geometry.confidence > 0.3
    assert sure.mean() > 0.5
    assert np.mean(np.abs(geometry.depth - depth)[sure] / depth[sure]) < 0.05


def test_one_camera_that_never_moved_knows_no_depth(built):
    rig = make_rig(1)
    engine = engines.load(built / "mono", rig)
    images, _ = render(rig, at())
    calibration = make_calibration(rig, SIZE, WORKING)
    for _ in range(3):
        geometry = engine.step(frame(images), calibration, rig.T_base_camera, still(1))
    assert not (geometry.confidence > 0.2).any()


def test_an_absent_camera_gives_nothing_and_the_others_go_on(built):
    rig = make_rig(3)
    engine = engines.load(built / "trio", rig)
    geometry, depth = drive(engine, rig, 3, runtime_absent=(1,))
    assert np.isnan(geometry.depth[1]).all() and not geometry.confidence[1].any()
    for index in (0, 2):
        sure = geometry.confidence[index] > 0.3
        assert sure.mean() > 0.3
        assert (
            np.mean(np.abs(geometry.depth[index] - depth[index])[sure] / depth[index][sure]) < 0.06
        )


def test_pointers_lie_on_the_wall_and_are_seen_again(built):
    rig = make_rig(2)
    engine = engines.load(built / "stereo", rig)
    drive(engine, rig, 5)
    pointers = engine.pointers()
    assert pointers.valid.sum() > 10
    assert 0 < engine.memory_fill <= 1
    assert np.abs(pointers.position[pointers.valid][:, 0] - 8).mean() < 0.4
    assert (pointers.weight[pointers.valid] > 1.5).any()
    assert pointers.feature.shape == (engine.spec.pointers, engine.spec.feature)
    engine.reset()
    assert engine.memory_fill == 0


def test_what_moves_never_enters_the_memory(built):
    rig = make_rig(2)
    engine = engines.load(built / "stereo", rig)
    drive(engine, rig, 4, moving=np.ones((2, *WORKING), bool))
    assert engine.memory_fill == 0
    half = still(2)
    half[:, :, : WORKING[1] // 2] = True  # the left half moves
    engine.reset()
    calibration = make_calibration(rig, SIZE, WORKING)
    images, _ = render(rig, at())
    images = np.repeat(images, engine.spec.channels, -1)
    for _ in range(3):
        engine.step(frame(images), calibration, rig.T_base_camera, half)
    pointers = engine.pointers()
    assert pointers.valid.any()
    assert pointers.position[pointers.valid][:, 1].max() <= 0.1  # left is positive y


def test_a_drive_is_the_same_far_from_the_origin(built):
    rig = make_rig(1)
    calibration = make_calibration(rig, SIZE, WORKING)
    results = []
    for origin in (0.0, 640_000.0):  # a multiple of the anchor's grid: exact in float64
        engine = engines.load(built / "mono", rig)
        for step in range(4):
            images, _ = render(rig, at(0.0, -0.6 * step))
            geometry = engine.step(
                frame(images), calibration, at(origin, -0.6 * step) @ rig.T_base_camera, still(1)
            )
        results.append((geometry, engine.pointers()))
    (near, near_pointers), (far, far_pointers) = results
    assert np.array_equal(near.depth, far.depth, equal_nan=True)
    valid = near_pointers.valid
    assert np.array_equal(valid, far_pointers.valid) and valid.sum() > 5
    assert np.allclose(
        far_pointers.position[valid] - [640_000.0, 0, 0],
        near_pointers.position[valid],
        rtol=0,
        atol=1e-3,
    )


def test_the_anchor_follows_the_car_and_pointers_stay_where_they_are(built):
    rig = make_rig(2)
    engine = engines.load(built / "stereo", rig)
    drive(engine, rig, 3)
    before = engine.pointers()
    calibration = make_calibration(rig, SIZE, WORKING)
    blank = np.zeros((2, *SIZE, 3), np.uint8)
    engine.step(frame(blank), calibration, at(500.0, 0.0) @ rig.T_base_camera, still(2))
    after = engine.pointers()
    untouched = before.valid & after.valid & (after.age == before.age + 1)
    assert untouched.sum() > 5
    assert np.abs(before.position - after.position)[untouched].max() < 1e-3
    assert np.abs(after.position[after.valid]).max() < 50


@pytest.mark.parametrize("name, count", [("stereo", 2), ("trio", 3)])
@pytest.mark.parametrize(
    "runtime", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.full)]
)
def test_the_same_run_twice_is_bit_identical(built, runtime, name, count):
    rig = make_rig(count)
    runs = []
    for _ in range(2):
        engine = engines.load(built / name, rig, runtime=runtime)
        geometry, _ = drive(engine, rig, 3, slant=0.2)
        runs.append((geometry, engine.pointers()))
    for field in ("depth", "sigma", "confidence", "color"):
        assert np.array_equal(
            getattr(runs[0][0], field), getattr(runs[1][0], field), equal_nan=True
        )
    assert np.array_equal(runs[0][1].position, runs[1][1].position)


@pytest.mark.parametrize(
    "name, count", [("stereo", 2), ("mono", 1), pytest.param("trio", 3, marks=pytest.mark.full)]
)
def test_runtimes_agree_over_a_stream_but_for_ties(built, name, count):
    rig = make_rig(count)
    results = {
        runtime: drive(engines.load(built / name, rig, runtime=runtime), rig, 4, slant=0.2)[0]
        for runtime in ("openvino", "onnxruntime")
    }
    a, b = results.values()
    assert (np.isnan(a.depth) != np.isnan(b.depth)).mean() < 0.01
    both = np.isfinite(a.depth) & np.isfinite(b.depth)
    assert (np.abs(a.depth - b.depth)[both] > 0.01 * a.depth[both]).mean() < 0.01
    assert (np.abs(a.color.astype(int) - b.color) > 1).mean() < 0.001


def reports_its_parity(folder):
    spec = engines.load_spec(folder)
    assert set(spec.parity) == {"openvino", "onnxruntime"}
    for report in spec.parity.values():
        assert set(report["differs"]) == {output.removeprefix("new_") for output in spec.outputs}, (
            "the memory too"
        )
        assert report["worst"] < 0.01
        assert report["milliseconds"] > 0
    assert "recon4d_geometric" in engines.describe(folder)


def test_export_reports_its_parity_with_pytorch(built):
    reports_its_parity(built / "mono")


def is_static(folder):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(folder / "model.onnx")).graph
    for value in [*graph.input, *graph.output]:
        assert all(
            dimension.HasField("dim_value") and dimension.dim_value > 0
            for dimension in value.type.tensor_type.shape.dim
        ), value.name
    assert not {node.op_type for node in graph.node} & {
        "NonZero",
        "Loop",
        "If",
        "SequenceInsert",
        "Unique",
        "NonMaxSuppression",
    }


def test_every_shape_in_the_graph_is_static(built):
    is_static(built / "mono")


@pytest.mark.parametrize("name", sorted(path.name for path in paths.engines().iterdir()))
def test_every_output_of_a_shipped_engine_was_compared(name):
    spec = engines.load_spec(paths.engines() / name)
    for report in spec.parity.values():
        assert (
            set(report["differs"]) == {output.removeprefix("new_") for output in spec.outputs}
            and report["worst"] <= 0.01
        )


def test_find_engine_takes_the_one_that_fits(built):
    assert engines.find_engine(make_rig(2), built).name == "stereo"
    assert engines.find_engine(make_rig(1), built).name == "mono"
    assert engines.find_engine(make_rig(3), built).name == "trio"
    assert engines.find_engine(make_rig(4), built) is None
    assert (
        engines.find_engine(make_rig(2, baseline=-0.5), built) is None
    )  # right camera first: not the pair that stereo is made for
    assert engines.find_engine(make_rig(1), built / "nothing") is None


def test_default_arguments_suit_the_rig():
    pair = default_export_arguments(make_rig(2))
    assert (pair.config, pair.cameras, pair.input_size) == ("stereo", 2, SIZE)
    rig = Rig(
        "six",
        tuple(
            Camera(
                f"c{i}",
                1936,
                1216,
                np.array([[1000.0, 0, 960], [0, 1000.0, 600], [0, 0, 1]]),
                OPTICAL,
            )
            for i in range(6)
        ),
    )
    six = default_export_arguments(rig)
    assert (six.config, six.input_size) == ("surround", (608, 968))
    assert all(size % 4 == 0 for size in six.working_size)


def rewrite(folder, **fields):
    path = folder / "engine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "harm, sentence",
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / "engine.yaml").unlink(), "engine.yaml is missing"),
        (lambda f: (f / "engine.yaml").write_text("format: [1"), "cannot be read"),
        (lambda f: (f / "engine.yaml").write_text("a: " + "[" * 40_000), "nested deeper than 50"),
        (lambda f: (f / "engine.yaml").write_text("- 1"), "not a table"),
        (
            lambda f: (f / "engine.yaml").write_text(
                (f / "engine.yaml").read_text().replace("format: 1", "format: 99")
            ),
            "format 99",
        ),
        (
            lambda f: (f / "engine.yaml").write_text(
                (f / "engine.yaml").read_text().replace("cameras: 1", "cameras: many")
            ),
            "cameras is 'many'",
        ),
        (lambda f: rewrite(f, cameras=0), "cameras is 0"),
        (lambda f: rewrite(f, options=None), "options is None"),
        (lambda f: rewrite(f, options={"stride": 4}), "options is {'stride': 4"),
        (lambda f: rewrite(f, options={"memory": {"pointer_valid": [-1]}}), "options is {'memory'"),
        (lambda f: rewrite(f, options={"memory": ["pointer_valid"]}), "options is {'memory'"),
        (lambda f: rewrite(f, parity=None), "parity is None"),
        (lambda f: rewrite(f, parity={"openvino": None}), "parity"),
        (lambda f: rewrite(f, parity={"openvino": {"differs": {}, "worst": "a"}}), "parity"),
        (lambda f: rewrite(f, versions=None), "versions is None"),
        (lambda f: rewrite(f, model=["model.onnx"]), r"model is \['model.onnx'"),
        (lambda f: rewrite(f, model="../mono/model.onnx"), "model is '../mono"),
        (
            lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-1000]),
            "truncated or changed",
        ),
        (lambda f: (f / "model.onnx").unlink(), "model.onnx is missing"),
    ],
)
def test_a_bad_engine_folder_is_one_sentence(built, tmp_path, harm, sentence):
    folder = tmp_path / "engine"
    shutil.copytree(built / "mono", folder)
    harm(folder)
    with pytest.raises(EngineError, match=sentence) as caught:
        engines.describe(folder)
        engines.load(folder)
    assert "\n" not in str(caught.value)


def test_an_engine_for_another_rig_or_runtime_is_one_sentence(built):
    with pytest.raises(EngineError, match="does not fit rig test"):
        engines.load(built / "mono", make_rig(2))
    with pytest.raises(EngineError, match=r"is made for 1 camera\(s\): this rig has 2"):
        engines.load(built / "mono", make_calibration(make_rig(2), SIZE, WORKING))
    with pytest.raises(EngineError, match="works at 256x128"):
        engines.load(built / "mono", make_calibration(make_rig(1), SIZE, (64, 128)))
    with pytest.raises(EngineError, match="runtime 'abacus' is not known"):
        engines.load(built / "mono", runtime="abacus")


def test_a_pose_that_is_not_finite_is_refused(built):
    rig = make_rig(1)
    engine = engines.load(built / "mono", rig)
    images, _ = render(rig, at())
    with pytest.raises(EngineError, match="not finite"):
        engine.step(
            frame(images),
            make_calibration(rig, SIZE, WORKING),
            np.full((1, 4, 4), np.nan),
            still(1),
        )
    with pytest.raises(EngineError, match="images has shape"):
        engine.step(
            frame(images[:, :-1]), make_calibration(rig, SIZE, WORKING), rig.T_base_camera, still(1)
        )


def test_export_refuses_what_it_cannot_do(built, tmp_path):
    with pytest.raises(OutputError, match="is there already"):
        export_engine(built / "mono", ExportArguments("surround", 1, SIZE, WORKING, 1))
    for arguments, sentence in (
        (ExportArguments("stereo", 3, SIZE, WORKING, 1), "stereo takes 2"),
        (ExportArguments("surround", 1, SIZE, (130, 255), 1), "multiples of 4"),
        (ExportArguments("surround", 1, SIZE, WORKING, 2), "channels is 2"),
        (ExportArguments("surround", 1, SIZE, WORKING, 1, network="magic"), "network 'magic'"),
    ):
        with pytest.raises(ParameterError, match=sentence):
            export_engine(tmp_path / "x", arguments)
    with pytest.raises(ParameterError, match="option 'warp'"):
        export_engine(tmp_path / "x", ExportArguments("surround", 1, SIZE, WORKING, 1), warp=9)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_what_is_missing_is_named(built, monkeypatch):
    """TensorRT without NVIDIA's bindings of CUDA is not helped by installing TensorRT."""
    for module, package in (("cuda", "cuda-bindings"), ("tensorrt", "tensorrt")):

        def missing(name, module=module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

        monkeypatch.setattr(engines.importlib, "import_module", missing)
        with pytest.raises(
            EngineError,
            match=rf"is not installed here \(No module named '{module}'\): pip install {package},",
        ):
            engines.load(built / "mono")


def test_on_a_gpu_onnx_runtime_computes_in_all_of_float32(built, monkeypatch):
    from recon4d_ros.engine import onnxruntime as runtime

    asked = {}

    class Session(runtime.ort.InferenceSession):
        def __init__(self, model, options, providers):
            asked["providers"] = providers
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        runtime.ort,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(runtime.ort, "InferenceSession", Session)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    spec = engines.load_spec(built / "mono")
    started = runtime.OnnxRuntime(
        built / "mono/model.onnx", dataclasses.replace(spec, precision="bf16"), {}
    )
    assert asked["providers"] == [
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "CPUExecutionProvider",
    ]
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert started.device == "onnxruntime CPU, bf16"
