"""`python -m toolkit`, for where the console script is not on the PATH."""

import sys
from pathlib import Path

# Python puts the current folder first: a workspace of others could hold a numpy.py.
if Path(__file__).absolute().parent.parent != Path.cwd():
    sys.path[:] = [place for place in sys.path if place and Path(place) != Path.cwd()]

from toolkit.cli import main

main()
