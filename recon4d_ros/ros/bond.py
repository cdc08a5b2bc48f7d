"""The bond with Nav2's lifecycle manager: it learns at once when this node dies, and takes the
others down.

As nav2_util's LifecycleNode makes it: topic `bond` in the node's namespace, the node's name as id,
from activate to deactivate. Takes the package bondpy; without it there is no bond (and the manager
has to be told so by its parameter bond_timeout: 0.0).
"""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

try:
    from bondpy import bondpy
except ImportError:
    bondpy = None

TOPIC = "bond"
HEARTBEAT_TIMEOUT = 4.0  # seconds without the manager's heartbeat; Nav2's value
_TIMEOUT_SWITCH = "bond_disable_heartbeat_timeout"  # a parameter that bondpy declares, each time


def available() -> bool:
    """Whether a bond can be made here."""
    return bondpy is not None


class ManagerBond:
    """At most one bond at a time. A manager that does not answer within ten seconds is none: the
    bond is let go, and the node goes on, as it does when the manager dies."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._bond: Any = None
        self.formed = False

    def form(self, period: float) -> None:
        """Offer a bond. period: seconds between two heartbeats; 0 offers none. Returns at once."""
        self.close()
        if not period or not available():
            return
        bond = bondpy.Bond(
            self._node, TOPIC, self._node.get_name(), on_broken=self._broken, on_formed=self._formed
        )
        bond.heartbeat_period, bond.heartbeat_timeout = period, HEARTBEAT_TIMEOUT
        bond.start()
        self._bond = bond

    def release(self) -> None:
        """End it in order: the manager is told so, for two seconds or until it has answered."""
        self.formed = False
        if self._bond is not None:
            self._bond.break_bond()

    def close(self) -> None:
        """End it and all that it opened; before another one, and at the end."""
        self.formed = False
        if self._bond is not None:
            bond, self._bond = self._bond, None
            end(self._node, bond)
            if self._node.has_parameter(_TIMEOUT_SWITCH):
                self._node.undeclare_parameter(_TIMEOUT_SWITCH)

    def _formed(self) -> None:
        self.formed = True
        self._node.get_logger().info("bond with the lifecycle manager formed")

    def _broken(self) -> None:
        if self.formed:
            self.formed = False
            self._node.get_logger().warning(
                "the bond with the lifecycle manager is broken: it ended, or was not heard for"
                f" {HEARTBEAT_TIMEOUT:g} s; the node goes on"
            )


def end(node: Node, bond: Any) -> None:
    """What bondpy.Bond.shutdown does, in an order that a node which is spun survives: that
    destroys publisher and subscription behind the node's back, and its thread may still publish."""
    with bond.lock:
        bond.break_bond()
        bond.is_shutdown = True
        bond.condition.notify_all()
        for timer in (bond.connect_timer, bond.heartbeat_timer, bond.disconnect_timer):
            timer.cancel()
    bond.thread.join(2.0)
    node.destroy_subscription(bond.sub)
    node.destroy_publisher(bond.pub)
