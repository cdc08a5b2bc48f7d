"""Stand-in for tf2_ros: a buffer of transforms between frames, filled from and sent to /tf and
/tf_static.

Same names as the real package, only the calls we make.
"""

from .broadcaster import TransformBroadcaster
from .buffer import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    LookupException,
    TransformException,
)
from .listener import TransformListener

STAND_IN = True

__all__ = [
    "Buffer",
    "ConnectivityException",
    "ExtrapolationException",
    "LookupException",
    "TransformBroadcaster",
    "TransformException",
    "TransformListener",
]
