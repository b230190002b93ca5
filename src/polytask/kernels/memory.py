"""How the C library hands memory back: tensors of a training step that are freed and made again every step."""

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of malloc.h
_BYTES = 1 << 30


def keep_freed() -> bool:
    """Let the process keep blocks of up to 1 GiB that it frees, for its next ones; whether the C library can.

    By default glibc maps each block above 32 MiB anew, and the system fills it with zeros page by page: writing to it
    for the first time takes several times as long as computing what is written. Only glibc, on Linux, is told.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_THRESHOLD, _BYTES) and library.mallopt(_TRIM_THRESHOLD, 2 * _BYTES - 1))
