"""A run seen in the browser, by Rerun: an optional extra (`make viewer`), and one more listener.
What reconstructs knows nothing of it.

`ViewLog` puts our nouns on a timeline, `view_to` says where they go: a file, or a web viewer that
this machine serves. rerun is imported only when one of them is made.
"""

from recon4d_ros.viewer.sinks import Sinks, View, view_to
from recon4d_ros.viewer.view_log import ViewLog

__all__ = ["Sinks", "View", "ViewLog", "view_to"]
