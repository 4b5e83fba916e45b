"""What libraries and the lower floors log, and where it goes while a command runs."""

from __future__ import annotations

from qctl.cli.options import Settings


def libraries(settings: Settings) -> None:
    """To stderr with -v alone: the command's own lines say what matters."""
    import logging

    if settings.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    else:
        logging.getLogger().addHandler(logging.NullHandler())
