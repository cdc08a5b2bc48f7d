"""The rig as a running graph tells it: intrinsics from camera_info, extrinsics from the transforms
that stand still, by the rules for bags; and what is still missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo

from recon4d_ros.bags.frames import Said, camera_frames
from recon4d_ros.bags.transforms import LOOKS_UP, FixedTransforms, check_height
from recon4d_ros.cameras.rig_check import check_rig, contradiction
from recon4d_ros.errors import CalibrationError
from recon4d_ros.messages import (
    BASELINE,
    CameraReading,
    Mount,
    frame_name,
    image_size,
    is_calibrated,
    is_rectified,
    is_second,
    mount,
    read_camera_info,
    same_place,
    size_fault,
    stereo_poses,
)
from recon4d_ros.types import Rig

DOUBT = 1.5  # seconds until a rig that cannot be one is said to be none: frames may be on their way
FRAME_WAIT = (
    5.0  # seconds that an image is waited for to tell its frame; then camera_info's is taken
)
HEIGHT_REMEDY = (
    " (nothing is on /tf_static; parameter camera_height puts the car's frame below a camera that"
    " looks straight ahead)"
)
STAYS = "the one in use stays until the node is configured again"
ZEROS = "has no focal length: all zeros"


class RigSource:
    """Collects one calibration per camera; `rig()` is the rig as soon as all of it is there.

    A camera's first image says of which size its images are, which tells whether binning and region
    of interest are applied already, and of which frame, where camera_info leaves that in doubt.
    Once used, a calibration is not replaced: `offer` says in a sentence when a later camera_info
    contradicts it.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        transforms: FixedTransforms,
        base_frame: str,
        known: Rig | None = None,
        *,
        rectified: Collection[str] = (),
        height: float | None = None,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        """known: the rig of a rig file, which then needs no message. rectified: cameras whose
        images are, so that P is their matrix. height: metres of the first camera above the road,
        where no transform leads to base_frame: it then looks straight ahead. tell: gets what had to
        be made of a calibration."""
        check_height(height)
        self._height = height
        self._rectified = set(rectified)
        self._names, self._transforms, self._base_frame = names, transforms, base_frame
        self._known, self._from_file, self._tell = known, known is not None, tell
        self._infos: dict[str, CameraInfo] = {}
        self._partners: dict[str, CameraInfo] = {}  # by topic, of cameras that are not the rig's
        self._expected: frozenset[str] = frozenset()
        self._faults: dict[str, str] = {}
        self._zeros: Counter[str] = Counter()
        self._sizes: dict[str, tuple[int, int]] = {}
        self._frames: dict[str, str] = {}  # as the images say them
        self.changed = False
        """Whether a rig that `rig()` gave is no longer the one: whoever uses it sets this back."""
        self._asked: dict[str, float] = {}  # monotonic time: an image is wanted to tell its frame
        self._needs_frames = False  # with the frames of camera_info there is no rig
        self._whole: float | None = None  # monotonic time at which nothing was missing any more

    def offer(self, name: str, message: CameraInfo) -> str:
        """Take a camera_info. Returns "" or the sentence why it is not used."""
        if not is_calibrated(message):
            if self._known is not None:
                return f"camera_info of {name} {ZEROS}"
            if name not in self._infos:
                self._zeros[name] += 1
                self._faults[name] = f"it {ZEROS}"
            return ""
        size = self._sizes.get(name)
        if self._known is None and size is None and 0 in image_size(message):
            return self._keep(name, message)  # an image will say
        if self._known is not None and size and size_fault(message, size):
            size = None  # said of the image; here what is said is that it changed
        try:
            camera = self._read(name, message, np.eye(4), size).camera
        except CalibrationError as error:
            if self._known is None:
                self._faults[name] = str(error)
            return str(error)
        if self._known is not None:
            return contradiction(self._known.cameras[self._known.names.index(name)], camera, STAYS)
        return self._keep(name, message)

    def _keep(self, name: str, message: CameraInfo) -> str:
        if (zeros := self._zeros.pop(name, 0)) and name not in self._infos:
            many = f"{zeros} camera_info are" if zeros > 1 else "camera_info is"
            self._tell(f"camera {name}: its first {many} all zeros: the next is taken")
        self._infos[name] = message
        self._faults.pop(name, None)
        return ""

    def image(self, name: str, size: tuple[int, int], frame: str) -> str:
        """A camera's image: (width, height), and its frame_id. The first counts. Returns "" or the
        sentence why its camera_info is not for such images. `rig()` may be another one now."""
        if name in self._sizes or self._from_file:
            return ""
        before = self._frame(name) if self._known is not None else ""
        self._sizes[name], self._frames[name] = size, frame
        if name not in self._infos:
            return ""
        try:
            camera = self._read(name, self._infos[name], np.eye(4), size).camera
        except CalibrationError as error:
            if self._known is None:  # otherwise it goes on, and these images are counted as misfits
                self._faults[name] = str(error)
                del self._infos[name]
            return str(error)
        if self._known is not None:
            used = self._known.cameras[self._known.names.index(name)]
            same = (used.width, used.height) == (camera.width, camera.height)
            same = same and self._frame(name) == before
            if not (same and np.allclose(used.k, camera.k, atol=1e-6)):
                self._forget()
        return ""

    def wants_partners(self) -> bool:
        """Whether a camera says that it is the second of a stereo pair, and no other camera of the
        rig is in its place: the first one's camera_info then tells where both are."""
        if self._known is not None or self.missing():
            return False
        mounts = self._mounts()
        return any(
            is_second(one)
            and not any(same_place(one, its) for other, its in mounts.items() if other != name)
            for name, one in mounts.items()
        )

    def expect_partners(self, topics: Collection[str]) -> None:
        """The topics of other cameras' camera_info that are listened to."""
        self._expected = frozenset(topics)

    def partner(self, topic: str, message: CameraInfo) -> None:
        """The camera_info of a camera that is not the rig's."""
        if is_calibrated(message):
            self._partners[topic] = message

    def images_on(self, name: str, topic: str) -> None:
        """The topic that a camera's images come on, resolved: its name says whether they are
        rectified."""
        if not self._from_file and is_rectified(topic) != (name in self._rectified):
            self._rectified ^= {name}
            self._forget()

    def missing(self) -> list[str]:
        """What the rig still waits for, one phrase each: `camera_info of front`, `tf
        base_link->front`, or why a camera_info is no good."""
        if self._known is not None:
            return []
        phrases = []
        for name in self._names:
            if name in self._faults:
                phrases.append(f"a usable camera_info of {name} ({self._faults[name]})")
            elif name not in self._infos:
                phrases.append(f"camera_info of {name}")
            elif self._lacks_image(name):
                phrases.append(f"an image of {name}, for its camera_info names no frame or no size")
            elif self._awaits_frame(name):  # first: extrinsics would tell of a frame not used
                phrases.append(f"an image of {name}, to tell its frame")
            elif fault := self._fault_of_extrinsics(name):
                phrases.append(fault)
        return phrases

    def wants_images(self, name: str) -> bool:
        """Whether an image would help: some drivers send camera_info only while somebody reads
        their images, and some camera_info lacks what an image says. Where an image is to tell its
        frame, it is waited for FRAME_WAIT seconds from the first time that this is asked: before,
        nobody subscribes to it."""
        if self._known is not None:
            return False
        if name not in self._infos or self._lacks_image(name):
            return True
        if doubt := self._frame_in_doubt(name):
            self._asked.setdefault(name, time.monotonic())
        return doubt

    def lacks_info(self, name: str) -> bool:
        """Whether a camera's camera_info is still awaited."""
        return self._known is None and name not in self._infos and name not in self._faults

    def rig(self) -> Rig | None:
        """The rig, or None while something is missing. Raises CalibrationError if what is there
        makes no rig."""
        if self._known is None and not self.missing():
            self._whole = time.monotonic() if self._whole is None else self._whole
            if self.wants_partners() and not self._expected <= set(self._partners):
                if time.monotonic() - self._whole < DOUBT:
                    return None
            try:
                rig = self._assembled()
                check_rig(rig)
            except CalibrationError:
                if any(self._frame_in_doubt(name) for name in self._names):
                    self._needs_frames, self._whole = True, None
                    return None
                if time.monotonic() - self._whole < DOUBT:
                    return None
                raise
            self._known = rig
        return self._known

    def edges(self) -> list[str]:
        """Child frames of the transforms that the rig stands on."""
        if self._from_file:
            return []
        base = self._base_frame if self._height is None else self._frame(self._names[0])
        return [
            child
            for name in self._names
            for child in self._transforms.between(base, self._optical(name))
        ]

    def _assembled(self) -> Rig:
        mounts, partners = self._mounts(), self._partner_mounts()
        poses, notes = stereo_poses({**mounts, **partners})
        theirs = tuple(f"camera {name}:" for name in partners)
        notes = [note for note in notes if not note.startswith(theirs)]
        readings = [
            self._read(name, self._infos[name], poses[name], self._sizes.get(name))
            for name in self._names
        ]
        for note in (*notes, *(note for reading in readings for note in reading.notes)):
            self._tell(note)
        cameras = tuple(reading.camera for reading in readings)
        return Rig("from camera_info and /tf_static", cameras)

    def _mounts(self) -> dict[str, Mount]:
        return {
            name: mount(self._infos[name], self._place(name), name in self._rectified)
            for name in self._names
        }

    def _partner_mounts(self) -> dict[str, Mount]:
        """Of cameras that are not the rig's and share a frame with one that is, by the topic of
        their camera_info without its last part, which has the camera's name."""
        frames = {self._frame(name): name for name in self._names}
        found = {}
        for topic, message in self._partners.items():
            if name := frames.get(frame_name(message.header.frame_id)):
                place, rectified = self._place(name), name in self._rectified
                other = mount(message, place, rectified)
                ours = mount(self._infos[name], place, rectified)
                if max(abs(other.tx - ours.tx), abs(other.ty - ours.ty)) > BASELINE:
                    found[topic.rpartition("/")[0]] = other  # else it is this camera once more
        return found

    def _place(self, name: str) -> NDArray[np.float64]:
        """T_base_frame of a camera. Raises CalibrationError."""
        if self._height is not None:
            return self._transforms.ahead(
                self._frame(self._names[0]), self._frame(name), self._height
            )
        return self._transforms.lookup(self._base_frame, self._optical(name))

    def _forget(self) -> None:
        self.changed = self.changed or self._known is not None
        self._known = None

    def _read(
        self,
        name: str,
        message: CameraInfo,
        T_base_camera: NDArray[np.float64],
        size: tuple[int, int] | None,
    ) -> CameraReading:
        return read_camera_info(name, message, T_base_camera, name in self._rectified, size)

    def _lacks_image(self, name: str) -> bool:
        info = self._infos[name]
        unnamed = not frame_name(info.header.frame_id) or 0 in image_size(info)
        return unnamed and name not in self._sizes

    def _frame_in_doubt(self, name: str) -> bool:
        """Whether an image of the camera would say of which frame it is, better than its
        camera_info: that one is unknown, the body's, or another camera's, too. Of a pair in one
        frame whose second says its baseline, neither is."""
        if name in self._frames or self._height is not None or not self._transforms.frames():
            return False  # without any transform, no frame helps
        frame = frame_name(self._infos[name].header.frame_id)
        sharing = [
            one
            for one, info in self._infos.items()
            if frame_name(info.header.frame_id) == frame and not self._is_second(one)
        ]
        if name in sharing and len(sharing) > 1:
            return True
        place = self._where(frame)
        if place is None:  # of a car whose transforms have not come yet nothing is in doubt
            return self._transforms.knows(self._base_frame)
        return bool(place[2, 2] > LOOKS_UP)

    def _awaits_frame(self, name: str) -> bool:
        """Whether there is no rig until an image has said its frame, or was waited for in vain. Not
        where camera_info's frame is not known yet: that is what is missing then."""
        frame = frame_name(self._infos[name].header.frame_id)
        if not self._frame_in_doubt(name) or self._where(frame) is None:
            return False
        asked = self._asked.get(name)
        if asked is None or self._needs_frames:
            return True
        return time.monotonic() - asked < FRAME_WAIT

    def _is_second(self, name: str) -> bool:
        return is_second(mount(self._infos[name], np.eye(4), name in self._rectified))

    def _where(self, frame: str) -> NDArray[np.float64] | None:
        try:
            return self._transforms.lookup(self._base_frame, frame)
        except CalibrationError:
            return None

    def _frame(self, name: str) -> str:
        said = {
            one: Said(frame_name(info.header.frame_id), self._frames.get(one, ""))
            for one, info in self._infos.items()
        }
        if self._height is not None or said[name].image in ("", said[name].info):
            return said[name].info or said[name].image or name
        second = [one for one in said if self._is_second(one)]
        frames, notes = camera_frames(said, self._where, second)
        for note in notes:
            if note.startswith(f"camera {name}:"):
                self._tell(note)
        return frames[name]

    def _optical(self, name: str) -> str:
        """Raises CalibrationError as `FixedTransforms.optical`."""
        if self._height is not None:
            return self._frame(name)
        return self._transforms.optical(self._base_frame, self._frame(name), name)

    def _fault_of_extrinsics(self, name: str) -> str:
        """ "" or what is missing between the car's frame and a camera's."""
        base = self._base_frame if self._height is None else self._frame(self._names[0])
        try:
            self._place(name)
            return ""
        except CalibrationError as error:
            wanted, known = f"tf {base}->{self._frame(name)}", self._transforms.frames()
            if not known:
                return wanted + HEIGHT_REMEDY if self._height is None else wanted
            both = {base, self._frame(name)} <= set(known)
            if both or self._height is not None or "fixed to the car" in str(error):
                return f"{wanted} ({error})"
        root = self._transforms.root(self._frame(name))
        remedy = (
            f"; parameter base_frame: {root} names the car's frame"
            if root and not self._transforms.knows(self._base_frame)
            else ""
        )
        return f"{wanted} (known are {', '.join(known)}{remedy})"
