"""Limits for a process, taken on before it becomes another program; started as a script, with a plan in JSON.

It needs the standard library alone. The program that takes its place starts without the rights that namespaces of its own gave it here.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x40000000
_RECURSIVE_PRIVATE = 0x4000 | 0x40000
_MOUNT_SETATTR, _HERE, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_DIE_WITH_PARENT, _DROP_FROM_BOUNDING, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_ALL = 1, 24, 38, 47, 4
# Version 3: two words each of what is effective, permitted and inheritable.
_CAPABILITIES_VERSION, _MAX_CAPABILITIES = 0x20080522, 64
# In a command line, stands for what the kernel refused.
REFUSALS = "{refusals}"


def take_namespaces() -> dict[str, str]:
    """Moves this process into a network of its own, without any device that is up, among mounts of its own and under a user of its own.

    Returns:
        `"user"`, `"network"`: empty, or why the kernel refuses.

    Example:

    >>> callable(take_namespaces)
    True

    Source: `man 7 network_namespaces`, `man 7 user_namespaces`.
    """
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return dict.fromkeys(("user", "network"), "this system has no namespaces")

    def refused(flags: int) -> str:
        return os.strerror(ctypes.get_errno()) if unshare(flags) else ""

    # A user namespace first: it needs no rights. Where there are none, whoever has the rights can do without.
    user = refused(_NEW_USER | _NEW_MOUNTS | _NEW_NETWORK)
    return {"user": user, "network": user and refused(_NEW_MOUNTS | _NEW_NETWORK)}


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
    """Lowers this process's limits for good: no file grows, no core is dumped.

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


def give_up_rights() -> str:
    """Drops all capabilities, and the means to gain any, by a program's owner for instance. To be done last.

    Returns:
        Empty, or what is left, in the kernel's words.

    Example:

    >>> callable(give_up_rights)
    True

    Source: `man 7 capabilities`, `man 2 prctl`.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(_AMBIENT, _CLEAR_ALL, 0, 0, 0)
        # Of what may ever be gained; needs a right itself. Where that is missing, the others suffice.
        for capability in range(_MAX_CAPABILITIES):
            libc.prctl(_DROP_FROM_BOUNDING, capability, 0, 0, 0)
        libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())
        with open("/proc/self/status", encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
    except (OSError, AttributeError):
        return "this system cannot"
    left = [
        f"{name} {status[name].strip()}" for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[name], 16)
    ]
    return ", ".join(left if status["NoNewPrivs"].strip() == "1" else [*left, "NoNewPrivs 0"])


def end_with(parent: int) -> None:
    """Lets the kernel end this process as soon as its parent has ended, however that was.

    Args:
        parent: The parent's process id.
    """
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    # It may have ended before.
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def main(plan: str) -> None:
    """Does what the parent planned, and becomes the program.

    Args:
        plan: JSON with the limits, the parent's process id, and the program's command line, where `REFUSALS` is replaced.
    """
    planned = json.loads(plan)
    refusals = take_namespaces()
    # Whoever has the mounts of all others must not freeze them.
    refusals["files"] = "it needs mounts of its own" if refusals["network"] else freeze_files()
    # Outside a namespace all processes of the user would count.
    take_limits(planned["cpu_s"], planned["num_files"], 1 << 30 if refusals["user"] else planned["num_processes"])
    refusals["rights"] = give_up_rights()
    # After all that changes rights, which would undo it.
    end_with(planned["parent"])
    command = [json.dumps(refusals) if argument == REFUSALS else argument for argument in planned["command"]]
    os.execve(command[0], command, dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1])
