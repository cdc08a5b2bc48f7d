"""The bond with Nav2's lifecycle manager, the manager's end of it played by bondpy as Nav2's code
uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed here")

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter

from recon4d_ros.ros import bond as bond_module
from recon4d_ros.ros.graph import graph_environment
from recon4d_ros.ros.node import Recon4dNode

PATIENCE = 15.0


class Graph(SimpleNamespace):
    """The node, a manager, and who spins them."""

    def wait(self, ready: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < end, what
            self.executor.spin_once(timeout_sec=0.02)


def graph(**values) -> Iterator[Graph]:
    environment = graph_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        context = Context()
        context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
        overrides = {"cameras": ["left"], **values}
        node = Recon4dNode(
            context=context,
            parameter_overrides=[Parameter(name, value=v) for name, v in overrides.items()],
        )
        manager = Node("lifecycle_manager", context=context)
        executor = SingleThreadedExecutor(context=context)
        for one in (node, manager):
            executor.add_node(one)
        yield Graph(node=node, manager=manager, executor=executor)
        node.finish()
        executor.shutdown()
        node.destroy_node()
        manager.destroy_node()
        context.try_shutdown()


@pytest.fixture
def managed() -> Iterator[Graph]:
    yield from graph(autostart=False)


@pytest.fixture
def alone() -> Iterator[Graph]:
    yield from graph(autostart=True)


def managers_end(graph: Graph):
    bondpy = pytest.importorskip("bondpy.bondpy", reason="bondpy is not installed here")
    broken: list[bool] = []
    bond = bondpy.Bond(graph.manager, "bond", "recon4d", on_broken=lambda: broken.append(True))
    bond.heartbeat_period, bond.heartbeat_timeout = 0.1, 4.0
    bond.start()
    return bond, broken


def test_from_activate_to_deactivate(managed):
    pytest.importorskip("bondpy.bondpy", reason="bondpy is not installed here")
    node = managed.node
    node.trigger_configure()
    assert node._bond._bond is None
    for _ in range(2):  # and again
        node.trigger_activate()
        bond, broken = managers_end(managed)
        managed.wait(lambda: node._bond.formed, "the bond to form")
        node.trigger_deactivate()
        managed.wait(lambda broken=broken: broken, "the manager to be told of the end")
        bond_module.end(managed.manager, bond)
    node.trigger_cleanup()
    assert node._bond._bond is None and not node.failure


def test_a_manager_that_dies_is_told_and_the_node_goes_on(managed, capfd):
    pytest.importorskip("bondpy.bondpy", reason="bondpy is not installed here")
    node = managed.node
    node.trigger_configure()
    node.trigger_activate()
    bond, _ = managers_end(managed)
    managed.wait(lambda: node._bond.formed, "the bond to form")
    bond.break_bond()
    managed.wait(lambda: not node._bond.formed, "the end to be heard")
    bond_module.end(managed.manager, bond)
    assert "the bond with the lifecycle manager is broken" in capfd.readouterr().err
    assert node._state == "active" and not node.failure


@pytest.mark.parametrize("period", [0.0, 0.1])
def test_no_bond_is_offered_where_there_is_no_manager(alone, period):
    node = alone.node
    node.set_parameters([Parameter("bond_heartbeat_period", value=period)])
    node.start()
    assert node._state == "active" and node._bond._bond is None


def test_without_bondpy_there_is_no_bond(managed, monkeypatch):
    monkeypatch.setattr(bond_module, "bondpy", None)
    node = managed.node
    node.trigger_configure()
    node.trigger_activate()
    assert node._state == "active" and node._bond._bond is None and not bond_module.available()
