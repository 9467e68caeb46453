"""R-CNN detectors for MindSpore."""

import os

# MindSpore's advice on Ascend and GPU set-ups, a line each at every start, would bury our own messages.
os.environ.setdefault("GLOG_v", "3")
