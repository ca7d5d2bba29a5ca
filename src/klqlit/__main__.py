"""`python -m klqlit`."""

import sys

from klqlit.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
