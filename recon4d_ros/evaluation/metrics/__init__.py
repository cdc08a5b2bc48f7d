"""Scores, as pure functions and as accumulators of bounded size: arrays in, numbers out, no files
and no ROS."""
