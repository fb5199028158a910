"""`python -m reptool`: the command line."""

import sys

from reptool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
