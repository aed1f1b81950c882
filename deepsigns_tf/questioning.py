"""Questions to a model that can only be asked: which, in what order, and what was answered so far.

The triggers come in the key's order, decoys at places that follow from the owner's seed hide which answers are wanted. Every answer
is kept in a file, so that an interrupted questioning goes on, and the test is one that may be looked at after every answer: it
does not matter when, or why, the questions end.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from deepsigns_tf.activations import Inputs
from deepsigns_tf.arguments import check_number_of
from deepsigns_tf.commitments import Evidence
from deepsigns_tf.derivation import derive_permutations
from deepsigns_tf.examples import as_inputs
from deepsigns_tf.files import write_atomically
from deepsigns_tf.owner_key import SCHEME_VERSION, OwnerKey
from deepsigns_tf.trigger_verification import (
    NO_ANSWER,
    PredictionKind,
    TriggerVerdict,
    answers_to,
    sequential_verdict,
)
from deepsigns_tf.verification import grounds_of

_FORMAT_VERSION = 1
# Among decoys, questions end after a multiple of so many: the last one tells nothing.
_BLOCK = 16


class Questioning:
    """Asks a model for the triggers of a key, hidden among decoys, and keeps what it answers.

    Args:
        owner_key: The claimant's key, with triggers whose labels are uniform.
        answers_file: Where to keep the answers, readable by the owner alone: it shows which questions are triggers. An existing file of the
            same questioning is gone on with, or begun anew if all was refused so far. None: keep them in memory.
        suspect: Who is asked, in words that tell this model from any other; needed with a file, which keeps it.
        decoys: Inputs of the same shape and type to hide the triggers among, task inputs for instance; none by default.
        commitment: The commitment that the claimant published before training, as in `verify`.
        evidence: The owner's signed statements, as in `verify`.

    Raises:
        ValueError: If the key has no triggers, or shuffled ones, the decoys do not fit, commitment or evidence are not this key's, or the
            file holds the answers of another questioning, or of another suspect.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 100, num_classes=10, examples=np.random.rand(50, 8))
    >>> questioning = Questioning(key, decoys=np.random.rand(50, 8))
    >>> verdict = questioning.run(lambda inputs: np.zeros(len(inputs), int), batch_size=10, max_queries=30)
    >>> questioning.num_queries, verdict.decided
    (30, False)
    """

    def __init__(
        self,
        owner_key: OwnerKey,
        answers_file: str | os.PathLike[str] | None = None,
        suspect: str = "",
        decoys: Inputs | None = None,
        commitment: str | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        self._owner_key = owner_key
        self._triggers = owner_key.derived_triggers
        if answers_file is not None and not suspect:
            raise ValueError(
                "Nobody could tell whose answers these are. Expected `suspect=` with a file that keeps answers. "
                f"Received: suspect={suspect!r}, answers_file={os.fspath(answers_file)!r}"
            )
        self._committed, self._opened = grounds_of(owner_key, commitment, evidence)
        self._inputs = _with_decoys(self._triggers.arrays, decoys)
        num_questions = len(next(iter(self._inputs.values())))
        domain = ("questions", owner_key.owner, SCHEME_VERSION, num_questions)
        # Where the triggers come; in which order does not depend on the decoys, which are free to choose.
        places = np.sort(
            derive_permutations(owner_key.seed, domain, 1, num_questions)[0][: self._triggers.num_examples]
        )
        is_trigger = np.isin(np.arange(num_questions), places)
        self._order = np.empty(num_questions, np.int64)
        self._order[is_trigger] = np.arange(len(places))
        # In an order of their own: whoever knows the decoys, a public data set, would see what interrupts it.
        num_decoys = num_questions - len(places)
        self._order[~is_trigger] = (
            len(places) + derive_permutations(owner_key.seed, ("decoys", *domain[1:]), 1, num_decoys)[0]
        )
        self._path = None if answers_file is None else pathlib.Path(answers_file)
        self._identity = {
            "format_version": _FORMAT_VERSION,
            "fingerprint": owner_key.fingerprint,
            "triggers": self._triggers.digest(),
            "num_questions": num_questions,
            "suspect": suspect,
        }
        self._answers = self._kept()
        # Refuses labels that have no test of this kind.
        self.verdict()

    @property
    def num_questions(self) -> int:
        """Triggers and decoys."""
        return len(self._order)

    @property
    def num_queries(self) -> int:
        """Questions that were answered, decoys included."""
        return len(self._answers)

    def run(
        self,
        predict_fn: Callable[[Inputs], Any],
        *,
        kind: PredictionKind | None = None,
        batch_size: int = 1,
        max_queries: int | None = None,
    ) -> TriggerVerdict:
        """Asks until the claim is proved, all was asked, or no more may be asked. Among decoys it ends on a multiple of 16 questions.

        Args:
            predict_fn: From inputs `(n, ...)`, an array or dict of arrays, to answers in a form of `verify_predictions`. Where it raises
                `RefusalError`, each input is asked by itself; those that it refuses alone count as not answered.
            kind: What the answers are, as in `verify_predictions`.
            batch_size: Questions at a time, >= 1.
            max_queries: Questions in all, those of earlier runs included unless all of these were refused, >= 0; None: no limit. An input
                that was refused with others and is asked again by itself is one.

        Returns:
            The verdict.

        Raises:
            ValueError: If an answer is no answer. What was answered before is kept.
            OSError: If the file cannot be written; before anything is asked, if it never could.
        """
        for _ in self.steps(predict_fn, kind=kind, batch_size=batch_size, max_queries=max_queries):
            pass
        return self.verdict()

    def steps(
        self,
        predict_fn: Callable[[Inputs], Any],
        *,
        kind: PredictionKind | None = None,
        batch_size: int = 1,
        max_queries: int | None = None,
    ) -> Iterator[int]:
        """As `run`, batch by batch, for whoever shows progress.

        Yields:
            The number of questions that were answered so far.
        """
        check_number_of("batch_size", batch_size)
        if max_queries is not None:
            check_number_of("max_queries", max_queries, 0, ", or None for no limit")
        limit = self.num_questions if max_queries is None else min(max_queries, self.num_questions)
        if self.num_queries < limit and not self._may_end():
            # Before anything is asked: a file that cannot be written would lose the first answer.
            self._keep()
        while self.num_queries < limit and not self._may_end():
            end = min(self.num_queries + batch_size, limit)
            if self._hidden:
                end = min(end, self.num_queries - self.num_queries % _BLOCK + _BLOCK)
            rows = self._order[self.num_queries : end]
            for found in answers_to(self._inputs, rows, predict_fn, self._triggers.num_classes, kind):
                self._answers += found.tolist()
                self._keep()
                yield self.num_queries

    @property
    def _hidden(self) -> bool:
        """Whether there are decoys."""
        return self.num_questions > self._triggers.num_examples

    def _may_end(self) -> bool:
        return not (self._hidden and self.num_queries % _BLOCK) and self.verdict().marked

    def verdict(self) -> TriggerVerdict:
        """What the answers so far say."""
        asked = self._order[: self.num_queries]
        of_triggers = asked < self._triggers.num_examples
        answers = np.array(self._answers, np.int64)[of_triggers]
        return sequential_verdict(answers, asked[of_triggers], self._owner_key, self._committed, self._opened)

    def _kept(self) -> list[int]:
        if self._path is None or not self._path.exists():
            return []
        try:
            record = json.loads(self._path.read_text())
            identity, answers = record["questioning"], list(record["answers"])
            fits = len(answers) <= len(self._order) and all(
                type(answer) is int and -1 <= answer < self._triggers.num_classes for answer in answers
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            identity, fits = f"unreadable ({type(error).__name__})", False
        if identity != self._identity or not fits:
            raise ValueError(
                "This file does not hold the answers of this questioning. Expected the file that it was begun with, the same suspect, the "
                f"same key and as many decoys, or no file. Received: {self._path}"
            )
        # Where nothing but refusals came, they may be due to a wrong name; as they say nothing of any label, the questions begin anew.
        return answers if any(answer != NO_ANSWER for answer in answers) else []

    def _keep(self) -> None:
        if self._path is not None:
            record = {"questioning": self._identity, "answers": self._answers}
            write_atomically(self._path, json.dumps(record).encode() + b"\n", mode=0o600)


def _with_decoys(triggers: dict[str, np.ndarray], decoys: Inputs | None) -> dict[str, np.ndarray]:
    if decoys is None:
        return triggers
    given = as_inputs(decoys, "decoys")
    arrays = dict(given) if isinstance(given, Mapping) else {"": given}
    if {name: (array.shape[1:], array.dtype) for name, array in arrays.items()} != {
        name: (array.shape[1:], array.dtype) for name, array in triggers.items()
    }:
        raise ValueError(
            "The decoys would be told from the triggers. Expected inputs of the triggers' shape and type, "
            f"{ {name: (array.shape[1:], str(array.dtype)) for name, array in triggers.items()} }. "
            f"Received: { {name: (array.shape[1:], str(array.dtype)) for name, array in arrays.items()} }"
        )
    return {name: np.concatenate([array, arrays[name]]) for name, array in triggers.items()}
