"""The pipeline on one page: what both notebooks call."""

import os

# Idle torch threads sleep: with one of two cores busy, spinning made reading an image 50 times
# slower. torch reads this once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
