"""What a file of Rerun's holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


def rows(path: Path) -> Counter[str]:
    """Rows by entity of a .rrd file."""
    reader = pytest.importorskip("rerun.chunk").RrdReader(str(path))
    counts: Counter[str] = Counter()
    for chunk in reader.store().stream().to_chunks():
        counts[chunk.entity_path] += chunk.num_rows
    return counts
