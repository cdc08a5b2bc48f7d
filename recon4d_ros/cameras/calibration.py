"""The rig's calibration for the engine: which pinhole each working image is, and where its pixels
lie in the input image.

Source image -> (averaged by 2, 4 or 8 on decoding, and turned upright by quarters) -> input image
[H, W], top left, padded -> (grid) -> working image [h, w], an upright pinhole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.cameras.decode import REDUCTIONS
from recon4d_ros.cameras.distortion import to_pixels, widest_ray
from recon4d_ros.errors import CalibrationError
from recon4d_ros.geometry import inverse
from recon4d_ros.types import Calibration, Camera, Rig

WIDEST_HALF_ANGLE = np.deg2rad(
    60.0
    # of a working image of a distorted lens: a pinhole stretches its border by 1 / cos^2, 4 at 60
    # degrees
)
OUTSIDE = np.float32(
    -1e4
)  # where a working pixel has no source: far outside, so that sampling gives nothing

# where a rig's overlap is looked for: metres around and above base_link
RADII, HEIGHTS = (2.5, 5.0, 10.0, 25.0, 50.0), (0.3, 1.0, 2.0)
# pixels along the longer side of a working image (docs/engine.md: what width costs and gives)
STEREO_SIDE = 896
WORKING_SIDE = {1: 640, 2: 512, 3: 416, 4: 384}
WORKING_SIDE_OF_MANY = 320
NEARLY = 0.99  # half of an odd size is still half

Crop = tuple[float, float, float, float]

# Up to this roll a camera's image is taken as it is, beyond it the working image is turned upright.
# Neighbours are matched by how patches look, which bears some turning but not a quarter of a turn.
ROLL_LEFT = np.deg2rad(20.0)
# a camera that looks this steeply up or down has no upright
STEEP = 0.3  # sine of the angle between optical axis and vertical


def upright(camera: Camera) -> NDArray[np.float64] | None:
    """[3, 3] rotation about the optical axis that takes rays in the frame of the camera's working
    image to the camera's own frame; None where these are one.

    A camera that is mounted on its side or upside down gets an upright working image: only so do
    neighbours look alike, and only so is down in the image down on the road. Of a roll within 20
    degrees of a multiple of 90 only that multiple is taken out, so that the image stays full.
    """
    roll = _roll(camera)
    quarter = round(roll / (np.pi / 2))
    if abs(roll - quarter * np.pi / 2) <= ROLL_LEFT:
        return None if quarter % 4 == 0 else _about_axis(quarter)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float64)


def quarter_turns(camera: Camera) -> int:
    """By how many quarters, counterclockwise (np.rot90), the camera's images are turned when they
    are decoded: upright, or as near to it as quarters come."""
    return round(_roll(camera) / (np.pi / 2)) % 4


def turned_pixels(
    camera: Camera, reduce: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A [2, 2] and b [2]: where pixel p of the camera's averaged image is in the turned one: A p +
    b."""
    turn = _about_axis(quarter_turns(camera))[:2, :2].T
    last = np.array([-(-camera.width // reduce), -(-camera.height // reduce)]) - 1.0
    return turn, -np.minimum(turn * last, 0.0).sum(axis=1)


def upright_size(camera: Camera) -> tuple[int, int]:
    """(height, width) of the camera's turned image."""
    size = (camera.height, camera.width)
    return size[::-1] if quarter_turns(camera) % 2 else size


def _roll(camera: Camera) -> float:
    """Radians by which the camera is turned about its optical axis; 0 where it looks up or down."""
    up = camera.T_base_camera[2, :3]  # base_link's z in the camera's frame
    return float(np.arctan2(up[0], -up[1])) if np.hypot(up[0], up[1]) >= STEEP else 0.0


def _about_axis(quarters: int) -> NDArray[np.float64]:
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters % 4]
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float64)


def working_pose(camera: Camera) -> NDArray[np.float64]:
    """T_base_camera [4, 4] of the camera's working image."""
    pose, turn = camera.T_base_camera, upright(camera)
    if turn is None:
        return pose
    pose = pose.copy()
    pose[:3, :3] = pose[:3, :3] @ turn
    return pose


def make_calibration(
    rig: Rig, input_size: tuple[int, int], working_size: tuple[int, int], crop: Crop | None = None
) -> Calibration:
    """A Calibration for input images [H, W] and working images [h, w].

    Each camera's working image is a pinhole with square pixels that is filled by the source image:
    its view is the one between the middles of the source image's edges (at most 60 degrees to each
    side for a distorted lens), cut symmetrically to the working image's proportions. crop: parts of
    that view (left, top, right, bottom, each 0 to 0.9) that are cut away first, e.g. the bonnet.
    grid holds OUTSIDE where there is no source, or only the ego-vehicle: valid positions are in
    [-0.5, W - 0.5] x [-0.5, H - 0.5]. Cameras smaller than the input lie at its top left. Working
    images are upright, whichever way a camera is rolled (`upright`). Raises CalibrationError if a
    camera does not fit the input even reduced by 8."""
    left, top, right, bottom = crop or (0.0, 0.0, 0.0, 0.0)
    if min(left, top, right, bottom) < 0 or left + right > 0.9 or top + bottom > 0.9:
        raise CalibrationError(
            f"crop is {crop}: expected parts of the view (left, top, right, bottom) from 0 to 0.9,"
            " 0.9 at most together"
        )
    k = np.stack(
        [_pinhole(camera, working_size, (left, top, right, bottom)) for camera in rig.cameras]
    )
    grid = np.stack(
        [
            _grid(camera, matrix, input_size, working_size)
            for camera, matrix in zip(rig.cameras, k, strict=True)
        ]
    )
    poses = np.stack([working_pose(camera) for camera in rig.cameras])
    return Calibration(rig.names, grid, k, poses, input_size, working_size)


def input_size_for(rig: Rig, working_size: tuple[int, int]) -> tuple[int, int, int]:
    """(H, W, reduce): the input size for a rig, its images reduced as far as none becomes smaller
    than the working image."""
    reduce = max(
        r
        for r in REDUCTIONS
        if r == 1 or all(_fits(working_size, reduced_size(camera, r)) for camera in rig.cameras)
    )
    sizes = [reduced_size(camera, reduce) for camera in rig.cameras]
    return max(size[0] for size in sizes), max(size[1] for size in sizes), reduce


def sizes_for(rig: Rig, stereo: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) and (h, w) that an engine of any size has for a rig.

    The working image has the proportions of the rig's images (the median camera's) and a longer
    side by the number of cameras: WORKING_SIDE, never more than the images have; multiples of 4,
    64 at least. Each camera's images are averaged down on decoding as far as they stay twice as
    fine as that, which costs less than decoding them whole; the input holds the largest of them.
    """
    count = len(rig.cameras)
    longer = STEREO_SIDE if stereo else WORKING_SIDE.get(count, WORKING_SIDE_OF_MANY)
    upright = [upright_size(camera) for camera in rig.cameras]
    longer = min(longer, max(max(size) for size in upright) // 8 * 8)
    aspect = sorted(height / width for height, width in upright)[count // 2]
    shorter = round(longer * min(aspect, 1 / aspect) / 4) * 4
    working = (max(64, shorter), max(64, longer))
    working = working if aspect <= 1 else working[::-1]
    sizes = [
        reduced_size(
            camera,
            max(r for r in REDUCTIONS if r == 1 or _fits(_twice(working), reduced_size(camera, r))),
        )
        for camera in rig.cameras
    ]
    return (max(height for height, _ in sizes), max(width for _, width in sizes)), working


def _twice(size: tuple[int, int]) -> tuple[float, float]:
    return 2 * NEARLY * size[0], 2 * NEARLY * size[1]


def reduction(camera: Camera, input_size: tuple[int, int]) -> int:
    """By how much a camera's images are averaged down so that they fit the input: the least that
    does. Raises CalibrationError."""
    for reduce in REDUCTIONS:
        if _fits(reduced_size(camera, reduce), input_size):
            return reduce
    raise CalibrationError(
        f"camera {camera.name}: {camera.width}x{camera.height} pixels, even reduced by"
        f" {REDUCTIONS[-1]}, do not fit the input of {input_size[1]}x{input_size[0]}"
    )


def reduced_size(camera: Camera, reduce: int) -> tuple[int, int]:
    """(height, width) of a camera's images averaged down and turned: an incomplete block at the
    border counts."""
    height, width = upright_size(camera)
    return -(-height // reduce), -(-width // reduce)


def _fits(inner: tuple[float, float], outer: tuple[int, int]) -> bool:
    return inner[0] <= outer[0] and inner[1] <= outer[1]


def _pinhole(camera: Camera, working_size: tuple[int, int], crop: Crop) -> NDArray[np.float64]:
    height, width = working_size
    x0, x1 = _extent(camera, 0)
    y0, y1 = _extent(camera, 1)
    left, top, right, bottom = crop
    x0, x1 = x0 + left * (x1 - x0), x1 - right * (x1 - x0)
    y0, y1 = y0 + top * (y1 - y0), y1 - bottom * (y1 - y0)
    focal = max(width / (x1 - x0), height / (y1 - y0))
    cx = (width - 1) / 2 - focal * (x0 + x1) / 2
    cy = (height - 1) / 2 - focal * (y0 + y1) / 2
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])


def _extent(camera: Camera, axis: int) -> tuple[float, float]:
    """Tangents of the view along one axis of the working image, from the first pixel's outer edge
    to the last one's."""
    turn = upright(camera)
    if turn is None:
        return _source_extent(camera, axis)
    along = turn[:2, axis]  # in the camera's own frame
    source = int(np.argmax(np.abs(along)))
    if abs(along[source]) == 1:
        low, high = _source_extent(camera, source)
        return (low, high) if along[source] > 0 else (-high, -low)
    # on a slant: as far as the image goes both ways
    ends = []
    for direction in (-along, along):
        near, far = 0.0, float(np.tan(WIDEST_HALF_ANGLE))
        for _ in range(40):
            middle = (near + far) / 2
            u, v = to_pixels(camera, middle * direction)
            inside = -0.5 <= u <= camera.width - 0.5 and -0.5 <= v <= camera.height - 0.5
            near, far = (middle, far) if inside else (near, middle)
        ends.append(near)
    return -ends[0], ends[1]


def _source_extent(camera: Camera, axis: int) -> tuple[float, float]:
    """The same along an axis of the source image."""
    size = (camera.width, camera.height)[axis]
    if camera.distortion_model == "none":
        focal, centre = camera.k[axis, axis], camera.k[axis, 2]
        return (-0.5 - centre) / focal, (size - 0.5 - centre) / focal
    widest = min(np.tan(WIDEST_HALF_ANGLE), widest_ray(camera)) * (1 - 1e-9)
    rays = np.zeros((8193, 2))
    rays[:, axis] = np.linspace(-widest, widest, len(rays))
    pixels = to_pixels(camera, rays)[:, axis]
    inside = rays[np.logical_and(pixels >= -0.5, pixels <= size - 0.5), axis]
    if len(inside) < 2:
        raise CalibrationError(
            f"camera {camera.name}: no ray of its {camera.distortion_model} model falls into its"
            " image: expected coefficients of an image of this size"
        )
    return float(inside[0]), float(inside[-1])


def _grid(
    camera: Camera,
    k: NDArray[np.float64],
    input_size: tuple[int, int],
    working_size: tuple[int, int],
) -> NDArray[np.float32]:
    reduce = reduction(camera, input_size)
    v, u = np.indices(working_size, np.float64)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]], axis=-1)
    turn = upright(camera)
    pixels = to_pixels(camera, rays if turn is None else rays @ turn[:2, :2].T)
    edge = 1e-6  # the outermost pixels' edges themselves, computed with rounding
    with np.errstate(invalid="ignore"):
        inside = np.all(
            (pixels >= -0.5 - edge)
            & (pixels <= (camera.width - 0.5 + edge, camera.height - 0.5 + edge)),
            axis=-1,
        )
    if camera.ego_vehicle is not None:
        u, v = (np.rint(np.where(inside, pixels[..., axis], 0)).astype(int) for axis in (0, 1))
        inside &= ~camera.ego_vehicle[v.clip(0, camera.height - 1), u.clip(0, camera.width - 1)]
    pixels = (pixels + 0.5) / reduce - 0.5
    if quarter_turns(camera):
        turn_image, shift = turned_pixels(camera, reduce)
        pixels = pixels @ turn_image.T + shift
    return np.where(inside[..., None], pixels, OUTSIDE).astype(np.float32)


def overlap(calibration: Calibration) -> int:
    """How many cameras of the rig see the same place at most, of places around it up to 50 m."""
    angle = np.arange(0, 2 * np.pi, np.deg2rad(1.0))
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    places = np.concatenate(
        [np.c_[radius * ring, np.full(len(ring), z)] for radius in RADII for z in HEIGHTS]
    )
    height, width = calibration.working_size
    count = np.zeros(len(places), int)
    for k, T_camera_base in zip(calibration.k, inverse(calibration.T_base_camera), strict=True):
        points = places @ T_camera_base[:3, :3].T + T_camera_base[:3, 3]
        pixels = points @ k.T
        u, v = (pixels[:, :2] / np.maximum(pixels[:, 2:], 1e-5)).T
        inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        count += inside & (points[:, 2] > 0)
    return int(count.max())
