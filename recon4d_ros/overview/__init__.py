"""The picture of a run: `OverviewRecorder` gathers what it shows while the run goes on,
`draw_overview` draws it."""

from recon4d_ros.overview.data import CameraView, ObjectView, OverviewData, Trail
from recon4d_ros.overview.picture import draw_overview

__all__ = ["CameraView", "ObjectView", "OverviewData", "Trail", "draw_overview"]
