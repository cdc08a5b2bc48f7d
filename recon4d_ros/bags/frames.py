"""Which frame a camera's images are in, where its camera_info and its images say different ones.
The same rules for a bag and for a running graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.bags.transforms import LOOKS_UP

SAME = 1e-3  # metres, and radians: two frames in one place

Place = Callable[[str], NDArray[np.float64] | None]


@dataclass(frozen=True)
class Said:
    """The frame_id of a camera's camera_info, and of its images; empty where there is none."""

    info: str
    image: str


def camera_frames(
    said: Mapping[str, Said], place: Place, second: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The frame of each camera, by name, and what had to be made of a contradiction.

    place: T_base_frame of a frame, None where no transform leads to it. second: cameras whose
    camera_info has the first one's frame rightly, with the baseline in P. camera_info's frame is
    taken, but the images' where only that one is known, where camera_info's is the body's (z up),
    or where it is another camera's.
    """
    frames, notes = {}, []
    shared = Counter(one.info for one in said.values())
    for name, one in said.items():
        frames[name] = one.info or one.image or name
        if not one.info or not one.image or one.info == one.image:
            continue
        here, there = place(one.info), place(one.image)
        if there is None:
            continue
        where = f"camera {name}: the frame of its camera_info, {one.info!r},"
        taken = f"that of its images, {one.image!r}, is taken"
        if here is None:
            notes.append(f"{where} is not among the transforms: {taken}")
        elif np.abs(here - there).max() < SAME:
            continue
        elif here[2, 2] > LOOKS_UP >= there[2, 2]:
            notes.append(f"{where} is the body's (z up): {taken}")
        elif shared[one.info] > 1 and name not in second:
            notes.append(f"{where} is another camera's, too: {taken}")
        else:
            notes.append(
                f"{where} is elsewhere than that of its images, {one.image!r}: camera_info's is"
                " taken"
            )
            continue
        frames[name] = one.image
    return frames, notes
