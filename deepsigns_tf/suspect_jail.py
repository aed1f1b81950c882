"""Limits for a process, taken on before it becomes another program; started as a script, with a plan in JSON.

It needs the standard library alone. The program that takes its place starts without the rights that namespaces of its own gave it here.
"""

import ctypes
import json
import os
import resource
import sys

_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x40000000
_RECURSIVE_PRIVATE = 0x4000 | 0x40000
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVILEGES = 38
# In a command line, stands for what the kernel refused.
REFUSALS = "{refusals}"


def leave_the_network() -> str:
    """Moves this process into a network of its own, without any device that is up, and among mounts of its own.

    Returns:
        Empty, or why the kernel refuses.

    Example:

    >>> callable(leave_the_network)
    True

    Source: `man 7 network_namespaces`, `man 7 user_namespaces`.
    """
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return "this system has no network namespaces"
    # A user namespace first: it needs no rights. Where there are none, whoever has the rights needs none of them.
    for flags in (_NEW_USER | _NEW_MOUNTS | _NEW_NETWORK, _NEW_MOUNTS | _NEW_NETWORK):
        if unshare(flags) == 0:
            return ""
    return os.strerror(ctypes.get_errno())


def freeze_files() -> str:
    """Makes every file system read-only to this process, once it has mounts of its own.

    Returns:
        Empty, or why the kernel refuses.

    Example:

    >>> callable(freeze_files)
    True

    Source: `man 2 mount_setattr`.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
        # Else the mounts of everybody else would follow.
        private = libc.mount(b"none", b"/", None, ctypes.c_ulong(_RECURSIVE_PRIVATE), None)
        frozen = private or libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(_HERE),
            ctypes.c_char_p(b"/"),
            ctypes.c_uint(_RECURSIVE),
            attributes,
            ctypes.c_size_t(32),
        )
    except (OSError, AttributeError):
        return "this system cannot"
    return os.strerror(ctypes.get_errno()) if frozen else ""


def take_limits(cpu_s: int, num_files: int, num_processes: int) -> None:
    """Lowers this process's limits for good: no file grows, no core is dumped, no right is gained.

    Args:
        cpu_s: Seconds of processor time.
        num_files: Open files.
        num_processes: Processes and threads of the user; in a namespace of its own they count from there.
    """
    for name, most in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", num_files),
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_NPROC", num_processes),
    ):
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lower, lower))
    try:
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    except (OSError, AttributeError):
        return


def main(plan: str) -> None:
    """Does what the parent planned, and becomes the program.

    Args:
        plan: JSON with the limits, and the program's command line, where `REFUSALS` is replaced.
    """
    planned = json.loads(plan)
    network = leave_the_network()
    # Whoever has the mounts of all others must not freeze them.
    refusals = {"network": network, "files": freeze_files() if not network else "it needs mounts of its own"}
    # Outside a namespace all processes of the user would count.
    take_limits(planned["cpu_s"], planned["num_files"], planned["num_processes"] if not network else 1 << 30)
    command = [json.dumps(refusals) if argument == REFUSALS else argument for argument in planned["command"]]
    os.execve(command[0], command, dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1])
