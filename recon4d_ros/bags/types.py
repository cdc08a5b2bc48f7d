"""The message types that bags are read and written with: Jazzy's, and our own from their .msg text,
all without ROS."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

PACKAGE = "recon4d_msgs"


def typestore(connections: Iterable[Connection] = ()) -> Typestore:
    """Jazzy's types, then what the bag itself defines, then recon4d_msgs.

    In that order, so that a bag recorded with an older recon4d_msgs is read by its own definition.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    for connection in connections:
        if (
            connection.msgtype in store.fielddefs
            or connection.msgdef.format is MessageDefinitionFormat.NONE
        ):
            continue
        if connection.msgdef.format is MessageDefinitionFormat.IDL:
            types = get_types_from_idl(connection.msgdef.data)
        else:
            types = get_types_from_msg(connection.msgdef.data, connection.msgtype)
        store.register(
            {name: definition for name, definition in types.items() if name not in store.fielddefs}
        )
    ours = {}
    for path in message_files():
        types = get_types_from_msg(path.read_text(encoding="utf-8"), f"{PACKAGE}/msg/{path.stem}")
        ours.update(
            {name: definition for name, definition in types.items() if name not in store.fielddefs}
        )
    if ours:
        store.register(ours)
    return store


def message_files() -> list[Path]:
    """Our .msg files: from the source tree, else from the first install prefix that has them; none
    found gives none."""
    for folder in _folders():
        if files := sorted(folder.glob("*.msg")):
            return files
    return []


def _folders() -> Iterator[Path]:
    here = Path(__file__).resolve()
    yield here.parents[2] / "msg" / "msg"
    prefixes = [
        *map(Path, filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))),
        *here.parents,
    ]
    for prefix in prefixes:
        yield prefix / "share" / PACKAGE / "msg"
