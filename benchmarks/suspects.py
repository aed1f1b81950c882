"""Files of somebody else's: whether hostile ones are refused and honest ones opened, in what time and memory.

    python -m benchmarks.suspects         # after the study "default" of benchmarks.wrn; results/suspects.json

The files are those of `tests/malicious_files.py` and `tests/honest_models.py`. The time of a whole verification is that of the recorded
wide ResNet's file, beside the same in this process, where the framework runs and the model is loaded: one pass over the key inputs.
"""

import dataclasses
import pathlib
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

from scripts.configs import command_line, option, run_program

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Config:
    """What is opened beside the files of the tests."""

    run_dir: str = option(
        "runs/wrn/default/0_0", "Folder of a finished run, whose file is verified.", shapes_result=False
    )
    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Opens all files, and verifies one.

    Args:
        config: Which one.

    Returns:
        What `results/suspects.json` holds.
    """
    import keras

    import deepsigns_tf as ds
    from models.wide_resnet import wide_resnet
    from scripts.records import circumstances, result_file, write_json
    from tests.honest_models import HONEST
    from tests.malicious_files import MALICIOUS, Canary

    path = result_file(config.results_dir, "suspects")
    run_dir = pathlib.Path(config.run_dir)
    owner_key = ds.OwnerKey.load(run_dir / "owner.key")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = pathlib.Path(name)
        canary = Canary(folder / "canary", listener.getsockname()[1])
        listener.settimeout(0.05)
        for number, (title, attack) in enumerate(MALICIOUS.items()):
            part = folder / str(number)
            part.mkdir()
            file = attack.build(part, canary)
            _acted(canary.path, listener)
            row = _opened(file)
            rows.append({"file": title, "kind": "malicious", **row, "acted": _acted(canary.path, listener)})
            print(rows[-1], flush=True)
        for title, build in {**HONEST, "WRN-28-10": lambda: wide_resnet(28, 10)}.items():
            keras.utils.clear_session()
            file = folder / "honest.keras"
            build().save(file)
            rows.append({"file": title, "kind": "honest", **_opened(file)})
            print(rows[-1], flush=True)
    model = keras.models.load_model(run_dir / "marked.keras")
    ds.verify(model, owner_key)
    local = _seconds(lambda: ds.verify(model, owner_key).marked)

    def isolated() -> bool:
        with ds.load_suspect(run_dir / "marked.keras") as suspect:
            return ds.verify(suspect, owner_key).marked

    result = {
        **circumstances(command_line("benchmarks.suspects", config)),
        "data": f"{len(MALICIOUS)} malicious files, {len(HONEST) + 1} honest ones",
        "rows": rows,
        "verification": {"isolated_s": _seconds(isolated), "one_pass_s": local},
    }
    write_json(path, result)
    print(result["verification"])
    return result


def _opened(file: pathlib.Path) -> dict[str, Any]:
    from deepsigns_tf.suspects import load_suspect

    began = time.monotonic()
    try:
        with load_suspect(file) as suspect:
            told = {"opened": True, "isolation": suspect.isolation, "peak_memory_gib": suspect.peak_memory_bytes / _GIB}
    except ValueError as error:
        # The largest of all processes so far that ended; the kernel keeps no other account of them.
        largest = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        told = {"opened": False, "reason": str(error), "peak_memory_gib": largest / _GIB}
    return {**told, "seconds": time.monotonic() - began}


def _acted(canary: pathlib.Path, listener: socket.socket) -> bool:
    """Whether the file or the port was touched since the last time."""
    touched = canary.exists()
    canary.unlink(missing_ok=True)
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return touched
    return True


def _seconds(verify: Callable[[], bool]) -> float:
    began = time.monotonic()
    if not verify():
        raise ValueError(
            "This run's mark is not there. Expected the folder of a marked model. Received: a verdict that is not marked"
        )
    return time.monotonic() - began


if __name__ == "__main__":
    run_program(Config, run)
