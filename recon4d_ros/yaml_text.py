"""YAML that nobody vouches for: engine.yaml, rig files, parameter files, a bag's metadata."""

from __future__ import annotations

from typing import Any

import yaml

# libyaml where PyYAML was built with it: a start reads ten engine.yaml, in pure Python for 0.4 s
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 50  # collections in each other


def load_yaml(text: str) -> Any:
    """The text's tree. Raises yaml.YAMLError, also where collections are nested deeper than
    DEEPEST: both loaders build the tree by recursion, and libyaml's ends with the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists and tables are nested deeper than {DEEPEST}")
    return yaml.load(text, Loader=_LOADER)
