"""`python -m qctl`."""

from __future__ import annotations

import sys

from qctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
