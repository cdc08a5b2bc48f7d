"""Checkpoint files: recognised, checked, loaded; and nothing in them runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from golden_files import manifest

torch = pytest.importorskip("torch")

from recon4d_ros.errors import EngineError  # noqa: E402
from recon4d_ros.networks import checkpoint, point3r  # noqa: E402
from recon4d_ros.networks.step import StepOptions  # noqa: E402

# as the options of the published 512 checkpoint have it
PUBLISHED = (
    "Point3R(Point3RConfig(freeze='encoder', pos_embed='RoPE100', pos_embed_3d='RoPE3D100',"
    " pose_head=True, patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), head_type='dpt',"
    " output_mode='pts3d+pose', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf),"
    " pose_mode=('exp', -inf, inf), enc_embed_dim=1024, enc_depth=24, enc_num_heads=16,"
    " dec_embed_dim=768, dec_depth=12, dec_num_heads=12, landscape_only=False))"
)


def hollow(name: str) -> dict:
    """Parameters of a manifest's names and shapes that take no room: one number each, repeated by a
    stride of 0."""
    return {key: torch.ones(()).expand(shape) for key, shape in manifest(name).items()}


def save(path: Path, parameters: dict, model: str | None = PUBLISHED, prefix: str = "") -> Path:
    options = argparse.Namespace(model=model, lr=1e-4)
    torch.save(
        {"model": {prefix + k: v for k, v in parameters.items()}, "args": options, "epoch": 9}, path
    )
    return path


def test_published_files_are_recognised(tmp_path: Path) -> None:
    found = checkpoint.identify(
        save(tmp_path / "point3r_512.pth", hollow("point3r_512"), prefix="module.")
    )
    assert found.title == "Point3R" and found.problems == ()
    assert found.configuration == point3r.Configuration()
    assert round(found.count / 1e6) == 835
    text = "\n".join(found.lines())
    assert "834.7 million" in text and "encoder depth  24" in text and "complete" in text


def test_configuration_from_shapes_alone(tmp_path: Path) -> None:
    torch.save(hollow("point3r_small"), tmp_path / "small.pth")
    found = checkpoint.identify(tmp_path / "small.pth")
    assert (
        found.configuration == point3r.Configuration(encoder_depth=4, decoder_depth=4)
        and found.problems == ()
    )


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    parameters = hollow("point3r_small")
    del parameters["enc_norm.bias"], parameters["dec_blocks.2.mlp.fc1.weight"]
    parameters["pose_token"] = torch.ones(1, 1, 64)
    parameters["extra.weight"] = torch.ones(2)
    torch.save(parameters, tmp_path / "bad.pth")
    missing, unexpected, shape = checkpoint.identify(tmp_path / "bad.pth").problems
    assert missing == "2 of 607 parameters missing: enc_norm.bias; dec_blocks.2.mlp.fc1.weight"
    assert unexpected == "1 of 607 parameters not expected: extra.weight"
    assert shape == "1 of 607 parameters of another shape: pose_token 1x1x64, expected 1x1x768"
    with pytest.raises(EngineError, match=r"bad\.pth: 2 of 607 parameters missing"):
        checkpoint.load(tmp_path / "bad.pth", "point3r")


def test_model_string_against_the_shapes(tmp_path: Path) -> None:
    found = checkpoint.identify(save(tmp_path / "deep.pth", hollow("point3r_small")))
    assert len(found.problems) == 1 and found.problems[0].startswith(
        "624 of 1231 parameters missing: enc_blocks.4.norm1.weight;"
    )
    linear = PUBLISHED.replace("head_type='dpt'", "head_type='linear'")
    found = checkpoint.identify(save(tmp_path / "linear.pth", hollow("point3r_512"), linear))
    assert found.configuration is None and found.problems[0].endswith(
        "its model string has head_type='linear', expected 'dpt'"
    )


@pytest.fixture(scope="module")
def tiny() -> point3r.Point3R:
    torch.manual_seed(0)
    return point3r.Point3R(point3r.Configuration(1, 64, 2, 2, 96, 2, 4, 8, 1, 32))


TINY = (
    "Point3R(Point3RConfig(enc_num_heads=2, dec_num_heads=2, memory_dec_num_heads=4,"
    " local_mem_size=8))"
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_gives_every_value(tiny: point3r.Point3R, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tiny{suffix}"
    state = {
        name: value.half() if "norm" in name else value for name, value in tiny.state_dict().items()
    }
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
        from safetensors.torch import save_file

        save_file(
            {name: value.clone() for name, value in state.items()}, path, metadata={"model": TINY}
        )
    else:
        save(path, state, TINY, prefix="module.")
    network = checkpoint.load(path, "point3r")
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float()), name
    assert not network.training
    with pytest.raises(EngineError, match="holds Point3R, expected a checkpoint of driv3r"):
        checkpoint.load(path, "driv3r")


def test_values_that_are_not_finite(tiny: point3r.Point3R, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in tiny.state_dict().items()}
    state["enc_norm.bias"][3] = float("nan")
    with pytest.raises(EngineError, match=r"enc_norm\.bias holds values that are not finite"):
        checkpoint.load(save(tmp_path / "nan.pth", state, TINY), "point3r")


class Hostile:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    torch.save(
        {"model": {"a": torch.ones(1)}, "args": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth"
    )
    with pytest.raises(EngineError, match=r"holds an object of class posix\.mkdir; only tensors"):
        checkpoint.read(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('ran')",
        "A(x=__import__('os').mkdir('ran'))",
        "A(x=[y for y in (1,)])",
        "A(**{'x': 1})",
        "A(x=1, x=2)",
        "A(x=1)(y=2)",
        "A(3)",
        "A(x=float((1, 2)))",
        "A(x=float(None))",
        f"A(x=float({'9' * 400}))",
        f"A(x={'9' * 5000})",
        "A(",
        "",
        "(" * 5000,
        "A(x='" + "y" * 30_000 + "')",
    ],
)
def test_a_model_string_is_read_not_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="cannot read the model string"):
        checkpoint.parse_model(text)
    assert not any(tmp_path.iterdir())


def test_model_string() -> None:
    model = checkpoint.parse_model(PUBLISHED)
    assert model.names == ("Point3R", "Point3RConfig")
    assert model.arguments["depth_mode"] == (
        "exp",
        float("-inf"),
        float("inf"),
    ) and model.arguments["img_size"] == (512, 512)


@pytest.mark.parametrize(
    "name", ["text.pth", "text.safetensors", "short.pth", "none.pth", "list.pth", "empty.pth"]
)
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif name == "short.pth":
        save(path, {"a": torch.ones(1000)})
        path.write_bytes(path.read_bytes()[:2000])
    elif name != "none.pth":
        torch.save([1] if name == "list.pth" else {"epoch": 3}, path)
    with pytest.raises(EngineError) as error:
        checkpoint.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_an_unknown_network(tmp_path: Path) -> None:
    torch.save({"backbone.weight": torch.ones(3)}, tmp_path / "other.pth")
    found = checkpoint.identify(tmp_path / "other.pth")
    assert found.title is None and "none of Point3R, Driv3R" in found.problems[0]
    assert found.lines()[0].endswith("unknown system, 0.0 million parameters (torch)")


@pytest.mark.parametrize(
    "said, sentence",
    [
        ("local_mem_size=-1", "pose slots is -1: expected 1 to 16384"),
        ("local_mem_size=100000000000000", "pose slots is 100000000000000: expected 1 to 16384"),
        ("enc_embed_dim=16000000000", "encoder width is 16000000000: expected 1 to 16384"),
    ],
)
def test_sizes_that_no_network_has(
    tiny: point3r.Point3R, tmp_path: Path, said: str, sentence: str
) -> None:
    path = save(tmp_path / "big.pth", tiny.state_dict(), TINY.replace("local_mem_size=8", said))
    found = checkpoint.identify(path)
    assert found.configuration is None and sentence in found.problems[0]
    with pytest.raises(EngineError, match=rf"big\.pth: {sentence}"):
        checkpoint.load(path, "point3r")
    with pytest.raises(EngineError, match="pose slots is 0"):
        checkpoint.obtain("stand-in:pose_slots=0", "point3r")


@pytest.mark.parametrize("value", ["abc", None, [1], True, float("nan"), float("inf")])
def test_options_of_a_step_are_numbers(tiny: point3r.Point3R, value: object) -> None:
    with pytest.raises(
        EngineError, match=r"network point3r: option fusion_metres is .*: expected a number"
    ):
        checkpoint.make_step(
            tiny, "point3r", StepOptions(1, (96, 128), (48, 64)), {"fusion_metres": value}
        )
