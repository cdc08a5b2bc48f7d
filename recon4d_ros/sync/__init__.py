"""Images of many cameras -> sets that belong together. Pure Python, no ROS, no clock of its own."""

from recon4d_ros.sync.synchronizer import Synchronizer, SyncParameters, SyncStatistics

__all__ = ["SyncParameters", "SyncStatistics", "Synchronizer"]
