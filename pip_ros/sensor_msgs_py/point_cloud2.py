"""PointCloud2 messages from and to NumPy arrays. Same names as the real module, only the calls we
make."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_DTYPES = {
    PointField.INT8: np.dtype(np.int8),
    PointField.UINT8: np.dtype(np.uint8),
    PointField.INT16: np.dtype(np.int16),
    PointField.UINT16: np.dtype(np.uint16),
    PointField.INT32: np.dtype(np.int32),
    PointField.UINT32: np.dtype(np.uint32),
    PointField.FLOAT32: np.dtype(np.float32),
    PointField.FLOAT64: np.dtype(np.float64),
}


def dtype_from_fields(fields: Iterable[PointField], point_step: int | None = None) -> np.dtype:
    """The structured dtype of one point. A field with count > 1 becomes that many columns: name_0,
    name_1, ..."""
    names: list[str] = []
    formats: list[np.dtype] = []
    offsets: list[int] = []
    for position, field in enumerate(fields):
        dtype = _DTYPES[field.datatype]
        base = field.name or f"unnamed_field_{position}"
        for k in range(field.count):
            names.append(base if field.count == 1 else f"{base}_{k}")
            formats.append(dtype)
            offsets.append(field.offset + k * dtype.itemsize)
    layout: dict = {"names": names, "formats": formats, "offsets": offsets}
    if point_step is not None:
        layout["itemsize"] = point_step
    return np.dtype(layout)


def create_cloud(header: Header, fields: Sequence[PointField], points: NDArray) -> PointCloud2:
    """A cloud of structured points, [N] or organized [height, width], of exactly the fields' dtype.
    One copy of the data."""
    dtype = dtype_from_fields(fields)
    if points.dtype != dtype:
        raise AssertionError(f"points are {points.dtype}: expected the fields' {dtype}")
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(points).view(np.uint8).data)
    return PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=list(fields),
        is_bigendian=sys.byteorder == "big",
        is_dense=False,
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * width,
        data=data,
    )


def read_points(
    cloud: PointCloud2, field_names: Sequence[str] | None = None, skip_nans: bool = False
) -> NDArray:
    """The points [N] as a structured array, a view of the message where nothing has to be left
    out."""
    dtype = dtype_from_fields(cloud.fields, cloud.point_step)
    rows = np.frombuffer(cloud.data, np.uint8)[: cloud.height * cloud.row_step].reshape(
        cloud.height, cloud.row_step
    )
    points = np.ascontiguousarray(rows[:, : cloud.width * cloud.point_step]).view(dtype).reshape(-1)
    if cloud.is_bigendian != (sys.byteorder == "big"):
        points = points.byteswap()
    if field_names is not None:
        points = points[list(field_names)]
    if skip_nans and not cloud.is_dense:
        keep = np.ones(len(points), bool)
        for name in points.dtype.names or ():
            keep &= ~np.isnan(points[name])
        points = points[keep]
    return points
