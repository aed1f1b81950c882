"""The class means that a verdict went by, in a file for a second verifier."""

import io
import json
import os
from collections.abc import Mapping

import numpy as np

from deepsigns_tf.candidates import Candidates
from deepsigns_tf.files import write_atomically


def write_dump(path: str | os.PathLike[str], candidates: Mapping[str, Candidates]) -> None:
    """Writes what `candidate_means` gave, as docs/evidence-format.md specifies.

    Args:
        path: An `.npz` file; its mode is 0600, for it shows how a model answers the key inputs.
        candidates: Carrier -> its candidates.
    """
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, list[dict[str, object]]] = {"carriers": [], "means": []}
    for carrier, found in candidates.items():
        header["carriers"].append({"carrier": carrier, "num_admissible": found.num_admissible})
        for place, means in found.means.items():
            header["means"].append(
                {"array": str(len(arrays)), "call": place.call, "carrier": carrier, "path": place.path}
            )
            arrays[str(len(arrays))] = means
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    payload = io.BytesIO()
    np.savez_compressed(payload, **arrays)  # type: ignore[arg-type]
    write_atomically(path, payload.getvalue(), mode=0o600)
