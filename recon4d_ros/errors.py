"""What can be wrong with what a user gives us: one class per thing, one clear sentence (what,
where, what was expected) in each.

The command line prints the sentence and exits with 2; the node refuses to configure, or drops the
message, counts it and goes on.
"""


class Recon4dError(Exception):
    """Base of every error that is the input's and not a bug of ours."""


class BagError(Recon4dError):
    """A bag is missing, truncated, or lacks what was asked of it."""


class CalibrationError(Recon4dError):
    """Intrinsics, distortion or extrinsics are missing, not finite, or disagree with the images."""


class ImageError(Recon4dError):
    """An image cannot be decoded: broken JPEG, unknown encoding, wrong size."""


class EngineError(Recon4dError):
    """An engine folder is missing, truncated, of another version, or made for another rig."""


class ExporterMissing(EngineError):
    """PyTorch or another package that export and training need is not installed."""

    exit_code = 3


class ParameterError(Recon4dError):
    """A parameter is unknown, of the wrong type, or out of its range."""


class OutputError(Recon4dError):
    """The output folder cannot be written, is full, or exists already."""


class MapError(Recon4dError):
    """A map folder is missing, damaged, of another version, or made with another rig."""


class MessageError(Recon4dError):
    """A message carries a value that cannot be used: NaN, a quaternion of length zero, the wrong
    frame."""
