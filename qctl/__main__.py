"""`python -m qctl`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from qctl.cli.main import main
    except KeyboardInterrupt:  # Ctrl-C may come before anything is there to answer it
        sys.exit(130)
    sys.exit(main())
