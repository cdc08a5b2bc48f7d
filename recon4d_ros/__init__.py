"""Online 4D reconstruction on the vehicle."""

import os

# The core's matrices are small: OpenBLAS's threads cost far more than they give there (one product
# was 100 times slower for waiting).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
