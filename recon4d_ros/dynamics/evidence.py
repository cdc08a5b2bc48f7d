"""What two images of one camera say against a static world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.dynamics.flow import Flow
from recon4d_ros.dynamics.residual import Residual, Road


@dataclass(frozen=True, eq=False)
class Evidence:
    """T: previous camera from current. flow, road and static flow [h, w, 2] between two shots;
    residual: of what static depth there is.

    chi2: [h, w] what a static world cannot explain, by any means.
    """

    T: NDArray[np.float64]
    flow: Flow
    road: Road
    static: NDArray[np.float32]
    residual: Residual
    chi2: NDArray[np.float32]
