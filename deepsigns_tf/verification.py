"""Reads a mark back from a model's weights and says what the reading proves.

Source: DeepSigns, section 3.2, with the exact null of an independent uniform signature in place of a threshold on the bit
error rate.
"""

import dataclasses
import math
import os
from typing import Any, Self, get_args

import keras
import numpy as np

from deepsigns_tf.candidates import Candidates, best_readings, candidate_means, matched_candidates
from deepsigns_tf.commitments import Evidence, Opened, seed_factor
from deepsigns_tf.files import file_digest
from deepsigns_tf.owner_key import OwnerKey
from deepsigns_tf.readings import SignatureReading, joint_log10_p
from deepsigns_tf.responses import Place, Respondent, respondent
from deepsigns_tf.statistics import (
    MAX_ENUMERATED_BITS,
    DecisionRule,
    SignificanceTest,
    allowed_errors,
    corrected_log10_p,
)

# A summary shows the bit error rate of every class up to this many, beyond it the worst class alone.
_MAX_CLASSES_SHOWN = 10


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Decision:
    """What every verdict says: whether a claim is proved, at which level, and on what that rests.

    Args:
        owner: Who claims the model.
        marked: Whether the decision rule, fixed in the key, is met.
        log10_p_value: log10 p of the deciding test after all corrections.
        log10_alpha: log10 of the level it was held against.
        decision: The rule.
        committed: Whether a commitment to this key was shown that is older than the suspect (`grounds_of`).
        assumptions: What the p-value rests on, in words.
        opened: What the owner's signed statements say about the key; None where no evidence was given.
        num_tests: Tests that a claim with this key may rest on, `OwnerKey.num_tests`; p was multiplied by it.
    """

    owner: str
    marked: bool
    log10_p_value: float
    log10_alpha: float
    decision: DecisionRule
    committed: bool
    assumptions: tuple[str, ...]
    opened: Opened | None = None
    num_tests: int = 1

    @property
    def seed_factor(self) -> int:
        """What p was multiplied by for the seeds that the owner committed to; 1 where no evidence was given."""
        return seed_factor(self.opened)

    @property
    def decided(self) -> bool:
        """Whether all that could be read was read, or the claim is proved."""
        return True

    @property
    def headline(self) -> str:
        """The decision in words, with the conditions it hangs on."""
        if not self.marked:
            return "NOT MARKED"
        return f"MARKED, if {' and '.join(self._conditions)}" if self._conditions else "MARKED"

    @property
    def _conditions(self) -> list[str]:
        """What must be true beside all that was checked, in words."""
        return [] if self.committed else ["the key is older than the model"]

    @property
    def _corrections(self) -> list[str]:
        """What else p was multiplied by, in words."""
        return [
            *([] if self.opened is None else [f"x {self.seed_factor} for commitment {self.opened.num_seeds}"]),
            *(["x 2 for weights and answers, by either of which the key can claim"] if self.num_tests == 2 else []),
        ]

    def assuming(self, *sentences: str) -> Self:
        """The same decision, which rests on some more.

        Args:
            sentences: For `assumptions`.
        """
        return dataclasses.replace(self, assumptions=(*self.assumptions, *sentences))

    def _in_words(self, findings: list[str], test: str) -> str:
        """For people: the headline, what was found, and what it rests on."""
        lines = [
            f"{self.headline}: claim of {self.owner}",
            findings[0],
            f"  p-value         10^{self.log10_p_value:.2f} {'<=' if self.marked else '>'} 10^{self.log10_alpha:.2f} ({test}, "
            f"{self._commitment_in_words()})",
            *findings[1:],
        ]
        return "\n".join([*lines, "  assuming        " + "\n                  ".join(self.assumptions)])

    def _commitment_in_words(self) -> str:
        if self.committed and self.opened is not None and self.opened.committed:
            return "earlier commitment checked in signed statements"
        return "earlier commitment checked" if self.committed else "no earlier commitment checked"

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values; nothing in it is secret."""
        return {
            "owner": self.owner,
            "headline": self.headline,
            "marked": self.marked,
            "log10_p_value": self.log10_p_value,
            "log10_alpha": self.log10_alpha,
            "decision": self.decision.to_dict(),
            "committed": self.committed,
            "assumptions": list(self.assumptions),
            "opened": self.opened and self.opened.to_dict(),
            "seed_factor": self.seed_factor,
            "num_tests": self.num_tests,
        }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Verdict(Decision):
    """What a suspect's weights say about an owner's claim.

    Args:
        owner: Who claims the model.
        marked: Whether the decision rule, fixed in the key, is met.
        log10_p_value: log10 p of the deciding test after all corrections.
        log10_alpha: log10 of the level it was held against.
        decision: The rule.
        committed: Whether a commitment to this key was shown that is older than the suspect (`grounds_of`).
        assumptions: What the p-value rests on, in words.
        opened: What the owner's signed statements say about the key; None where no evidence was given.
        num_tests: Tests that a claim with this key may rest on, `OwnerKey.num_tests`; p was multiplied by it.
        log10_p_hard: log10 of the exact tail of the number of matching bits, times the correction.
        log10_p_soft: log10 of the tail of the signed sum of projections, times the correction. The tail is enumerated up to
            16 bits and bounded (Chernoff) above.
        num_assignments: Ways to read the suspect that were tried and paid for: joint assignments of carriers to its layers, 1 where the
            map was committed to and its layers bear those names; with a reference those to both models' layers, twice, in addition.
        matched: Whether the suspect's units were matched with those of the key's reference for this reading.
        readings: One reading for each carrier.
        copy_of: Releases, stated before the suspect existed, whose weights it has, number for number. It says nothing of p, nor does p
            need it.
    """

    log10_p_hard: float
    log10_p_soft: float
    num_assignments: int
    matched: bool
    readings: tuple[SignatureReading, ...]
    copy_of: tuple[str, ...] = ()

    @property
    def num_bits(self) -> int:
        """Bits over all carriers."""
        return sum(reading.num_bits for reading in self.readings)

    @property
    def num_matches(self) -> int:
        """Matching bits over all carriers."""
        return sum(reading.num_matches for reading in self.readings)

    @property
    def bit_error_rate(self) -> float:
        """Share of wrong bits over all carriers, in [0, 1]."""
        return 1.0 - self.num_matches / self.num_bits

    def summary(self) -> str:
        """The verdict for people, in a dozen lines."""
        soft_tail = "enumerated tail" if self.num_bits <= MAX_ENUMERATED_BITS else "Chernoff bound"
        factor = self.num_assignments * self.seed_factor * self.num_tests
        errors = allowed_errors(self.num_bits, self.log10_alpha - math.log10(factor))
        findings = [
            f"  bits matched    {self.num_matches} of {self.num_bits} (bit error rate {self.bit_error_rate:.4f}; "
            f"{'no number of matches' if errors is None else f'up to {errors} errors'} would pass the hard test)",
            f"  hard, soft      10^{self.log10_p_hard:.2f}, 10^{self.log10_p_soft:.2f} "
            f"(exact tail, {soft_tail}; each times the correction)",
            f"  correction      x {self.num_assignments} assignments of carriers to layers"
            + (", with and without a match of units" if self.matched else "")
            + "".join(f", {each}" for each in self._corrections),
        ]
        for reading in self.readings:
            findings += [
                f"  carrier         {reading.carrier} in {reading.layer}: {reading.num_matches} of {reading.num_bits} bits, "
                f"margins {reading.margins.min():.2f} (smallest), {np.median(reading.margins):.2f} (median)",
                f"  error rates     {_rates_in_words(reading)}",
            ]
        if self.copy_of:
            findings.append(
                f"  weights         those of release {', '.join(map(repr, self.copy_of))}, number for number"
            )
        return self._in_words(findings, f"{self.decision.test} test")

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready values; nothing in it is secret."""
        return super().to_dict() | {
            "log10_p_hard": self.log10_p_hard,
            "log10_p_soft": self.log10_p_soft,
            "num_assignments": self.num_assignments,
            "matched": self.matched,
            "num_bits": self.num_bits,
            "num_matches": self.num_matches,
            "bit_error_rate": self.bit_error_rate,
            "readings": [reading.to_dict() for reading in self.readings],
            "copy_of": list(self.copy_of),
        }


def verify(
    model: keras.Model | Respondent,
    owner_key: OwnerKey,
    *,
    commitment: str | None = None,
    evidence: Evidence | None = None,
    search: bool = False,
    reference: str | os.PathLike[str] | Respondent | None = None,
) -> Verdict:
    """Reads the mark from a suspect's weights and decides by the rule fixed in the key.

    Layers may have been renamed or reordered: every layer of the right width is a candidate for a carrier, and the best
    assignment is reported. The width stands in the key but not in the commitment, so the factor in p (Bonferroni) counts
    every layer that is wide enough for the bits.

    Where the evidence holds a statement of the carrier-to-layer map from before the suspect, one whose layers still bear the names
    is read there alone, and pays for no other layer. Names decide that, never bits, so p stays exact. A thief may have swapped names:
    ask for a search then, and know that whoever reads both ways has two tests, which err twice as often.

    Args:
        model: The suspect: any Keras model, or a file of somebody else's as `load_suspect` opens it.
        owner_key: The claimant's key, after `release` (it must know the carriers' widths).
        commitment: The commitment that the claimant published before training, taken by whoever verifies from a dated
            source of their own. With it the rule's level for committed claims applies.
        evidence: The owner's signed statements, checked by `evidence.load_evidence`. They count the seeds that the owner committed to;
            what is dated before the suspect does what a commitment does, and may hold the carrier-to-layer map.
        search: Whether to try every layer, though the map was committed to.
        reference: The file whose hash stands in the key (`OwnerKey.with_reference`), if it is your own, for it is loaded in this process;
            else what `load_suspect` made of it. The suspect is then read in two more ways: its units are matched with the reference's, by
            what both do with the key inputs, whatever their order, with their own sizes and brought to one spread. As the bits were derived
            from the file, it cannot know them, and p is as exact as without; all ways are paid for.

    Returns:
        The verdict.

    Raises:
        ValueError: If there is nothing to read: a key without key inputs or layers, inputs that do not fit the model, no
            layer of the right width, activations that are not finite, a commitment, evidence or a reference that is not this key's.

    Example:

    >>> from deepsigns_tf.carriers import Carrier, CarrierLayer
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", [0, 1], 32)])
    >>> key = key.with_key_inputs(np.random.rand(64, 8), np.arange(64) % 2, num_per_class=8)
    >>> key = key.with_layers([CarrierLayer("features", "hidden", 128)])
    >>> suspect = keras.Sequential([keras.Input((8,)), keras.layers.Dense(128, name="hidden")])
    >>> verify(suspect, key).headline
    'NOT MARKED'

    Source: DeepSigns, section 3.2.
    """
    found = each_way(model, owner_key, commitment=commitment, evidence=evidence, search=search, reference=reference)
    return min(found, key=lambda verdict: verdict.log10_p_value)


def each_way(
    model: keras.Model | Respondent,
    owner_key: OwnerKey,
    *,
    commitment: str | None = None,
    evidence: Evidence | None = None,
    search: bool = False,
    reference: str | os.PathLike[str] | Respondent | None = None,
) -> list[Verdict]:
    """The verdicts that `verify` takes the best of: as the suspect stands; with a reference also after its units were matched.

    Args:
        model: As in `verify`, and so are the others.
        owner_key: The claimant's key.
        commitment: What was published before training.
        evidence: The owner's signed statements.
        search: Whether to try every layer.
        reference: The file whose hash stands in the key.

    Returns:
        One verdict for each way in which something could be read; `Verdict.matched` tells them apart. Each has paid for all.

    Raises:
        ValueError: As `verify`.

    Example: see `verify`.
    """
    if owner_key.key_inputs is None or not owner_key.layers:
        raise ValueError(
            "This key cannot read a mark yet. Expected a key with key inputs (`with_key_inputs`) and layers (returned by `release`). "
            f"Received: key inputs {'set' if owner_key.key_inputs else 'missing'}, layers {'set' if owner_key.layers else 'missing'}"
        )
    committed, opened = grounds_of(owner_key, commitment, evidence)
    if reference is None:
        ways = [(False, candidate_means(model, owner_key))]
    else:
        other = _referred(reference, owner_key)
        # Sizes are an attacker's to choose; doing without them costs a part of the mark, taking the reference's a larger one.
        matched = matched_candidates(model, owner_key, other, decorrelated=True)
        ways = [(False, matched.plain), (True, matched.unscaled), (True, matched.evened)]
    by_map = opened is not None and opened.layers_committed and not search
    recorded = [_as_recorded(found, owner_key) if by_map else None for _, found in ways]
    num_ways = sum(
        1 if alone is not None else _num_assignments(found) for alone, (_, found) in zip(recorded, ways, strict=True)
    )
    verdicts, errors = [], []
    for alone, (was_matched, found) in zip(recorded, ways, strict=True):
        try:
            readings = best_readings(found if alone is None else alone, owner_key)
        except ValueError as error:
            # Its layers may have another width, which is what a match undoes.
            errors.append(error)
            continue
        verdicts.append(
            judge(readings, owner_key, num_ways, committed, was_matched, opened, as_recorded=alone is not None)
        )
    if not verdicts:
        raise errors[0]
    read = [model] if reference is None else [model, other]
    caveats = [caveat for each in read for caveat in respondent(each).caveats]
    copy_of = _copy_of(model, owner_key, evidence)
    return [dataclasses.replace(verdict.assuming(*dict.fromkeys(caveats)), copy_of=copy_of) for verdict in verdicts]


def _copy_of(model: keras.Model | Respondent, owner_key: OwnerKey, evidence: Evidence | None) -> tuple[str, ...]:
    releases = () if evidence is None else evidence.earlier_releases(owner_key.commitment())
    # Hashed where there is something to compare with.
    weights = respondent(model).digest_of_weights() if releases else ""
    return tuple(release.id for release in releases if release.weights == weights)


def _referred(reference: str | os.PathLike[str] | Respondent, owner_key: OwnerKey) -> keras.Model | Respondent:
    """The reference's model; a file is loaded only if it is the key's."""
    digest = file_digest(reference) if isinstance(reference, (str, os.PathLike)) else reference.file_digest
    if owner_key.reference != digest:
        raise ValueError(
            "The reference is not this key's. Expected the file that `with_reference` was given before marking. "
            f"Received: {'another one' if owner_key.reference else 'a key without a reference'}"
        )
    if isinstance(reference, (str, os.PathLike)):
        return keras.models.load_model(reference, compile=False, safe_mode=True)
    return reference


def _num_assignments(found: dict[str, Candidates]) -> int:
    return math.prod(each.num_admissible for each in found.values())


def _as_recorded(found: dict[str, Candidates], owner_key: OwnerKey) -> dict[str, Candidates] | None:
    """The candidates in the layers that the key names, alone; None if the suspect has no such layers."""
    places = {layer.carrier: Place(layer.path, 0) for layer in owner_key.layers}
    means = {name: found[name].means.get(place) for name, place in places.items()}
    if any(each is None or not np.isfinite(each).all() for each in means.values()):
        return None
    return {
        name: Candidates({places[name]: each}, num_admissible=1) for name, each in means.items() if each is not None
    }


def grounds_of(owner_key: OwnerKey, commitment: str | None, evidence: Evidence | None) -> tuple[bool, Opened | None]:
    """What a claim rests on beside the suspect.

    Args:
        owner_key: The key.
        commitment: The digits that the owner published, from a dated source of the verifier's, or None.
        evidence: The owner's signed statements, or None.

    Returns:
        Whether a commitment was shown that is older than the suspect: the key's own digits, or a statement that is known to be older; and
        what the statements say about the key.

    Raises:
        ValueError: If digits or statements are another key's.

    Example:

    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 50, 10, np.random.rand(4, 8))
    >>> grounds_of(key, None, None), grounds_of(key, key.commitment(), None)
    ((False, None), (True, None))
    """
    opened = None if evidence is None else evidence.opened_by(owner_key)
    if commitment is None:
        return opened is not None and opened.committed, opened
    if commitment.strip().lower() != owner_key.commitment():
        raise ValueError(
            "The commitment is not this key's. Expected the digits that the owner published before training. "
            f"Received: commitment={commitment!r}, while the key has {owner_key.commitment()}"
        )
    return True, opened


def assumptions_about_the_date(committed: bool, inputs: str, opened: Opened | None = None) -> list[str]:
    """What a verdict says about the order of key and model.

    Args:
        committed: Whether an earlier commitment was checked.
        inputs: What of the key can be fitted to a model, in words.
        opened: What signed statements say about the key.

    Returns:
        Sentences for `Decision.assumptions`.

    Example:

    >>> len(assumptions_about_the_date(True, "key inputs"))
    2
    """
    of_statements = [] if opened is None else opened.in_words()
    if opened is not None and opened.committed:
        return [f"that they were: {of_statements[0]}", *of_statements[1:]]
    if committed:
        shown = ["that they were: the key's commitment was checked; its date is for the verifier to judge"]
        # Statements count the seeds.
        return (
            [*shown, *of_statements]
            if of_statements
            else [
                *shown,
                "the claimant committed to no other key for this claim: committing to many keys would have to be paid for",
            ]
        )
    return [
        "that they were is NOT SHOWN, no earlier commitment was checked: the level leaves no room for trying seeds, but whoever "
        f"makes a key after the model can fit its {inputs} to it",
        *of_statements,
    ]


def judge(
    readings: list[SignatureReading],
    owner_key: OwnerKey,
    num_assignments: int,
    committed: bool = False,
    matched: bool = False,
    opened: Opened | None = None,
    as_recorded: bool = False,
) -> Verdict:
    """Turns readings into a verdict by the key's decision rule.

    Args:
        readings: One for each carrier.
        owner_key: The key.
        num_assignments: Ways to read it that were tried, >= 1.
        committed: Whether an earlier commitment was checked.
        matched: Whether units were matched with those of the key's reference.
        opened: What signed statements say about the key.
        as_recorded: Whether only the layers of a committed map were read.

    Returns:
        The verdict.

    Raises:
        ValueError: If `num_assignments` is less than 1.

    Example:

    >>> from deepsigns_tf.carriers import Carrier
    >>> from deepsigns_tf.readings import SignatureReader
    >>> key = OwnerKey.generate("ACME Vision", [Carrier("features", range(10), 64)])
    >>> means = (2.0 * key.signature("features") - 1.0) @ key.projection("features", 512).T
    >>> reading = SignatureReader(key, "features", 512).read(means)
    >>> judge([reading], key, num_assignments=3).headline
    'MARKED, if the key is older than the model'
    """
    rule = owner_key.decision
    tests: tuple[SignificanceTest, ...] = get_args(SignificanceTest)
    factor = num_assignments * seed_factor(opened) * owner_key.num_tests
    log10_p = {test: corrected_log10_p(joint_log10_p(readings, test), factor) for test in tests}
    assumptions = [
        "the bits are uniform and independent of the suspect and of all that was used to read it: seed, key inputs and decision "
        "rule were fixed before the suspect existed",
        *assumptions_about_the_date(committed, "key inputs", opened),
        _layers_in_words(num_assignments, opened, as_recorded),
        f"the decision rule stood in the key: {rule.test} test at 10^{rule.log10_alpha(committed):.2f}",
    ]
    if matched:
        assumptions.append(
            "units were matched with those of a model whose file the bits were derived from, so that it cannot know them; readings without "
            "the match, and with and without its units' sizes, were paid for too"
        )
    return Verdict(
        owner=owner_key.owner,
        marked=log10_p[rule.test] <= rule.log10_alpha(committed),
        log10_p_value=log10_p[rule.test],
        log10_alpha=rule.log10_alpha(committed),
        decision=rule,
        committed=committed,
        log10_p_hard=log10_p["hard"],
        log10_p_soft=log10_p["soft"],
        num_assignments=num_assignments,
        matched=matched,
        readings=tuple(readings),
        assumptions=tuple(assumptions),
        opened=opened,
        num_tests=owner_key.num_tests,
    )


def _layers_in_words(num_assignments: int, opened: Opened | None, as_recorded: bool) -> str:
    if as_recorded:
        return (
            "the suspect's layers bear the names in the committed carrier-to-layer map and were read there alone, so no other layer was "
            "paid for; whoever searches the others after that makes a second test"
        )
    committed = opened is not None and opened.layers_committed
    return (
        f"every joint assignment of carriers to layers wide enough was paid for ({num_assignments}); the carrier-to-layer map is "
        f"{'committed, and was not gone by' if committed else 'not committed'}"
    )


def _rates_in_words(reading: SignatureReading) -> str:
    rates = dict(zip(reading.classes, reading.bit_error_rate_per_class, strict=True))
    if len(rates) > _MAX_CLASSES_SHOWN:
        worst = max(rates, key=lambda label: rates[label])
        return f"{rates[worst]:.3f} in class {worst}, the worst of {len(rates)}"
    return ", ".join(f"{label}: {rate:.3f}" for label, rate in rates.items()) + " (by class)"
