"""The picture of a run: `recorder.OverviewRecorder` gathers what it shows while the run goes on,
`picture.draw_overview` draws it."""

from recon4d_ros.overview.data import CameraView, ObjectView, OverviewData, Trail

__all__ = ["CameraView", "ObjectView", "OverviewData", "Trail"]
