"""What the commands print with: diagnostics in colour where there is a terminal that wants it."""

from __future__ import annotations

import os
import re
import sys

#: The first word of a message and what it is painted with.
_COLOURS = {
    "error": "\x1b[1;31m",
    "internal error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "help": "\x1b[1;36m",
}
_HEAD = re.compile(r"^(error|internal error|warning|help)(\[\w+\])?:", re.MULTILINE)


def complain(text: str) -> None:
    """Print to standard error, with the first words of messages in colour where it is a terminal."""
    wanted = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if wanted:
        text = _HEAD.sub(lambda head: f"{_COLOURS[head[1]]}{head[0]}\x1b[0m", text)
    print(text, file=sys.stderr)
