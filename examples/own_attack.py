"""An attack of a reviewer's own, run beside the suite's:

python -m scripts.attack --extra=examples.own_attack --only=sparse --model=... --owner_key=... --output_dir=...
"""

import numpy as np

from deepsigns_tf.attacks.thief import Attack
from deepsigns_tf.perturbations import with_weights


def keep_largest_inputs(model, fraction):
    """Keeps the largest weights of each unit alone, as a sparse accelerator wants them."""

    def sparse(weights):
        if weights.ndim < 2:
            return weights
        least = np.quantile(np.abs(weights), 1 - fraction, axis=tuple(range(weights.ndim - 1)))
        return np.where(np.abs(weights) >= least, weights, 0)

    return with_weights(model, [sparse(each) for each in model.get_weights()])


ATTACKS = (
    Attack("sparse, half of each unit", "modification", lambda model, thief: keep_largest_inputs(model, 0.5)),
    Attack("sparse, a tenth of each unit", "modification", lambda model, thief: keep_largest_inputs(model, 0.1)),
)
