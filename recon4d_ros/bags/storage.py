"""A bag's storage files as one stream: rosbags reads each file, this puts them together.

What one channel or file has wrong is kept from the others: a foreign encoding (JSON, protobuf), a
lost file of a split bag, a metadata.yaml that is missing or damaged. `Storage.notes` tells.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import yaml
from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import storage_mcap
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from recon4d_ros.errors import BagError
from recon4d_ros.yaml_text import load_yaml

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # no CDR message begins so: its first byte is 0
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")
SUFFIXES = (".mcap", ".db3")


@dataclass(frozen=True)
class Channel:
    """A topic of one message type. definition: as the bag has it. count: messages in all files."""

    topic: str
    type: str
    definition: MessageDefinition
    count: int


class Storage:
    """The files of a bag, opened; a rosbag2 folder, or one .mcap or .db3 file.

    channels: in the bag's order, those in CDR. foreign: topic -> why its messages cannot be read.
    start_ns, end_ns: of reception, both 0 if there is no message. notes: sentences about what is
    not as it should be. Raises BagError, and whatever rosbags trips over in a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.foreign: dict[str, str] = {}
        self._closing = ExitStack()
        self._files: list[McapReader | Sqlite3Reader] = []
        try:
            for file in self._storage_files():
                self._files.append(self._open(file))
        except BaseException:
            self.close()
            raise
        filled = [file for file in self._files if file.metadata.message_count]
        self._files.sort(key=lambda file: file.metadata.start_time)
        self.message_count = sum(file.metadata.message_count for file in filled)
        self.start_ns = min((file.metadata.start_time for file in filled), default=0)
        self.end_ns = max((file.metadata.end_time - 1 for file in filled), default=0)
        self.kind = "sqlite3" if isinstance(self._files[0], Sqlite3Reader) else "mcap"
        self.channels = self._channels()

    @property
    def is_open(self) -> bool:
        return bool(self._files)

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self._files = []
        self._closing.close()

    def messages(self, channels: Sequence[Channel]) -> Iterator[tuple[Channel, int, bytes]]:
        """(channel, time of reception, CDR bytes), file by file in order of reception."""
        wanted = {(channel.topic, channel.type): channel for channel in channels}
        for file in self._files:
            here = {
                connection.id: wanted[connection.topic, connection.msgtype]
                for connection in file.connections
                if (connection.topic, connection.msgtype) in wanted and _is_cdr(connection)
            }
            connections = [one for one in file.connections if one.id in here]
            for connection, receive_ns, data in _messages(file, connections) if here else ():
                packed = data[:4] == _ZSTD_MAGIC
                yield here[connection.id], receive_ns, zstd.decompress(data) if packed else data

    def _storage_files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        there = sorted(
            file
            for file in self.path.iterdir()
            if file.suffix in SUFFIXES or (file.suffix == ".zstd" and Path(file.stem).suffix)
        )
        listed = self._listed()
        if listed is None:
            if not there:
                raise BagError(f"bag {self.path} holds no .mcap or .db3 file")
            return there
        lost = [name for name in listed if not (self.path / name).exists()]
        kept = [self.path / name for name in listed if (self.path / name).exists()]
        if not kept:
            raise BagError(
                f"bag {self.path}: the files that its metadata.yaml names are missing:"
                f" {', '.join(lost) or 'it names none'}"
            )
        if lost:
            self.notes.append(
                f"bag {self.path}: {', '.join(lost)} of its {len(listed)} files"
                f" {'are' if len(lost) > 1 else 'is'} missing: the rest is read"
            )
        return kept

    def _listed(self) -> list[str] | None:
        """The files that metadata.yaml names, in its order; None where it cannot be asked."""
        file = self.path / "metadata.yaml"
        if not file.exists():
            self.notes.append(f"bag {self.path} has no metadata.yaml: its files are read without")
            return None
        try:
            tree = load_yaml(file.read_text(encoding="utf-8"))
            names = tree["rosbag2_bagfile_information"]["relative_file_paths"]
            return [Path(str(name)).name for name in names]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            self.notes.append(
                f"bag {self.path}: its metadata.yaml is damaged: its files are read without"
            )
            return None

    def _open(self, file: Path) -> McapReader | Sqlite3Reader:
        if file.suffix == ".zstd":
            file = self._unpacked(file)
        reader: McapReader | Sqlite3Reader
        if file.suffix == ".mcap":
            reader = McapReader(file)
            with _foreign_schemas(), _no_profile() as said:
                reader.open()
            if said == [""]:
                self.notes.append(f"bag {file} names no profile: it is read as ROS 2's")
        else:
            log = file.with_name(f"{file.name}-wal")
            if log.exists() and log.stat().st_size:
                self.notes.append(
                    f"bag {file} has a write-ahead log that its recorder did not merge: the"
                    " messages in it are missing (`sqlite3 FILE 'PRAGMA wal_checkpoint(TRUNCATE)'`"
                    " merges it)"
                )
            reader = Sqlite3Reader(Path(quote(str(file))))  # it becomes part of a URI
            reader.open()
        self._closing.callback(reader.close)
        return reader

    def _unpacked(self, file: Path) -> Path:
        folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory()))
        with (
            file.open("rb") as packed,
            zstd.open(packed, "rb") as source,
            (folder / file.stem).open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        return folder / file.stem

    def _channels(self) -> list[Channel]:
        found: dict[tuple[str, str], Channel] = {}
        for file in self._files:
            for one in file.connections:
                if not _is_cdr(one):
                    encoding = getattr(one.ext, "serialization_format", "")
                    self.foreign[one.topic] = f"its messages are {encoding or 'of no encoding'}"
                    continue
                before = found.get((one.topic, one.msgtype))
                defined = before is not None and before.definition != _NO_DEFINITION
                found[one.topic, one.msgtype] = Channel(
                    one.topic,
                    one.msgtype,
                    before.definition if before is not None and defined else one.msgdef,
                    one.msgcount + (before.count if before else 0),
                )
        return list(found.values())


def _messages(
    file: McapReader | Sqlite3Reader, connections: list[Connection]
) -> Iterator[tuple[Connection, int, bytes]]:
    """By an index in order of reception. Without one in the file's own order, in which rosbags
    refuses what is not sorted; read apart, so that several may read at once."""
    if isinstance(file, Sqlite3Reader) or file.chunks:
        yield from file.messages(connections)
        return
    with file.path.open("rb") as stream:
        apart = copy(file)
        apart.bio = stream
        yield from apart.messages_scan(connections)


def _is_cdr(connection: Connection) -> bool:
    return getattr(connection.ext, "serialization_format", "") == "cdr"


@contextmanager
def _foreign_schemas() -> Iterator[None]:
    """rosbags refuses a whole MCAP for one schema that is not ROS's; here it has no definition."""
    original = storage_mcap.get_msgdef

    def get_msgdef(schema: storage_mcap.Schema | None) -> MessageDefinition:
        try:
            return original(schema)
        except KeyError:
            return _NO_DEFINITION

    storage_mcap.get_msgdef = get_msgdef
    try:
        yield
    finally:
        storage_mcap.get_msgdef = original


@contextmanager
def _no_profile() -> Iterator[list[str]]:
    """rosbags refuses an MCAP whose header does not say ros2; writers that are not rosbag2's own
    often leave the profile empty, and then schemas and encodings say what it is. Gives the profile
    once it is read."""
    original = storage_mcap.read_string
    said: list[str] = []

    def read_string(bio: BinaryIO) -> str:
        text = original(bio)
        if said:
            return text
        said.append(text)  # the first text of a file is its profile
        return text or "ros2"

    storage_mcap.read_string = read_string
    try:
        yield said
    finally:
        storage_mcap.read_string = original
