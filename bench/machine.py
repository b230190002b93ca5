"""What a figure depends on beside the code: the machine, the versions, and what else ran."""

import os
import platform
import resource
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = [
    "polytask",
    "torch",
    "numpy",
    "numba",
    "polars",
    "pyarrow",
    "scipy",
    "tensorflow",
    "tf-keras",
    "tensorflow-recommenders",
    "torch-rechub",
    "deepctr-torch",
    "implicit",
    "faiss-cpu",
]


def facts() -> dict[str, object]:
    """Processor, cores, memory and system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(pages / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The versions of what takes part, as far as it is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Load:
    """How many cores were busy with other things than this process's children since."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.monotonic(), _busy(), _own()

    def others(self) -> float:
        """Cores busy elsewhere, on average; 0 where the system does not tell."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        return max(0.0, (_busy() - self.busy - (_own() - self.own)) / elapsed)


def _busy() -> float:
    """Seconds all cores have worked since the system started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [int(x) for x in stat.read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def _own() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
