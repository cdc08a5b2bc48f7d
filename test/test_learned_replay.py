"""The three published networks as a user has them: export, info, replay of a bag with two cameras.
Tiny, with stand-in weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import LEARNED

pytest.importorskip("torch", reason="exporting needs PyTorch (requirements/dev.txt)")

from recon4d_ros.cli import main
from recon4d_ros.engine import load_spec


@pytest.mark.full  # most of a minute each
@pytest.mark.parametrize("network", LEARNED)
def test_from_checkpoint_to_a_run(
    network: str,
    small_bag: Path,
    learned_engine: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    run = tmp_path / "run"
    if network == "point3r":  # for two cameras here
        engine = tmp_path / "engine"
        command = ["export", "--network", network, "--checkpoint", LEARNED[network]]
        command += ["--rig", str(small_bag), "--size", "48x160", "--pointers", "200"]
        assert main([*command, "--out", str(engine)]) == 0
    else:
        engine = learned_engine(network)
    spec = load_spec(engine)
    assert (spec.network, spec.cameras, spec.working_size) == (network, 2, (48, 160))
    assert {"openvino", "onnxruntime"} <= spec.parity.keys()
    assert all(report["worst"] < 1e-3 for report in spec.parity.values())

    capsys.readouterr()
    assert main(["info", str(engine)]) == 0
    told = capsys.readouterr().out
    assert network in told and "mean nothing" in told and "openvino" in told

    odometry = ["--odometry", "/ground_truth/odom", "-p", "egomotion.odometry=trust"]
    assert (
        main(["replay", str(small_bag), "--engine", str(engine), "--out", str(run), *odometry]) == 0
    )
    assert "mean nothing" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (
        summary["frames"] == 8
        and summary["engine"]["network"] == network
        and "mean nothing" in summary["engine"]["warning"]
    )
    stamps = np.loadtxt(run / "trajectory.tum")[:, 0]
    assert len(stamps) == 8 and (np.diff(stamps) > 0).all()
