"""Linux's ways to leave no process behind: die with the parent, adopt and end what is left over."""

import ctypes
import os
import signal

import psutil

_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_GRACE_S = 5.0


def die_with_parent(number: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent ends, however that happens.

    The parent's thread that started this process counts as the parent.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, number)


def adopt_orphans(is_adopting: bool) -> None:
    """Become, or stop being, the parent of every descendant whose own parent dies."""
    _prctl(_SET_CHILD_SUBREAPER, int(is_adopting))


def end_descendants(spared: set[int]) -> None:
    """Kill every descendant and wait, except the children with the ids in `spared` and theirs."""
    while left := _descendants(spared):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=_GRACE_S)


def _descendants(spared: set[int]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        if child.pid in spared:
            continue
        try:
            found += [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(
            ctypes.get_errno(), f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}"
        )
