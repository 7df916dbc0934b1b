"""The strategies for facts stand beside the tests of the single truths."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "truth"))
