"""`python -m klqlit`."""

import sys

from klqlit.cli import main, show_trace

if __name__ == "__main__":
    sys.excepthook = show_trace
    sys.exit(main(sys.argv[1:]))
