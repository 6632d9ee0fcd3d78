"""Unique names of processes, made of host, process id and start time; and the cores and memory that a process may use.

A host is a host name with the namespace of process ids, because containers may share the former but not the latter.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return how many cores this process may use, at least 1: by its affinity, and by the quotas of control groups.

    Arguments as for :func:`memory`.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [each / "cpu.max" for each in _control_groups(groups, own)]
    for files in (*((quota,) for quota in quotas), (groups / "cpu/cpu.cfs_quota_us", groups / "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            quota, period = (int(word) for file in files for word in file.read_text(encoding="ascii").split())
            found = min(found, quota // period) if quota > 0 else found
    return max(found, 1)


def memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return the bytes of memory that this process may use: the machine's, or less if a control group limits them.

    Args:
        groups: folder of the control groups, of either version.
        own: file that names the process's own group.
    """
    limits = [groups / "memory/memory.limit_in_bytes", *(each / "memory.max" for each in _control_groups(groups, own))]
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            found = min(found, int(limit.read_text(encoding="ascii")))
    return found


def _control_groups(groups: Path, own: Path) -> list[Path]:
    """Return the folders of this process's control group (version 2) and of those around it; none outside Linux."""
    try:
        group = groups / own.read_text(encoding="utf-8").rpartition("::/")[2].strip()
    except OSError:
        return []
    return [group, *group.parents]


def me() -> str:
    """Return ``host:pid:start``, a name of this process that is never given to another."""
    return f"{_host()}:{os.getpid()}:{_started(os.getpid())}"


def host_of(name: str) -> str:
    """Return the host name in the name of a process."""
    return name.split(":", 1)[0].split("+", 1)[0]


def alive(name: str) -> bool:
    """Return whether a process named by :func:`me` may still run; True for processes of other hosts."""
    try:
        host, pid, started = name.rsplit(":", 2)
        number = int(pid)
    except ValueError:
        return True
    if host != _host():
        return True
    return _started(number) == started


def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname()
    return f"{socket.gethostname()}+{''.join(filter(str.isdigit, namespace))}"


def _started(pid: int) -> str:
    """Return a process's start time in the kernel's units, "" if there is no such process, "unknown" without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
        with contextlib.suppress(PermissionError):  # as on macOS; it exists, but belongs to another user
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, OverflowError):
                return ""
        return "unknown"
    state, *rest = stat.rsplit(")", 1)[1].split()
    return "" if state in "ZX" else rest[18]
