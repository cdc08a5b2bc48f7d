"""What an export is worth: a model that forgets, gives no number, or was built wrong is refused;
what is there already is not lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from tiny_engine import SIZE, tiny_engine

from recon4d_ros import export
from recon4d_ros.engine.base import STAND_IN, EngineSpec
from recon4d_ros.errors import EngineError, OutputError, ParameterError
from recon4d_ros.export.compare import compare
from recon4d_ros.export.parity import check_parity, in_shares, share_off
from recon4d_ros.export.reference import from_runtime


def report(differences: dict[str, float]) -> dict:
    return {
        "x": {
            "outputs": {
                name: {"fed": value, "typical": value, "holes": 0.0}
                for name, value in differences.items()
            }
        }
    }


def spec_of(precision: str, checkpoint: str = "abc") -> EngineSpec:
    return EngineSpec(
        "n",
        "learned",
        "x",
        1,
        SIZE,
        1,
        SIZE,
        1,
        0,
        precision,
        "m",
        "",
        checkpoint_sha256=checkpoint,
    )


@pytest.mark.parametrize("config", ["learned", "stereo"])
def test_a_step_that_forgets_its_memory_is_found(tmp_path, config) -> None:
    """Its first step is right: nothing is in the memory yet."""
    truth = tiny_engine(tmp_path / "good")
    from_runtime(tmp_path / "reference.npz", tmp_path / "good", truth, "onnxruntime")
    for name, remembers in (("same", True), ("broken", False)):
        spec = tiny_engine(tmp_path / name, remembers)
        found = compare(tmp_path / name, "onnxruntime", tmp_path / "reference.npz")
        found = found if config == "learned" else in_shares(found)
        if remembers:
            check_parity({"onnxruntime": found}, spec)
        else:
            with pytest.raises(
                EngineError,
                match=r"onnxruntime does not compute what PyTorch does: .*(depth|state)",
            ):
                check_parity({"onnxruntime": found}, spec)


def test_what_is_no_number_differs() -> None:
    ones = np.ones(8)
    for name in ("depth", "new_state", "new_token_pixel"):
        assert share_off(name, ones, ones, 4) == 0
        assert (
            share_off(name, np.full(8, np.nan), ones, 4)
            == share_off(name, ones, np.full(8, np.nan), 4)
            == 1
        )
    assert share_off("depth", np.array([1, np.inf, 1, 1.02]), np.ones(4), 4) == 0.5


def test_a_pixel_beside_is_the_same_place_and_one_farther_is_not() -> None:
    width, pixel = 10, np.array([55.0])
    assert [
        share_off("new_token_pixel", pixel + step, pixel, width)
        for step in (1, width, width - 1, 2, 2 * width)
    ] == [0, 0, 0, 1, 1]
    assert share_off("new_token_pixel", np.array([0.0]), np.array([-1.0]), width) == 1, (
        "none is no pixel"
    )


@pytest.mark.parametrize(
    "precision, off, good",
    [
        ("fp32", 5e-4, True),
        ("fp32", 2e-3, False),
        ("bf16", 0.015, True),
        ("bf16", 0.03, False),
        ("fp16", 0.03, False),
        ("bf16", float("nan"), False),
    ],
)
def test_how_far_an_output_may_be_off(precision, off, good) -> None:
    parity = report({"depth": 0.0, "new_state": off})
    if good:
        check_parity(parity, spec_of(precision))
    else:
        with pytest.raises(EngineError, match="output new_state is off by"):
            check_parity(parity, spec_of(precision))


def test_what_means_nothing_is_not_held_to_two_percent_but_to_something() -> None:
    check_parity(report({"depth": 0.2}), spec_of("bf16", STAND_IN))
    for precision, off in (("bf16", 0.9), ("fp32", 0.002)):
        with pytest.raises(EngineError, match="output depth is off by"):
            check_parity(report({"depth": off}), spec_of(precision, STAND_IN))


def test_shares_of_three_percent_and_no_runtime_at_all() -> None:
    check_parity({"x": {"differs": {"depth": 0.029}}}, spec_of("fp32"))
    for share in (0.031, float("nan")):
        with pytest.raises(EngineError, match="of depth differ, expected 3% at most"):
            check_parity({"x": {"differs": {"depth": share}}}, spec_of("fp32"))
    with pytest.raises(EngineError, match="no runtime takes the exported model: none is installed"):
        check_parity({}, spec_of("fp32"))
    with pytest.raises(EngineError, match="no runtime takes the exported model: x: out of memory"):
        check_parity({"x": {"error": "out of memory"}}, spec_of("fp32"))


# --- what is there already


def test_force_replaces_engines_and_empty_folders_only(tmp_path, monkeypatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    (tmp_path / "link").symlink_to(home)
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(home)
    for name in (home, Path("."), tmp_path / "link", tmp_path / "file"):
        with (
            pytest.raises(OutputError, match="--force replaces engines only"),
            export.written_beside(name, force=True),
        ):
            raise AssertionError("not reached")
    assert (home / "letter.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    tiny_engine(tmp_path / "engine")
    for name in ("empty", "engine", "new"):
        with export.written_beside(tmp_path / name, force=True) as folder:
            (folder / "engine.yaml").write_text("new")
            assert name != "engine" or (tmp_path / "engine/model.onnx").is_file(), (
                "the old one lies there until the new one is whole"
            )
        assert (tmp_path / name / "engine.yaml").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "empty",
        "engine",
        "file",
        "home",
        "link",
        "new",
    ]


def test_an_engine_that_could_not_be_replaced_is_still_there(tmp_path, monkeypatch) -> None:
    tiny_engine(tmp_path / "engine")
    before = (tmp_path / "engine/engine.yaml").read_text()
    with pytest.raises(KeyError), export.written_beside(tmp_path / "engine", force=True):
        raise KeyError("interrupted")
    rename = Path.rename

    def fails(path: Path, target):
        if (
            path.name.startswith(".engine.")
            and Path(target).name == "engine"
            and "old" not in path.name
        ):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    replaced = export.written_beside(tmp_path / "engine", force=True)
    with pytest.raises(OutputError, match="cannot be written: No space left"), replaced as new:
        (new / "engine.yaml").write_text("new")
    assert (tmp_path / "engine/engine.yaml").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_fault_within_is_not_blamed_on_the_place(tmp_path) -> None:
    with (
        pytest.raises(PermissionError, match="cache"),
        export.written_beside(tmp_path / "engine", force=False),
    ):
        raise PermissionError(13, os.strerror(13), "cache")
    assert not list(tmp_path.iterdir())


# --- arguments

GEOMETRIC = (
    "--config",
    "surround",
    "--cameras",
    "1",
    "--size",
    "128x256",
    "--working-size",
    "64x128",
)
POINT3R = (
    "--network",
    "point3r",
    "--checkpoint",
    "stand-in",
    "--cameras",
    "1",
    "--image-size",
    "96x128",
)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((*GEOMETRIC, "--size", "0x0"), "expected HEIGHTxWIDTH"),
        ((*GEOMETRIC, "--size", "99999x9"), "expected HEIGHTxWIDTH"),
        ((*GEOMETRIC, "--option", "planes=["), "--option planes is '['"),
        (
            (*GEOMETRIC, "--option", "planes=1"),
            "option planes is 1: expected a whole number from 4 to 512",
        ),
        ((*GEOMETRIC, "--option", "planes=4.5"), "option planes is 4.5: expected a whole number"),
        ((*GEOMETRIC, "--option", "near=0"), "option near is 0: expected a number from 0.01"),
        ((*GEOMETRIC, "--option", "near=.nan"), "option near is nan: expected a number"),
        ((*GEOMETRIC, "--option", "far=1"), "option far is 1: expected more than near, 1.5"),
        ((*GEOMETRIC, "--option", "cell=0"), "option cell is 0: expected a whole number from 4"),
        ((*GEOMETRIC, "--option", "cell=9"), "option cell is 9: expected a multiple of 2 up to"),
        (
            (*GEOMETRIC, "--option", "cell=128"),
            "option cell is 128: expected a multiple of 2 up to the working size's 64",
        ),
        (
            (*GEOMETRIC, "--option", "merge_radius=a"),
            "option merge_radius is 'a': expected a number",
        ),
        (
            (*GEOMETRIC, "--option", "stride=3"),
            "option stride is 3: expected a divisor of the working size, 64x128",
        ),
        (
            (*GEOMETRIC, "--option", "cameras=3"),
            "option 'cameras' is not one of recon4d_geometric's: stride, planes",
        ),
        ((*GEOMETRIC, "--option", "floor=yes"), "option floor is True: expected a number"),
        ((*GEOMETRIC, "--runtime", "torch"), "runtime torch is for learned networks"),
        ((*POINT3R, "--size", "8x64"), "size is 8x64: expected 16 to 4096 pixels"),
        ((*POINT3R, "--size", "48x4112"), "size is 48x4112: expected 16 to 4096 pixels"),
    ],
)
def test_arguments_out_of_range_are_one_sentence(tmp_path, capsys, arguments, sentence) -> None:
    pytest.importorskip("torch")
    from recon4d_ros.cli import main

    assert main(["export", *arguments, "--out", str(tmp_path / "engine")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_stride_of_a_pair_is_even() -> None:
    pytest.importorskip("torch")
    from recon4d_ros.networks.geometric_options import GeometricOptions

    with pytest.raises(ParameterError, match="option stride is 1: expected an even number"):
        GeometricOptions("stereo", 2, SIZE, 1, (64, 128), stride=1)


def test_a_choice_that_ties_may_fall_to_the_other_side() -> None:
    """A few pixels far off and all the others right is a tie; all of them a little off is not."""
    good = {"fed": 4e-3, "typical": 4e-5, "holes": 0.0}
    check_parity({"x": {"outputs": {"depth": good}}}, spec_of("fp32"))
    for worse in ({"fed": 2e-2}, {"typical": 2e-3}, {"typical": float("nan")}):
        with pytest.raises(EngineError, match="depth is off"):
            check_parity({"x": {"outputs": {"depth": good | worse}}}, spec_of("fp32"))
