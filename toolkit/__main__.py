"""`python -m toolkit`, for where the console script is not on the PATH."""

from toolkit.cli import main

main()
