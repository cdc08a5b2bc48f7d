"""By which names and with how many coefficients drivers and rig files say a lens: one spelling for
each model of `Camera`."""

from __future__ import annotations

from collections.abc import Sequence

from recon4d_ros.types import DISTORTION_COEFFICIENTS

_ALIASES = {
    "fisheye": "equidistant",
    "equi": "equidistant",
    "kannala_brandt": "equidistant",
    "kannala_brandt4": "equidistant",
    "kb4": "equidistant",
    "kannalabrandt8": "equidistant",  # ORB-SLAM3's: 8 parameters with the matrix's four
    "opencv_fisheye": "equidistant",
    "simple_radial_fisheye": "equidistant",  # COLMAP's: k1, and k1 k2
    "radial_fisheye": "equidistant",
    "atan": "fov",  # PTAM's and SVO's
    "field_of_view": "fov",
    "ds": "double_sphere",
    "radtan": "plumb_bob",
    "radial_tangential": "plumb_bob",
    "brown_conrady": "plumb_bob",  # RealSense's inverse_brown_conrady is another model
    "modified_brown_conrady": "plumb_bob",
    "opencv": "plumb_bob",
    "simple_radial": "plumb_bob",  # COLMAP's: k1, and k1 k2
    "radial": "plumb_bob",
    "full_opencv": "rational_polynomial",
    "rational": "rational_polynomial",
    "": "none",
    "pinhole": "none",
    "perspective": "none",
}
_RADIAL = ("simple_radial", "radial", "simple_radial_fisheye", "radial_fisheye")
_POLYNOMIAL = ("plumb_bob", "rational_polynomial")
# the polynomial's coefficients in OpenCV's order: k1 k2 p1 p2 k3 | k4 k5 k6 | s1..s4 | tau x, y
_COUNTS = (4, 5, 8, 12, 14)


def lens_model(name: str, coefficients: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """The distortion model of `Camera` and its coefficients, for a name and coefficients as they
    came.

    Spaces, case and aliases are put right. The polynomial models are one, told by how many
    coefficients there are (OpenCV): 4 or 5 plumb_bob, 8 rational, 12 with thin prism, 14 with a
    tilted sensor; zeros at the end count as absent. Coefficients without a name are that polynomial
    too, as OpenCV's calibration gives them. All zeros is `none`. What is not known is given back as
    it came: `Camera` says what is wrong with it.
    """
    name = "_".join(str(name).lower().replace("-", " ").replace("_", " ").split())
    d = tuple(float(value) for value in coefficients)
    model = _ALIASES.get(name, name)
    if model not in DISTORTION_COEFFICIENTS:
        return model, d
    if not any(d):
        return "none", ()
    if name in _RADIAL and len(d) < 3:
        d = (*d, *(0.0,) * (4 - len(d)))
    if model == "equidistant":
        return model, d[:4] if not any(d[4:]) and len(d) > 4 else d
    if model == "none" and len(d) in _COUNTS:
        model = "plumb_bob"
    if model not in _POLYNOMIAL or len(d) < _COUNTS[0]:
        return model, d
    used = max(index + 1 for index, value in enumerate(d) if value)
    if used > _COUNTS[-1] or (len(d) not in _COUNTS and len(d) < _COUNTS[-1] and used > 5):
        return model, d
    if used <= 5:
        return "plumb_bob", d[: max(5, len(d)) if len(d) < 5 else 5]
    count = next(count for count in _COUNTS if count >= used)
    return "rational_polynomial", (d + (0.0,) * count)[:count]
