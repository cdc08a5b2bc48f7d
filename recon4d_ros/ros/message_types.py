"""Message classes by name, for a player and a recorder that know no topic beforehand."""

from __future__ import annotations

import importlib
from functools import cache

from recon4d_ros.errors import MessageError


@cache
def message_class(name: str) -> type:
    """The class of `package/msg/Name`. Raises MessageError if its package is not installed here."""
    try:
        package, kind, message = name.split("/")
        return getattr(importlib.import_module(f"{package}.{kind}"), message)
    except (ValueError, ImportError, AttributeError) as error:
        raise MessageError(
            f"message type {name} is not installed here: is its package built and sourced?"
        ) from error
