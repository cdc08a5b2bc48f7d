"""The node's viewer (parameter `viewer`): a listener in a thread of its own, newest frame set
first. What goes wrong with it is said once, and stops nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.errors import Recon4dError
from recon4d_ros.parallel import go_behind
from recon4d_ros.paths import user_path
from recon4d_ros.ros.worker import Worker
from recon4d_ros.types import Calibration, Reconstruction
from recon4d_ros.viewer import Sinks, View, ViewLog, view_to

WEB = "web"


class ViewerOutput:
    """`put` each result, `put_map` now and then. say(sentence, whether it is an error): for the
    log."""

    def __init__(
        self, where: str, address: str, port: int, say: Callable[[str, bool], None]
    ) -> None:
        self._say, self._failed_once = say, False
        if where == WEB:
            self._sinks = Sinks(None, True, address, port)
        else:
            self._sinks = Sinks(user_path(where))
        self._view: View | None = None
        self._log: ViewLog | None = None
        self.skipped = 0
        self._worker: Worker[tuple[Calibration, Reconstruction]] = Worker(
            self._show,
            displaced=self._skip,
            failed=self._failed,
            merge=lambda older, newer: newer,
        )
        self._worker.call(self._open)

    def put(self, calibration: Calibration, result: Reconstruction) -> None:
        """Hand over a frame set; never blocks."""
        if self._view is not None:
            self._worker.put((calibration, result))

    def put_map(self, xyz: NDArray[np.float32], rgb: NDArray[np.uint8]) -> None:
        """The map as it is; never blocks. The arrays are not to be changed any more."""
        self._worker.call(lambda: self._log.add_map(xyz, rgb) if self._log is not None else None)

    def close(self) -> None:
        """Ends it; what was logged is written."""
        self._worker.close()
        if self._view is not None:
            self._view.close()
            self._view = None

    def _open(self) -> None:
        go_behind()
        try:
            self._view = view_to(self._sinks, "recon4d")
        except Recon4dError as error:
            self._say(f"viewer: {error}; the node goes on without it", True)
            return
        self._say(f"viewer: {self._view.url or self._sinks.file}", False)

    def _show(self, work: tuple[Calibration, Reconstruction]) -> None:
        calibration, result = work
        if self._view is None:
            return
        if self._log is None:
            self._log = ViewLog(self._view.recording, calibration.names)
            self._log.calibrate(calibration)
        self._log.add(result)

    def _skip(self, work: tuple[Calibration, Reconstruction]) -> None:
        self.skipped += 1

    def _failed(self, error: Exception) -> None:
        if not self._failed_once:
            self._failed_once = True
            sentence = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            self._say(f"viewer: {sentence} (said here once)", True)
