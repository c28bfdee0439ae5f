"""python -m tfcompress: the command line."""

import sys

from tfcompress.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
