"""Limits for a process, taken on before it becomes another program; started as a script, with a plan in JSON.

It needs the standard library alone. The program that takes its place starts without the rights that a namespace of its own gave it here.
"""

import ctypes
import json
import os
import resource
import sys

_NEW_USER, _NEW_NETWORK, _NO_NEW_PRIVILEGES = 0x10000000, 0x40000000, 38
# In a command line, stands for why the kernel refused.
ISOLATION = "{isolation}"


def leave_the_network() -> str:
    """Moves this process into a network of its own, without any device that is up.

    Returns:
        Empty, or why the kernel refuses.

    Example:

    >>> callable(leave_the_network)
    True

    Source: `man 7 network_namespaces`, `man 7 user_namespaces`.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        unshare = libc.unshare
    except (OSError, AttributeError):
        return "this system has no network namespaces"
    # A user namespace first: it needs no rights. Where there are none, whoever has the rights needs none of them.
    for flags in (_NEW_USER | _NEW_NETWORK, _NEW_NETWORK):
        if unshare(flags) == 0:
            return ""
    return os.strerror(ctypes.get_errno())


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
        plan: JSON with the limits, and the program's command line, where `ISOLATION` is replaced.
    """
    planned = json.loads(plan)
    refusal = leave_the_network()
    # Outside a namespace all processes of the user would count.
    take_limits(planned["cpu_s"], planned["num_files"], planned["num_processes"] if not refusal else 1 << 30)
    command = [refusal if argument == ISOLATION else argument for argument in planned["command"]]
    os.execve(command[0], command, dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1])
