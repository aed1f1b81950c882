"""The two losses of DeepSigns as pure functions of tensors; float32 scalars whatever the inputs' precision.

Source: Rouhani, Chen, Koushanfar, "DeepSigns", ASPLOS 2019, section 3.1.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any


def signature_loss(logits: Tensor, signs: Tensor, present: Tensor) -> Tensor:
    r"""Binary cross-entropy between the projected class means and the signature, from logits.

    \( L = \frac{1}{s} \sum_k p_k \frac{1}{N} \sum_j \ln(1 + e^{-\sigma_{kj} z_{kj}}) \), where \( z = \mu A \) are the
    logits, \( \sigma = 2b - 1 \) the bits as signs and \( p_k \) tells whether class k is present. On probabilities the
    gradient of a wrong bit vanishes in saturation; on logits it stays 1 (in units of \( 1 / sN \)).

    Args:
        logits: `(s, N)` projected activation means.
        signs: `(s, N)` bits as -1 and +1.
        present: `(s,)` 1 for classes that have a mean, 0 for those that contribute nothing.

    Returns:
        Scalar float32, >= 0.

    Raises:
        ValueError: If the shapes do not fit.

    Example:

    >>> import numpy as np
    >>> round(float(signature_loss(np.zeros((2, 3)), np.ones((2, 3)), np.ones(2))), 4)  # ln 2
    0.6931

    Source: DeepSigns, loss_2, with the mean in place of the sum: lambda_2 there is strength / (s N) here.
    """
    logits, signs, present = (ops.cast(tensor, "float32") for tensor in (logits, signs, present))
    if len(logits.shape) != 2 or tuple(logits.shape) != tuple(signs.shape) or tuple(present.shape) != (signs.shape[0],):
        raise ValueError(
            "The arguments of `signature_loss` do not fit together. Expected logits (s, N), signs (s, N), present (s,). "
            f"Received: logits {tuple(logits.shape)}, signs {tuple(signs.shape)}, present {tuple(present.shape)}"
        )
    per_class = ops.mean(ops.softplus(-signs * logits), axis=1)
    return ops.mean(present * per_class)


def clustering_loss(
    activations: Tensor,
    membership: Tensor,
    centres: Tensor,
    separation: float = 1.0,
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensor:
    r"""Draws activations to the centre of their class and keeps the centres apart.

    \( L = \frac{1}{n} \sum_i \|\mu_{y_i} - f(x_i)\|^2 + \frac{1}{s(s-1)} \sum_{k \ne l} \max(0, \delta - \|\mu_k - \mu_l\|^2) \).
    The repulsion of the paper, \( -\|\mu_k - \mu_l\|^2 \), has no lower bound; the hinge ends it at distance
    \( \sqrt\delta \).

    Args:
        activations: `(batch, M)` pooled activations.
        membership: `(s, batch)` one-hot carrier classes, zero columns where a label is ignored.
        centres: `(s, M)` centres.
        separation: \( \delta \), the squared distance at which the repulsion ends, >= 0.
        all_reduce: Sums a tensor over replicas, where there are several.

    Returns:
        Scalar float32, >= 0.

    Example:

    >>> import numpy as np
    >>> float(clustering_loss(np.array([[3.0, 4.0]]), np.array([[1.0]]), np.zeros((1, 2))))
    25.0

    Source: DeepSigns, loss_1.
    """
    activations, membership, centres = (ops.cast(tensor, "float32") for tensor in (activations, membership, centres))
    labelled = ops.sum(membership, axis=0)
    own_centres = ops.matmul(ops.transpose(membership), centres)
    squares = ops.sum(ops.square(labelled[:, None] * activations - own_centres))
    attraction = all_reduce(squares) / ops.maximum(all_reduce(ops.sum(labelled)), 1.0)
    num_classes = int(centres.shape[0])
    if num_classes == 1:
        return attraction
    norms = ops.sum(ops.square(centres), axis=1)
    distances = norms[:, None] + norms[None, :] - 2.0 * ops.matmul(centres, ops.transpose(centres))
    others = 1.0 - ops.eye(num_classes)
    repulsion = ops.sum(others * ops.relu(separation - distances)) / (num_classes * (num_classes - 1))
    return attraction + repulsion
