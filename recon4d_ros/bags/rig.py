"""The rig of a bag: each camera's camera_info, its frame among the transforms that stand still, and
its images' size held against both."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon4d_ros import messages as ros
from recon4d_ros.bags import topics as bag_topics
from recon4d_ros.bags.frames import Said, camera_frames
from recon4d_ros.bags.topics import CameraTopic
from recon4d_ros.bags.transforms import check_height
from recon4d_ros.cameras import video
from recon4d_ros.cameras.decode import source_size
from recon4d_ros.cameras.rig import CameraTopics
from recon4d_ros.errors import BagError, CalibrationError, ImageError, Recon4dError
from recon4d_ros.types import Camera, RawImage, Rig

if TYPE_CHECKING:
    from recon4d_ros.bags.reader import BagReader

FIRST_INFOS = 200  # camera_info without a calibration that are passed over at the start


def raw_image(camera: CameraTopic, message: Any) -> RawImage:
    """A message of the camera's image topic, as it is."""
    if camera.type in bag_topics.VIDEOS:
        return ros.raw_video(message)
    read = ros.raw_image if camera.type == bag_topics.IMAGE else ros.raw_compressed_image
    return read(message)


def camera_topics(
    reader: BagReader,
    rig: Rig,
    image_topics: Mapping[str, str] | None = None,
    info_topics: Mapping[str, str] | None = None,
    **_: Any,
) -> dict[str, CameraTopics]:
    """The topics of a rig's cameras, for its rig file."""
    found = reader.cameras(rig.names, image_topics, info_topics)
    return {
        name: CameraTopics(camera.image, camera.camera_info or "") for name, camera in found.items()
    }


class RigOfBag:
    """Reads one rig. What had to be made of it, and which camera was left out, is told through the
    reader's notes."""

    def __init__(self, reader: BagReader, base_frame: str, height: float | None) -> None:
        self._reader, self._base_frame, self._height = reader, base_frame, height
        check_height(height)

    def rig(
        self, chosen: Mapping[str, CameraTopic], every: Mapping[str, CameraTopic], named: bool
    ) -> Rig:
        """The rig of the chosen cameras of every one there is. named: the user chose, so that none
        is left out. Raises BagError, CalibrationError."""
        used = dict(chosen) if named else self._with_info(chosen)
        infos = {name: self._info(camera) for name, camera in used.items()}
        frames = self._frames(used, infos)
        first = next(iter(frames.values()))
        places: dict[str, ros.Mount] = {}
        faults: dict[str, CalibrationError] = {}
        for name, camera in used.items():
            try:
                place = self._place(name, frames[name], first)
            except CalibrationError as error:
                faults[name] = error
                continue
            places[name] = ros.mount(infos[name], place, camera.rectified)
        for name, error in faults.items():
            remedy = self._remedy(frames[name], list(places))
            raise CalibrationError(f"{self._where(name)}: {error}{remedy}") from error
        partners = self._partners(every, used, set(frames.values()), first) if named else {}
        poses, notes = ros.stereo_poses({**places, **partners})
        for note in notes:
            if not any(note.startswith(f"camera {name}:") for name in partners):
                self._reader.tell(note)
        return Rig(
            self._reader.path.stem,
            tuple(self._camera(one, infos[name], poses[name]) for name, one in used.items()),
        )

    def _where(self, name: str) -> str:
        return f"bag {self._reader.path}, camera {name}"

    def _with_info(self, chosen: Mapping[str, CameraTopic]) -> dict[str, CameraTopic]:
        """Without pictures that no camera_info goes with, where there are others, and without
        video that cannot be decoded."""
        topics, kept = self._reader.topics, {}
        lacking, undecodable = [], []
        for name, camera in chosen.items():
            if camera.camera_info is None or not topics[camera.camera_info].count:
                lacking.append(name)
            elif self._undecodable(camera):
                undecodable.append(name)
            else:
                kept[name] = camera
        if not kept:
            one = (undecodable or lacking)[0]
            return {one: chosen[one]}  # which says what is wrong
        for name in lacking:
            self._reader.tell(
                f"{chosen[name].image} is not used: no camera_info goes with it (`--camera-info"
                f" {name}=TOPIC` names one)"
            )
        for name in undecodable:
            self._reader.tell(f"{chosen[name].image} is not used: {video.MISSING}")
        return kept

    def _undecodable(self, camera: CameraTopic) -> bool:
        try:
            image = self._first_image(camera)
        except BagError:
            return False
        return video.is_video(image) and not video.available()

    def _first_image(self, camera: CameraTopic) -> RawImage:
        return raw_image(camera, self._reader.first(camera.image))

    def _info(self, camera: CameraTopic) -> Any:
        """The first camera_info that has a calibration. Raises BagError."""
        topics = self._reader.topics
        if camera.camera_info is None or not topics[camera.camera_info].count:
            known = [
                topic
                for topic, info in topics.items()
                if info.type == bag_topics.CAMERA_INFO and info.count
            ]
            expected = f"{camera.image.removesuffix('/compressed').rsplit('/', 1)[0]}/camera_info"
            remedy = (
                f"`--camera-info {camera.name}=TOPIC` names one of them"
                if known
                else "a rig file gives the calibration instead"
            )
            raise BagError(
                f"{self._where(camera.name)}: no camera_info on {expected}: the bag has"
                f" {', '.join(known) or 'none at all'}; {remedy}"
            )
        if self._undecodable(camera):
            raise BagError(f"{self._where(camera.name)}: {camera.image} is video: {video.MISSING}")
        found = None
        messages = self._reader.messages([camera.camera_info])
        for index, (_, _, message) in enumerate(islice(messages, FIRST_INFOS)):
            found = found or message
            if ros.is_calibrated(message) and ros.is_finite(message):
                if index:
                    assert found is not None
                    what = "all zeros" if not ros.is_calibrated(found) else "not finite"
                    self._reader.tell(
                        f"camera {camera.name}: its first {'' if index == 1 else f'{index} '}"
                        f"camera_info {'is' if index == 1 else 'are'} {what}: the next is taken"
                    )
                return message
        if found is None:
            raise BagError(
                f"{self._where(camera.name)}: {camera.camera_info} is announced but holds no"
                " message"
            )
        return found

    def _frames(
        self, cameras: Mapping[str, CameraTopic], infos: Mapping[str, Any]
    ) -> dict[str, str]:
        said = {name: self._said(camera, infos[name]) for name, camera in cameras.items()}
        if self._height is not None:
            return {name: one.info or one.image or name for name, one in said.items()}
        second = [
            name
            for name, camera in cameras.items()
            if ros.is_second(ros.mount(infos[name], np.eye(4), camera.rectified))
        ]
        frames, notes = camera_frames(said, self._known, second)
        for note in notes:
            self._reader.tell(note)
        return frames

    def _said(self, camera: CameraTopic, info: Any) -> Said:
        """The frames that a camera's messages name."""
        try:
            message = self._reader.first(camera.image)
        except BagError:  # a first image that is broken says nothing of the others
            return Said(ros.frame_name(info.header.frame_id), "")
        header = getattr(message, "header", None)
        image = ros.frame_name(header.frame_id if header else message.frame_id)
        return Said(ros.frame_name(info.header.frame_id), image)

    def _known(self, frame: str) -> NDArray[np.float64] | None:
        try:
            return self._reader.transforms.lookup(self._base_frame, frame)
        except CalibrationError:
            return None

    def _place(self, name: str, frame: str, first: str) -> NDArray[np.float64]:
        """T_base_frame. Raises CalibrationError."""
        transforms = self._reader.transforms
        if self._height is not None:
            return transforms.ahead(first, frame, self._height)
        frame = transforms.optical(self._base_frame, frame, name)
        return transforms.lookup(self._base_frame, frame)

    def _remedy(self, frame: str, placed: list[str]) -> str:
        """What helps where no transform leads to a camera's frame. placed: cameras that one leads
        to."""
        if self._height is not None:
            return ""
        if placed:
            return f"; `--cameras {' '.join(placed)}` leaves it out, a rig file says where it is"
        transforms = self._reader.transforms
        root = transforms.root(frame)
        unknown = not transforms.knows(self._base_frame)
        base = f"`--base-frame {root}` names the car's frame, " if root and unknown else ""
        return (
            f"; {base}`--height METRES` puts {self._base_frame} below a camera that looks straight"
            " ahead, a rig file says all"
        )

    def _partners(
        self,
        every: Mapping[str, CameraTopic],
        used: Mapping[str, CameraTopic],
        frames: set[str],
        first: str,
    ) -> dict[str, ros.Mount]:
        """Cameras that are not used and share a frame with one that is: the other half of a stereo
        pair."""
        found = {}
        for name, camera in every.items():
            if name in used or camera.camera_info is None:
                continue
            try:
                info = self._info(camera)
                said = self._said(camera, info)
                frame = said.info or said.image or name
                if frame in frames:
                    place = self._place(name, frame, first)
                    found[name] = ros.mount(info, place, camera.rectified)
            except Recon4dError:
                continue  # nobody asked for it
        return found

    def _camera(self, camera: CameraTopic, info: Any, pose: NDArray[np.float64]) -> Camera:
        where = self._where(camera.name)
        try:
            size = source_size(self._first_image(camera))
        except (ImageError, BagError):
            size = None  # a first image that is broken says nothing of the others
        if size is not None and 0 in size:
            size = None
        try:
            reading = ros.read_camera_info(camera.name, info, pose, camera.rectified, size)
        except CalibrationError as error:
            reason = str(error).removeprefix(f"camera {camera.name}: ")
            raise CalibrationError(f"{where}: {reason}") from error
        for note in reading.notes:
            self._reader.tell(note)
        return reading.camera
