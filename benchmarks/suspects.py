"""Files of somebody else's: whether hostile ones are refused and honest ones opened, in what time and memory.

    python -m benchmarks.suspects         # results/suspects.json

The files are those of `tests/malicious_files.py` and `tests/honest_models.py`. The time of a whole verification is that of a file of the
README's wide ResNet, beside the same in this process, where the framework runs and the model is loaded: one pass over the key inputs. Its
weights are random and nothing is marked: that takes as long.
"""

import dataclasses
import pathlib
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from scripts.configs import command_line, option, run_program

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Config:
    """Where to write."""

    results_dir: str = option("results", "Folder for the result.", shapes_result=False)


def run(config: Config) -> dict[str, Any]:
    """Opens all files, and verifies one.

    Args:
        config: Where to write.

    Returns:
        What `results/suspects.json` holds.
    """
    import keras

    from models.wide_resnet import wide_resnet
    from scripts.records import circumstances, result_file, write_json
    from tests.honest_models import HONEST
    from tests.malicious_files import MALICIOUS, Canary

    path = result_file(config.results_dir, "suspects")
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
        keras.utils.clear_session()
        verification = _verified(wide_resnet(16, 2), folder / "wide_resnet.keras")
        print(verification)
    result = {
        **circumstances(command_line("benchmarks.suspects", config)),
        "data": f"{len(MALICIOUS)} malicious files, {len(HONEST) + 1} honest ones; 640 key inputs of 32 x 32 pixels for the verification",
        "rows": rows,
        "verification": verification,
    }
    write_json(path, result)
    return result


def _verified(model: Any, file: pathlib.Path) -> dict[str, float]:
    """Seconds of a whole verification, and of one pass over the key inputs where all has started."""
    import deepsigns_tf as ds
    from deepsigns_tf.carriers import CarrierLayer
    from models.wide_resnet import FEATURES

    model.save(file)
    images = np.random.default_rng(0).integers(0, 256, (640, 32, 32, 3)).astype(np.uint8)
    key = ds.OwnerKey.generate("benchmark", [ds.Carrier(FEATURES, range(10), 64)])
    key = key.with_key_inputs(images, np.arange(640) % 10)
    key = key.with_layers([CarrierLayer(FEATURES, FEATURES, model.get_layer(FEATURES).output.shape[-1])])

    def isolated() -> ds.Verdict:
        with ds.load_suspect(file) as suspect:
            return ds.verify(suspect, key)

    # Once before: the framework compiles what it runs.
    expected = ds.verify(model, key)
    one_pass_s, _ = _timed(lambda: ds.verify(model, key))
    isolated_s, found = _timed(isolated)
    if (found.num_bits, found.num_assignments) != (expected.num_bits, expected.num_assignments):
        raise ValueError(
            f"The file was read otherwise than the model. Expected {expected.num_bits} bits and {expected.num_assignments} assignments. "
            f"Received: {found.num_bits} and {found.num_assignments}"
        )
    return {"isolated_s": isolated_s, "one_pass_s": one_pass_s}


def _timed(verify: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    verdict = verify()
    return time.monotonic() - began, verdict


def _opened(file: pathlib.Path) -> dict[str, Any]:
    from deepsigns_tf.suspects import load_suspect

    began = time.monotonic()
    try:
        with load_suspect(file) as suspect:
            told = {"opened": True, "isolation": suspect.isolation, "peak_memory_gib": suspect.peak_memory_bytes / _GIB}
    except ValueError as error:
        # The largest of all processes so far that ended; the kernel keeps no other account of them.
        largest = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        # Temporary folders are no result.
        reason = str(error).replace(tempfile.gettempdir(), "TEMPORARY")
        told = {"opened": False, "reason": reason, "peak_memory_gib": largest / _GIB}
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


if __name__ == "__main__":
    run_program(Config, run)
