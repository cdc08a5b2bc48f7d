"""Detectors as ONNX: what each layout says is read as boxes of the image, by both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="a model is made with onnx (requirements/dev.txt)")

from test_rolled_camera import small_pair  # noqa: E402
from tiny_detector import tiny_detector, yolo_table  # noqa: E402

from recon4d_ros import cli  # noqa: E402
from recon4d_ros.bags import BagReader, BagWriter  # noqa: E402
from recon4d_ros.bags.topics import DETECTIONS_2D  # noqa: E402
from recon4d_ros.cameras.preprocess import input_size_for, make_calibration  # noqa: E402
from recon4d_ros.engine.detector import (  # noqa: E402
    COCO,
    Description,
    Detector,
    cells,
    chosen,
    decoded,
    prepared,
    read_description,
    tiles,
)
from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.perception import _of_source  # noqa: E402
from recon4d_ros.types import ImageBox  # noqa: E402

SIZE = (64, 96)
NAMES = ("person", "car", "bus")
BOXES = np.array([[10.0, 12, 40, 30], [50, 8, 70, 60]])
SCORES = np.array([[0.05, 0.9, 0.1], [0.7, 0.0, 0.02]])


def encoded(layout: str) -> dict[str, np.ndarray]:
    """BOXES as a network of this layout says them, among cells that see nothing."""
    middle, sides = (BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]
    if layout == "yolov8":
        return {"output0": yolo_table(BOXES.tolist(), SCORES.tolist())}
    if layout == "yolox":
        points, strides = cells(SIZE, (8, 16, 32), 0.0)
        table = np.zeros((len(points), 5 + len(NAMES)))
        for row, (m, s, odds) in zip(
            (20, 124), zip(middle, sides, SCORES, strict=True), strict=True
        ):
            table[row, :2] = m / strides[row] - points[row]
            table[row, 2:4] = np.log(s / strides[row])
            table[row, 4:] = [0.95, *odds]
        return {"output": table[None]}
    if layout == "nanodet":
        points, strides = cells(SIZE, (8, 16, 32), 0.5)
        scores, distances = np.zeros((len(points), 3)), np.zeros((len(points), 4, 8))
        for box, odds in zip(BOXES, SCORES, strict=True):
            at = points * strides[:, None]
            reach = np.stack(
                [at[:, 0] - box[0], at[:, 1] - box[1], box[2] - at[:, 0], box[3] - at[:, 1]], -1
            )
            reach = reach / strides[:, None]
            row = int(np.flatnonzero(((reach > 0) & (reach < 6.9)).all(1))[0])
            scores[row] = odds
            low = np.floor(reach[row]).astype(int)
            share = reach[row] - low
            distances[row] = -30.0
            for side in range(4):  # between two bins, by their softmax
                distances[row, side, low[side]] = np.log(1 - share[side] + 1e-9)
                distances[row, side, low[side] + 1] = np.log(share[side] + 1e-9)
        counts = np.cumsum([8 * 12, 4 * 6])
        by_stride = {f"s{i}": one[None] for i, one in enumerate(np.split(scores, counts))}
        flat = distances.reshape(-1, 32)
        return by_stride | {f"d{i}": one[None] for i, one in enumerate(np.split(flat, counts))}
    size = np.array([96, 64, 96, 64])
    logits = np.log((SCORES + 1e-6) / (1 - SCORES - 1e-6 + 2e-6))
    return {"logits": logits[None], "pred_boxes": (np.concatenate([middle, sides], 1) / size)[None]}


@pytest.mark.parametrize("layout", ["yolov8", "yolox", "nanodet", "rtdetr"])
def test_every_layout_says_the_same(layout: str) -> None:
    description = Description(layout, NAMES)
    boxes, scores, of_image = decoded(encoded(layout), SIZE, description)
    found = chosen(boxes, scores, description)
    assert not of_image and [one.class_name for one in found] == ["car", "person"]
    for one, box in zip(found, BOXES, strict=True):
        np.testing.assert_allclose([one.left, one.top, one.right, one.bottom], box - 0.5, atol=2e-3)
    assert found[0].score == pytest.approx(0.9, abs=0.06)


def test_other_forms_of_the_same_layouts() -> None:
    description = Description("yolov8", NAMES)
    turned = {"o": encoded("yolov8")["output0"].transpose(0, 2, 1)}
    assert len(chosen(*decoded(turned, SIZE, description)[:2], description)) == 2
    nano = Description("nanodet", NAMES)
    parts = encoded("nanodet")
    whole = np.concatenate(
        [np.concatenate([parts[f"{kind}{i}"] for i in range(3)], 1) for kind in "sd"], 2
    )
    assert len(chosen(*decoded({"o": whole}, SIZE, nano)[:2], nano)) == 2
    detr = Description("rtdetr", NAMES)
    said = {
        "labels": np.array([[1, 0]]),
        "boxes": BOXES[None],
        "scores": np.array([[0.9, 0.7]]),
    }
    boxes, scores, of_image = decoded(said, SIZE, detr)
    assert of_image and chosen(boxes, scores, detr)[0].class_name == "car"
    joined = np.concatenate([encoded("rtdetr")["pred_boxes"], SCORES[None]], 2)
    assert len(chosen(*decoded({"o": joined}, SIZE, detr)[:2], detr)) == 2


@pytest.mark.parametrize("layout", ["yolov8", "yolox", "nanodet", "rtdetr"])
@pytest.mark.parametrize("shape", [(1, 5), (1, 8, 11), (3, 3)])
def test_outputs_of_another_layout_are_refused(layout: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        decoded({"o": np.zeros(shape)}, SIZE, Description(layout, NAMES))


@given(
    st.integers(20, 400),
    st.integers(20, 400),
    st.sampled_from(["top_left", "centre", "stretch"]),
)
@settings(max_examples=30, deadline=None)
def test_a_place_in_the_image_is_found_again(width: int, height: int, fit: str) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    left, top = width // 4, height // 4
    image[top : height // 2, left : width // 2] = (255, 0, 0)
    description = Description("yolov8", NAMES, fit=fit, pad=0)
    tensor, scale, shift = prepared(image, SIZE, description)
    assert tensor.shape == (1, 3, *SIZE) and tensor.dtype == np.float32
    rows, columns = np.nonzero(tensor[0, 0] > 127)
    start = np.array([left, top]) * scale + shift
    end = np.array([width // 2, height // 2]) * scale + shift
    np.testing.assert_allclose([columns.min(), rows.min()], start, atol=1.01)
    np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], end, atol=1.01)


def test_of_one_thing_the_best_box_stays_and_of_two_classes_both() -> None:
    description = Description("yolov8", NAMES)
    boxes = np.array(
        [[0, 0, 10, 10], [1, 0, 11, 10], [2, 2, 6, 6], [30, 0, 40, 10], [0, 0, 10, 10]]
    )
    scores = np.array([[0, 0.8, 0], [0, 0.9, 0], [0, 0.5, 0], [0, 0.2, 0], [0.6, 0, 0]], float)
    found = chosen(boxes.astype(float), scores, description)
    assert [(one.class_name, one.score) for one in found] == [("car", 0.9), ("person", 0.6)]
    nothing = chosen(np.full((1, 4), np.nan), np.ones((1, 3)), description)
    assert nothing == ()


@given(st.integers(1, 16), st.integers(40, 2000), st.integers(40, 2000))
def test_tiles_cover_the_width_and_stay_in_the_image(count: int, width: int, height: int) -> None:
    seen = np.zeros(width, bool)
    for left, top, right, bottom in tiles(width, height, count):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        seen[left:right] = True
    assert seen.all() and not tiles(width, height, 0)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("open_", [False, True])
def test_a_model_runs(tmp_path: Path, runtime: str, open_: bool) -> None:
    pytest.importorskip(runtime)
    description = {"layout": "yolov8", "classes": list(NAMES)} | (
        {"size": list(SIZE)} if open_ else {}
    )
    model = tiny_detector(tmp_path / "t.onnx", encoded("yolov8"), description, open_=open_)
    detector = Detector(model, runtime, threads=1)
    found = detector(np.zeros((128, 192, 3), np.uint8))  # twice the input's size
    assert [one.class_name for one in found] == ["car", "person"]
    np.testing.assert_allclose(
        [found[0].left, found[0].top, found[0].right, found[0].bottom],
        BOXES[0] * 2 - 0.5,
        atol=1e-3,
    )
    assert runtime in detector.device


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "description t.yaml is missing: expected at least `layout"),
        ("- a", "not a table"),
        ("layout: [", "cannot be read"),
        ("layout: ssd", "layout is 'ssd': expected one of nanodet, yolox, yolov8, rtdetr"),
        ("layout: yolox", "classes is None"),
        ("layout: yolox\nclasses: cocoa", "classes is 'cocoa'"),
        ("layout: yolox\nclasses: coco\nscores: 0.3", "unknown field 'scores'"),
        ("layout: yolox\nclasses: coco\nscore: 3", "score is 3"),
        ("layout: yolox\nclasses: coco\nstd: [0, 1, 1]", "std is"),
        ("layout: yolox\nclasses: coco\nsize: [416]", "size is"),
        ("layout: yolox\nclasses: [a, b, c]", "which layout yolox with 3 classes does not have"),
        ("layout: yolov8\nclasses: [a]", "expected 5 values a box"),
    ],
)
def test_what_is_wrong_with_a_description_is_a_sentence(tmp_path: Path, written, said) -> None:
    model = tiny_detector(tmp_path / "t.onnx", encoded("yolov8"), {})
    file = model.with_suffix(".yaml")
    file.unlink() if written is None else file.write_text(written)
    with pytest.raises(EngineError) as raised:
        Detector(model, threads=1)(np.zeros((64, 96, 3), np.uint8))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_models_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        Detector(tmp_path / "none.onnx")
    model = tiny_detector(
        tmp_path / "t.onnx",
        encoded("yolov8"),
        {"layout": "yolov8", "classes": list(NAMES)},
        open_=True,
    )
    with pytest.raises(EngineError, match="leaves its input's size open"):
        Detector(model, threads=1)
    model.write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot load it"):
        Detector(model, threads=1)
    with pytest.raises(EngineError, match="runtime 'tensorrt' does not run it"):
        Detector(model, "tensorrt")
    assert read_description(model).classes == NAMES and len(COCO) == 80


def test_boxes_of_the_working_input_are_the_source_images() -> None:
    """Of an image that is averaged down and, on its side, turned."""
    rig = small_pair(90)
    camera = rig.cameras[0]
    high, wide, reduce = input_size_for(rig, (32, 64))
    make_calibration(rig, (high, wide), (32, 64))
    whole = _of_source(ImageBox(-0.5, -0.5, wide - 0.5, high - 0.5), camera, reduce)
    np.testing.assert_allclose([whole.left, whole.top], [-0.5, -0.5], atol=reduce)
    np.testing.assert_allclose(
        [whole.right, whole.bottom], [camera.width - 0.5, camera.height - 0.5], atol=reduce
    )


# --- offline


@pytest.fixture(scope="module")
def bag_with_boxes(small_bag: Path, tmp_path_factory) -> Path:
    """The small bag with a box in each image of the left camera, and a topic of something else."""
    folder = tmp_path_factory.mktemp("boxes") / "bag"
    with BagReader(small_bag) as reader, BagWriter(folder) as writer:
        for topic, kind, receive_ns, data in reader.raw_messages():
            if topic.startswith("/camera/left/image_raw"):
                header = reader.deserialize(data, kind).header
                found = boxes(writer, header)
                writer.write("/detections/left", DETECTIONS_2D, found, receive_ns)
            writer.write_raw(topic, kind, data, receive_ns, topic == "/tf_static")
    return folder


def boxes(writer: BagWriter, header) -> object:
    def made(name: str, **fields: object) -> object:
        return writer.type(name)(**fields)

    point = made("vision_msgs/msg/Point2D", x=300.0, y=120.0)
    centre = made("vision_msgs/msg/Pose2D", position=point, theta=0.0)
    hypothesis = made("vision_msgs/msg/ObjectHypothesis", class_id="2", score=0.9)
    pose = made(
        "geometry_msgs/msg/PoseWithCovariance",
        pose=made(
            "geometry_msgs/msg/Pose",
            position=made("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
            orientation=made("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
        ),
        covariance=np.zeros(36),
    )
    result = made("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=pose)
    box = made("vision_msgs/msg/BoundingBox2D", center=centre, size_x=60.0, size_y=40.0)
    one = made("vision_msgs/msg/Detection2D", header=header, results=[result], bbox=box, id="")
    return made("vision_msgs/msg/Detection2DArray", header=header, detections=[one])


def test_a_bags_detections_are_used(bag_with_boxes: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["replay", str(bag_with_boxes), "--out", str(out), "--max-frames", "4"]
    named = ["-p", "dynamics.class_names=person, bicycle, car"]
    assert cli.main([*arguments, "--detections", "left=/detections/left", *named]) in (0, 4)
    summary = yaml.safe_load((out / "summary.json").read_text())
    assert summary["detections"]["used"] >= 3  # one of four is from before the pose is known
    assert sum(summary["detections"]["dropped"].values()) <= 1
    assert summary["memory_forgotten"] == {"engine": 0, "motion engine": 0}
    for topic, said in (
        ("left=/imu_or_so", "has no topic /imu_or_so"),
        ("left=/tf_static", "is tf2_msgs/msg/TFMessage: expected vision_msgs/msg/Detection2DArray"),
        ("rear=/detections/left", "--detections rear: no such camera: expected one of left, right"),
        ("left", "--detections left: expected CAMERA=/TOPIC"),
    ):
        code = cli.main([*arguments, "--force", "--detections", topic])
        assert code == 2 and said in capsys.readouterr().err


def test_a_detector_runs_beside_a_replay(small_bag: Path, tmp_path: Path) -> None:
    table = {"output0": yolo_table([[40, 20, 60, 40]], [[0.0, 0.9, 0.0]])}
    model = tiny_detector(tmp_path / "t.onnx", table, {"layout": "yolov8", "classes": list(NAMES)})
    arguments = ["replay", str(small_bag), "--out", str(tmp_path / "run"), "--max-frames", "4"]
    assert cli.main([*arguments, "--detector", str(model)]) in (0, 4)
    summary = yaml.safe_load((tmp_path / "run/summary.json").read_text())
    assert summary["detections"]["used"] >= 4  # two cameras
    assert summary["engines_beside"][0]["network"] == "t"
