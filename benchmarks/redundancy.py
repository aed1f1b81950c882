"""A short payload written many times over: how much of it an attack leaves, and what that proves by itself.

The key's bits are taken for a repetition code under a secret mask: payload bit i stands at places i, i + k, i + 2k, ... of the bits
of all carriers one after the other, an odd number of times, each time added to a bit of the mask. Payload and mask are uniform and follow
from the key's bits alone, so marking needs to know nothing of the code. A payload bit is decoded rightly if more than half of its
copies match. For a suspect that is independent of the key each of these is a fair coin, independent of the others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsigns_tf.readings import SignatureReading
from deepsigns_tf.statistics import binomial_log10_tail, corrected_log10_p


def decoded(readings: Sequence[SignatureReading], num_payload_bits: int, num_assignments: int = 1) -> dict[str, Any]:
    """Decodes a payload by majority.

    Args:
        readings: One of each carrier, as in `Verdict.readings`.
        num_payload_bits: k, at most as many as there are bits.
        num_assignments: Ways to read the suspect, which p is multiplied by, as in `Verdict`.

    Returns:
        JSON-ready values: `num_bits` of the payload, `num_copies` of each bit, `num_matches` of the decoded bits, and `log10_p_value` of
        these alone, exact but for the correction.

    Raises:
        ValueError: If there are fewer bits than that.

    Source: MacKay, "Information theory, inference, and learning algorithms", 2003, section 1.2 (repetition codes).
    """
    # By name, since the verdict has them in the order of the suspect's layers.
    matches = np.concatenate([each.matches.ravel() for each in sorted(readings, key=lambda each: each.carrier)])
    num_copies = matches.size // num_payload_bits if num_payload_bits > 0 else 0
    if not num_copies:
        raise ValueError(
            f"This payload has no room. Expected 1 to {matches.size} bits. Received: num_payload_bits={num_payload_bits!r}"
        )
    # An even number of copies could be split evenly.
    num_copies -= 1 - num_copies % 2
    votes = matches[: num_copies * num_payload_bits].reshape(num_copies, num_payload_bits).sum(axis=0)
    num_matches = int((2 * votes > num_copies).sum())
    return {
        "num_bits": num_payload_bits,
        "num_copies": num_copies,
        "num_matches": num_matches,
        "log10_p_value": corrected_log10_p(binomial_log10_tail(num_matches, num_payload_bits), num_assignments),
    }
