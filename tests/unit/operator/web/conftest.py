"""The strategies for facts lie with the tests of the truth; this folder's property tests draw from them too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "truth"))
