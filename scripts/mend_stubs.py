"""Make TensorRT's type stubs from PyPI readable: `python scripts/mend_stubs.py FOLDER`, the folder
that they were installed into.

tensorrt-stubs 10.13.0.35.1 does not parse: parameters are named `in`, and one without a default
follows others that have one. Doing it twice changes nothing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

STUBS = Path("tensorrt_bindings/tensorrt.pyi")
KEYWORD = re.compile(r"(?<=[(,] )in(?=: )|(?<=\()in(?=: )")
NO_DEFAULT = re.compile(r"(= None, channel_axis: int)(?=\))")


def mend(text: str) -> str:
    return NO_DEFAULT.sub(r"\1 = 0", KEYWORD.sub("in_", text))


def main() -> int:
    path = Path(sys.argv[1]) / STUBS
    text = path.read_text()
    new = mend(text)
    if new != text:
        path.write_text(new)
    compile(new, str(path), "exec")  # says where, should another version have other faults
    return 0


if __name__ == "__main__":
    sys.exit(main())
