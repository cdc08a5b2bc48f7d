"""Stand-in for sensor_msgs_py."""

STAND_IN = True
