"""Rerun's SDK, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

from recon4d_ros.errors import Recon4dError


def rerun() -> Any:
    """The module. Raises Recon4dError with what to do where it is not installed."""
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise Recon4dError(
            f"the viewer needs the package rerun-sdk, which is not installed here ({error}): `make"
            " viewer`, or pip install -r requirements/viewer.txt"
        ) from None
