"""Whether a rig can be one: what is wrong with extrinsics is told before anything runs, not by a
map without points."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from recon4d_ros.errors import CalibrationError
from recon4d_ros.types import Camera, Rig

SAME_PLACE = 5e-3  # metres: nearer than any two lenses can be
SAME_WAY = np.cos(np.deg2rad(5.0))
SAME_LENS = 1.2  # ratio of focal lengths up to which two cameras that share a place show the same
SKY = np.sin(np.deg2rad(45.0))  # an optical axis this far up is no car's camera
UPWARD = np.sin(np.deg2rad(20.0))
GROUND = 0.15  # metres above base_link below which no camera of a car is
HIGH = 5.0  # and above which none is
FAR = 30.0  # metres from base_link beyond which no camera of a vehicle is
DOWN = np.sin(np.deg2rad(75.0))  # an optical axis this far down may be a body's z in NED
TWICE = 2.2  # where the principal point is if K is of images twice as large
ON_SIDE = np.cos(np.deg2rad(45.0))
EXCHANGED = (
    "the cameras lie on their side or upside down, and would be upright if the transforms were"
    " taken the other way round: are parent and child exchanged?"
)
OFF_MIDDLE = 0.35  # of half the image, of the principal point: more is a cut or another size's
SHORT = (
    1 / 12
)  # focal length over the longer side below which there is no lens: a fisheye has 1 / 4


def check_rig(rig: Rig) -> list[str]:
    """Sentences about what is unlikely. Raises CalibrationError about what cannot be: two cameras
    in one place that look the same way, a camera that looks at the sky, one without a lens."""
    for camera in rig.cameras:
        _has_a_lens(camera)
        _looks_at_the_sky(camera)
    try:
        for one, other in combinations(rig.cameras, 2):
            _in_one_place(one, other)
    except CalibrationError:
        if _turned_round(rig):
            raise CalibrationError(EXCHANGED) from None
        raise
    return list(_unlikely(rig))


def base_is_on_road(rig: Rig) -> bool:
    """Whether base_link can be taken to be on the road (z = 0), as REP 105's base_footprint: every
    camera is above it, and none higher than a vehicle's."""
    heights = rig.T_base_camera[:, 2, 3]
    return bool(heights.min() > GROUND and heights.max() <= HIGH)


def _has_a_lens(camera: Camera) -> None:
    """Drivers send a unit matrix, or one in parts of the image, where there is no calibration."""
    focal, longer = float(max(camera.k[0, 0], camera.k[1, 1])), max(camera.width, camera.height)
    if focal < SHORT * longer:
        raise CalibrationError(
            f"camera {camera.name}: a focal length of {focal:g} px is no camera's whose images are"
            f" {camera.width}x{camera.height}: expected pixels in K of its camera_info or rig file"
            " (is the camera calibrated?)"
        )


def _looks_at_the_sky(camera: Camera) -> None:
    x, _, axis = camera.T_base_camera[:3, :3].T
    if axis[2] <= SKY:
        return
    up = np.rad2deg(np.arcsin(min(axis[2], 1.0)))
    body = abs(x[2]) < UPWARD and axis[2] > np.cos(np.deg2rad(30.0))
    why = (
        "its frame is the body's (x forward, z up), not the optical one"
        if body
        else "its frame is not that of its images"
    )
    raise CalibrationError(
        f"camera {camera.name} looks {up:.0f} degrees up, at the sky: {why}: expected an optical"
        " frame (z forward, x right, y down) in camera_info, on /tf_static or in the rig file"
    )


def _in_one_place(one: Camera, other: Camera) -> None:
    apart = np.linalg.norm(one.T_base_camera[:3, 3] - other.T_base_camera[:3, 3])
    along = float(one.T_base_camera[:3, 2] @ other.T_base_camera[:3, 2])
    focal = one.k[0, 0] / one.width, other.k[0, 0] / other.width
    if apart < SAME_PLACE and along > SAME_WAY and max(focal) < SAME_LENS * min(focal):
        raise CalibrationError(
            f"cameras {one.name} and {other.name} are in one place and look the same way: expected"
            " a frame for each on /tf_static, the baseline as Tx in P of the second one's"
            " camera_info, or a rig file; `--cameras` leaves one out"
        )


def _unlikely(rig: Rig) -> Iterator[str]:
    for camera in rig.cameras:
        upward = camera.T_base_camera[2, 2]
        if upward > UPWARD:
            yield (
                f"camera {camera.name} looks {np.rad2deg(np.arcsin(upward)):.0f} degrees up: is"
                " its frame that of its images?"
            )
        yield from _principal_point(camera)
    if (rig.T_base_camera[:, 2, 2] < -DOWN).all():
        yield (
            f"{'the camera looks' if len(rig.cameras) == 1 else 'all cameras look'} straight down:"
            " expected frames of their images (z forward, x right, y down), not a body's (z down)"
        )
    if _turned_round(rig):
        yield EXCHANGED
    heights = rig.T_base_camera[:, 2, 3]
    distances = np.linalg.norm(rig.T_base_camera[:, :3, 3], axis=1)
    alone = len(rig.cameras) == 1
    far = int(np.argmax(distances))
    if distances[far] > FAR:
        yield f"camera {rig.names[far]} is {distances[far]:.1f} m from the car's frame: in metres?"
    elif (np.abs(heights) < GROUND).all():
        what = "the camera stands" if alone else "all cameras stand"
        yield (
            f"{what} at the height of the car's frame (z = {heights[0]:.2f} m): expected that frame"
            " on the road, from which heights (and with one camera the scale) are taken"
        )
    elif heights.min() < 0:
        low = rig.names[int(np.argmin(heights))]
        yield (
            f"camera {low} is {-heights.min():.2f} m below the car's frame: expected that frame on"
            " the road"
        )
    elif heights.max() > HIGH:
        high = rig.names[int(np.argmax(heights))]
        yield f"camera {high} is {heights.max():.1f} m above the car's frame: in metres?"


def _turned_round(rig: Rig) -> bool:
    """Whether all cameras would be upright and look about level with the inverse of their rotation,
    and not all are as it is."""
    rotations = rig.T_base_camera[:, :3, :3]
    # y down and z level, as rows: those of the inverse
    inverse_is = (-rotations[:, 1, 2] > ON_SIDE) & (np.abs(rotations[:, 2, 2]) < ON_SIDE)
    upright = -rotations[:, 2, 1] > ON_SIDE
    return bool(inverse_is.all() and not upright.all())


def _principal_point(camera: Camera) -> Iterator[str]:
    """K of images of another size is silent otherwise: the scale is wrong, and nothing else."""
    middle = (np.array([camera.width, camera.height]) - 1) / 2
    share = camera.k[:2, 2] / middle
    if np.abs(share - 1).max() <= OFF_MIDDLE or share.max() > TWICE:
        return  # farther out it is a part of a view that was cut on purpose
    where = (
        f"camera {camera.name}: the principal point of its K, ({camera.k[0, 2]:.0f},"
        f" {camera.k[1, 2]:.0f}), is far from the middle of its images of"
        f" {camera.width}x{camera.height}"
    )
    if abs(share[0] - share[1]) < 0.15 * share.mean():
        of = np.rint(share.mean() * np.array([camera.width, camera.height])).astype(int)
        yield f"{where}: is this K for images of about {of[0]}x{of[1]}?"
    else:
        yield f"{where}: are they cut from a larger image?"


def contradiction(used: Camera, new: Camera, stays: str) -> str:
    """ "" or the sentence that says how a new calibration differs from the one in use (size, or K
    by more than a hundredth of a pixel). stays: the end of the sentence: what is used."""
    where = f"camera_info of {used.name}"
    if (used.width, used.height) != (new.width, new.height):
        return (
            f"{where} is for images of {new.width}x{new.height}: the rig in use is for"
            f" {used.width}x{used.height}"
        )
    change = float(np.abs(used.k - new.k).max())
    if change > 0.01:
        return f"{where} changed its K by {change:.2f} px: {stays}"
    same_d = len(used.d) == len(new.d) and np.allclose(used.d, new.d, atol=1e-6)
    if not same_d and (any(used.d) or any(new.d)):
        return f"{where} changed its distortion: {stays}"
    return ""
