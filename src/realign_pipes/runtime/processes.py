"""Processes that must not outlive the one that started them. Imports nothing heavy: it runs at the start of each."""

import ctypes
import signal
import sys


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that it never goes on alone. Linux only.

    To the kernel the parent is the thread that started this process. Processes that this one starts do not inherit it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
