"""What a recorded result says about how it came about."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

import deepsigns_tf as ds
from deepsigns_tf.files import write_atomically

_ROOT = pathlib.Path(__file__).parents[1]


def circumstances(command: str) -> dict[str, Any]:
    """Command, date, hardware and versions, the first entries of every recorded result.

    Args:
        command: What a reader types to get the result again.

    Returns:
        JSON-ready values.
    """
    return {
        "command": command,
        "date": today(),
        "hardware": ", ".join([f"{os.cpu_count()} cores", _processor(), *accelerators()]),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "backend": f"{keras.backend.backend()} {_backend_version()}",
            "numpy": np.__version__,
            "deepsigns_tf": f"{ds.__version__}{_commit()}",
        },
    }


def circumstances_of_rows(command: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same for a result that was put together from rows: days, machines and versions of their measurement, not of this moment.

    Args:
        command: What a reader types to get the result again.
        rows: At least one, each with the entries `date`, `hardware` and `versions` of its own.

    Returns:
        JSON-ready values.
    """
    names = dict.fromkeys(name for row in rows for name in row["versions"])
    days = [row["date"] for row in rows]
    return {
        "command": command,
        "date": " to ".join(sorted({min(days), max(days)})),
        "hardware": _all_of([row["hardware"] for row in rows]),
        "versions": {
            name: _all_of([row["versions"][name] for row in rows if name in row["versions"]]) for name in names
        },
    }


def _all_of(values: Sequence[str]) -> str:
    return " and ".join(sorted(set(values)))


def today() -> str:
    """The day, as a record states it."""
    return datetime.date.today().isoformat()


def result_file(results_dir: str, name: str) -> pathlib.Path:
    """Where a measurement's result goes; its folder is made now, not after hours.

    Args:
        results_dir: The folder.
        name: Of the result.
    """
    path = pathlib.Path(results_dir) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a result as a whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")


def accelerators() -> list[str]:
    """What the backend computes on beside the processor, by the names that the makers give, each kind once."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        names = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    elif backend == "torch":
        import torch

        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    else:
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in found]
    return list(dict.fromkeys(names))


def _commit() -> str:
    """Which state of the sources this is, where they are under git: `, commit 0123456789ab`, and `-dirty` if they were changed since."""
    # A copy within some other repository is not that one's state.
    repository = [f"--git-dir={_ROOT / '.git'}", f"--work-tree={_ROOT}"]
    command = ["git", *repository, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        described = subprocess.run(command, capture_output=True, check=True, text=True)
        return f", commit {described.stdout.strip()}"
    return ""


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _backend_version() -> str:
    return str(__import__(keras.backend.backend()).__version__)
