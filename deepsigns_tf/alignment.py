"""A suspect's units matched with a reference's, by what both do with the same inputs and never with the key.

Whoever permutes, rescales, splits or adds units keeps what a layer computes and hides which unit is which. Their responses to public
inputs tell. What may be concluded from a reading after that depends on the reference: one that carries the mark lends it to any
suspect that is matched with it.
"""

import dataclasses

import numpy as np
import scipy.linalg
import scipy.optimize

# A unit whose responses vary by less than this share of their size says nothing.
_DEAD = 1e-6
# Of responses of length 1, what varies less than this in all units together is rounding as much as it is them. With three times as
# much or a third the same 99 % of an MLP's units were found, and 38 or 52 % of those of an LSTM's last layer, in place of 50 %.
_SMALL = 0.03


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """Which of a suspect's units stand for which of a reference's.

    Args:
        sources: `(M,)` the suspect's unit for each of the reference's; -1 where none is left.
        scales: `(M,)` factors that bring the suspect's units to the reference's size; negative where a unit moves the other way.
        correlations: `(M,)` between the responses of matched units, as they were compared and whichever way they move, in [0, 1]; 0 where
            there is none, NaN where the reference's unit never moves and any would do.
    """

    sources: np.ndarray
    scales: np.ndarray
    correlations: np.ndarray

    @property
    def quality(self) -> float:
        """Mean correlation over the reference's units that move, in [0, 1]: 1 for a copy, less for an unrelated model."""
        return float(np.nanmean(self.correlations))

    @property
    def unscaled(self) -> "Alignment":
        """The same match, with the suspect's own sizes: all factors are 1 or -1."""
        return dataclasses.replace(self, scales=np.sign(self.scales))

    def evened(self, suspect: np.ndarray) -> "Alignment":
        """The same match, with all units brought to one spread: a size, which a thief may choose, then says nothing.

        Args:
            suspect: `(n, M')` responses of the suspect, as they were matched.

        Example:

        >>> responses = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> align(responses, responses).evened(responses * [1.0, 5.0]).scales.tolist()
        [2.0, 0.4]
        """
        spread = np.asarray(suspect, np.float64).std(axis=0)[self.sources]
        there = (self.sources >= 0) & (spread > 0)
        return dataclasses.replace(self, scales=np.sign(self.scales) / np.where(there, spread, 1.0))

    def applied(self, features: np.ndarray) -> np.ndarray:
        """The suspect's features in the reference's order and size.

        Args:
            features: `(n, M')` of the suspect.

        Returns:
            `(n, M)`, with zeros where no unit is left.

        Example:

        >>> alignment = Alignment(np.array([1, -1]), np.array([0.5, 1.0]), np.array([1.0, 0.0]))
        >>> alignment.applied(np.array([[1.0, 4.0]])).tolist()
        [[2.0, 0.0]]
        """
        found = np.where(self.sources >= 0, features[:, self.sources], 0.0)
        return np.asarray(self.scales * found)


def align(reference: np.ndarray, suspect: np.ndarray, *, decorrelated: bool = False) -> Alignment:
    r"""Matches units one to one, so that the sum of the correlations between their responses is largest.

    Units that never move are left out. Of a unit that was split or cloned any copy will do: they respond alike, up to a factor. One
    whose function is odd (a linear or tanh unit, an LSTM's) may move the other way: only the size of a correlation counts. The factor
    of a pair is the one with the least squared error, \( \langle r, f \rangle / \langle f, f \rangle \).

    Args:
        reference: `(n, M)` features of a layer, for n public inputs, more of them than units for a good match.
        suspect: `(n, M')` features of the suspect's layer, for the same inputs.
        decorrelated: Whether to compare what each unit does and the others of its layer do not. A layer's units mostly do the same, which
            training goes on to change: without this a later network's units are mistaken for one another. What all do is left out of the
            correlations then, so that these are smaller.

    Returns:
        The alignment.

    Raises:
        ValueError: If the arrays do not belong together, hold fewer than two inputs, or numbers that are not finite.

    Example:

    >>> reference = np.random.default_rng(0).random((50, 4))
    >>> alignment = align(reference, 2 * reference[:, [2, 0, 3, 1]])
    >>> alignment.sources.tolist(), alignment.scales.round(6).tolist(), round(alignment.quality, 6)
    ([1, 3, 0, 2], [0.5, 0.5, 0.5, 0.5], 1.0)

    Source: Li et al., "Convergent learning: do different neural networks learn the same representations?", ICLR 2016 (one-to-one matching
    by correlation); Kuhn, "The Hungarian method", 1955; Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", The American
    Statistician 72, 2018 (ZCA-cor: the uncorrelated variables that are nearest to the given ones).
    """
    reference, suspect = (np.asarray(each, np.float64) for each in (reference, suspect))
    shapes = reference.shape, suspect.shape
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0] or shapes[0][0] < 2:
        raise ValueError(
            "These features cannot be matched. Expected arrays (n, M) and (n, M') of at least two inputs, the same for both. "
            f"Received: shapes {shapes[0]} and {shapes[1]}"
        )
    if not (np.isfinite(reference).all() and np.isfinite(suspect).all()):
        raise ValueError(
            "These features cannot be matched. Expected finite numbers. "
            f"Received: {np.count_nonzero(~np.isfinite(reference)) + np.count_nonzero(~np.isfinite(suspect))} others"
        )
    profiles, moves = _profiles(reference)
    candidates, alive = _profiles(suspect)
    if decorrelated:
        profiles, candidates = decorrelate(profiles), decorrelate(candidates)
    correlations = np.full(reference.shape[1], np.nan)
    correlations[moves] = 0.0
    sources, scales = np.full(reference.shape[1], -1), np.ones(reference.shape[1])
    rows, columns = np.flatnonzero(moves), np.flatnonzero(alive)
    if rows.size and columns.size:
        similarity = profiles[:, rows].T @ candidates[:, columns]
        matched, chosen = scipy.optimize.linear_sum_assignment(np.abs(similarity), maximize=True)
        sources[rows[matched]] = columns[chosen]
        correlations[rows[matched]] = np.abs(similarity[matched, chosen])
        scales[rows[matched]] = np.where(similarity[matched, chosen] < 0, -1.0, 1.0)
    for unit in np.flatnonzero(sources >= 0):
        response = suspect[:, sources[unit]]
        factor = reference[:, unit] @ response / (response @ response)
        # A match that is none has no size either.
        scales[unit] = factor if factor * scales[unit] > 0 else scales[unit]
    return Alignment(sources, scales, correlations)


def _profiles(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of mean 0 and length 1, and which of them move. Each by its own size: a huge one must not hide the others."""
    centred = features - features.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    moves = lengths > _DEAD * np.linalg.norm(features, axis=0)
    return centred / np.where(moves, lengths, 1.0), moves


def decorrelate(profiles: np.ndarray) -> np.ndarray:
    """What each unit does and the others of its layer do not: the uncorrelated columns that are nearest to the given ones.

    Args:
        profiles: `(n, M)` responses, each column of mean 0 and length 1, or 0 for a unit that never moves.

    Returns:
        `(n, M)`, columns of length 1; those of 0 stay. Directions in which all units together vary little are left as they are.

    Example:

    >>> profiles = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 3)))[0]
    >>> mixed = profiles @ [[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]]
    >>> found = decorrelate(mixed)
    >>> bool(abs(mixed[:, 0] @ mixed[:, 1]) > 0.5), bool(abs(found[:, 0] @ found[:, 1]) < 0.05)
    (True, True)

    Source: as `align`.
    """
    wide = profiles.shape[1] > profiles.shape[0]
    squares, vectors = scipy.linalg.eigh(profiles @ profiles.T if wide else profiles.T @ profiles)
    root = (vectors / (np.sqrt(np.maximum(squares, 0.0)) + _SMALL)) @ vectors.T
    found = root @ profiles if wide else profiles @ root
    lengths = np.linalg.norm(found, axis=0)
    # A unit that never moves stays one.
    return np.asarray(found / np.where(lengths > 0, lengths, 1.0))
