"""How much memory a process takes at its highest. Linux tells and lets the mark be lowered; others say None."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: What is written to `CLEAR` to lower the mark to what is held now (proc(5)).
LOWER_MARK = "5"
MIB = 2**20


def peak_of(work: Callable[[], object]) -> float | None:
    """MiB that the process holds at its highest during `work`, beyond what it held before; None where Linux does not
    tell.

    Allocators keep what was freed, so each thing is measured in a process of its own.
    """
    if not (STATUS.is_file() and CLEAR.is_file()):
        return None
    CLEAR.write_text(LOWER_MARK)
    before = _kilobytes("VmRSS")
    work()
    return max(0, _kilobytes("VmHWM") - before) * 1024 / MIB


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
