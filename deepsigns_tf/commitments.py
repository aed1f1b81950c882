"""What an owner states before marking and before release, and what a claim gains when the key opens it.

A statement names a hash and reveals nothing of the key. The statements of one signing key form a chain: each names the hash of
the one before, so that none can be left out, and every seed that was committed to is counted. docs/evidence-format.md specifies all of it
byte for byte.
"""

import dataclasses
import datetime
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from deepsigns_tf.canonical_json import decode_canonical, encode_canonical
from deepsigns_tf.derivation import derive_bytes
from deepsigns_tf.owner_key import SCHEME_VERSION, OwnerKey
from deepsigns_tf.statistics import factor_of_nth

_FORMAT = "deepsigns_tf statement"
_VERSION = 1
_MAX_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Release:
    """What an owner states before a model leaves the house.

    Args:
        id: Which release it is, as the owner calls it.
        weights: `weights_digest` of the released model.
        digest: C2, `release_commitment`.

    Raises:
        ValueError: If a part is malformed.

    Example:

    >>> Release("1.0", weights=64 * "a", digest=64 * "b").id
    '1.0'
    """

    id: str
    weights: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or not _is_digest(self.weights) or not _is_digest(self.digest):
            raise ValueError(
                "A release is malformed. Expected a name, and two hashes of 64 hexadecimal digits. "
                f"Received: id={self.id!r}, weights={self.weights!r}, digest={self.digest!r}"
            )


@dataclasses.dataclass(frozen=True)
class Statement:
    """One link of an owner's chain.

    Args:
        owner: Who states it.
        public_key: Ed25519 key with which it is signed, 64 hexadecimal digits.
        number: Its place in the chain, from 1.
        previous: `digest()` of the statement before; None for the first.
        commitment: C1, `OwnerKey.commitment()`.
        release: For a statement before a release; None for one before marking.

    Raises:
        ValueError: If a part is malformed.

    Example:

    >>> first = Statement("ACME Vision", public_key=64 * "1", number=1, previous=None, commitment=64 * "a")
    >>> Statement.decode(first.encode()) == first, len(first.digest())
    (True, 64)
    """

    owner: str
    public_key: str
    number: int
    previous: str | None
    commitment: str
    release: Release | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.number, int) and not isinstance(self.number, bool) and self.number >= 1
        if not isinstance(self.owner, str) or not self.owner or not whole:
            raise ValueError(
                "A statement is malformed. Expected the name of an owner and a number from 1. "
                f"Received: owner={self.owner!r}, number={self.number!r}"
            )
        if not _is_digest(self.public_key) or not _is_digest(self.commitment):
            raise ValueError(
                "A statement is malformed. Expected a public key and a commitment of 64 hexadecimal digits. "
                f"Received: public_key={self.public_key!r}, commitment={self.commitment!r}"
            )
        if (self.previous is None) != (self.number == 1) or not (self.previous is None or _is_digest(self.previous)):
            raise ValueError(
                "A statement is malformed. Expected the hash of the statement before, and none for the first. "
                f"Received: number={self.number}, previous={self.previous!r}"
            )

    def encode(self) -> bytes:
        """Its bytes: what is hashed, signed and time-stamped."""
        value = {
            "commitment": self.commitment,
            "format": _FORMAT,
            "kind": "commitment" if self.release is None else "release",
            "number": self.number,
            "owner": self.owner,
            "previous": self.previous,
            "public_key": self.public_key,
            "version": _VERSION,
        }
        return encode_canonical(
            value if self.release is None else value | {"release": dataclasses.asdict(self.release)}
        )

    def digest(self) -> str:
        """SHA-256 of its bytes, in hexadecimal: what the next statement names, and what is time-stamped."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes) -> "Statement":
        """The statement that these bytes are.

        Args:
            data: What `encode` wrote.

        Returns:
            The statement.

        Raises:
            ValueError: If they are anything else, or another writing of a statement.
        """
        if len(data) > _MAX_BYTES:
            raise ValueError(
                f"A statement is too long. Expected at most {_MAX_BYTES} bytes. Received: {len(data)} bytes"
            )
        value = decode_canonical(data)
        parts = dict(value) if isinstance(value, dict) else {}
        head = parts.pop("format", None), parts.pop("version", None), parts.pop("kind", None)
        release = parts.pop("release", None)
        names = {field.name for field in dataclasses.fields(cls)} - {"release"}
        if head != (_FORMAT, _VERSION, "commitment" if release is None else "release") or parts.keys() != names:
            raise ValueError(
                f"This is not a statement that this release can read. Expected format {_FORMAT!r}, version {_VERSION}, with its parts. "
                f"Received: {head}, parts {sorted(parts)}"
            )
        if release is not None:
            if not isinstance(release, dict) or release.keys() != {field.name for field in dataclasses.fields(Release)}:
                raise ValueError(
                    "A release is malformed. Expected id, weights and digest. "
                    f"Received: {sorted(release) if isinstance(release, dict) else type(release).__name__}"
                )
            release = Release(**release)
        statement = cls(**parts, release=release)
        if statement.encode() != data:
            # `true` and `1.0` equal 1, and a release of `null` is none: the hash would be that of other bytes.
            raise ValueError(
                "This is another writing of a statement. Expected an integer as version, and a release only where there is one. "
                f"Received: version={head[1]!r}, parts {sorted(value)}"
            )
        return statement


@dataclasses.dataclass(frozen=True)
class TimeStamp:
    """What an authority confirmed: that a statement existed at a time.

    Args:
        time: When, in UTC.
        authority: Who says so.
        serial_number: Of the time-stamp, by which the authority finds it again.
    """

    time: datetime.datetime
    authority: str
    serial_number: int


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a checked chain of statements says about a key, now that the key is there to open it.

    Args:
        statement: The one that commits to the key.
        num_seeds: Different commitments of the chain up to this one, itself included: it is the n-th.
        time_stamp: When the statement existed by the word of a time-stamping authority; None where no time-stamp was checked.
        releases: Names of the releases that were stated with the carrier-to-layer map that the key holds.
        release_time_stamp: When the first of them was stated, likewise.
        num_other_maps: Releases of this commitment that were stated with another map.
        suspect_since: Since when the suspect is known to exist, by whoever verifies; None where they do not say.
    """

    statement: Statement
    num_seeds: int
    time_stamp: TimeStamp | None
    releases: tuple[str, ...]
    release_time_stamp: TimeStamp | None
    num_other_maps: int
    suspect_since: datetime.datetime | None = None

    @property
    def committed(self) -> bool:
        """Whether the statement is known to be older than the suspect. Who shows statements without a date may have made them today."""
        return _is_older(self.time_stamp, self.suspect_since)

    @property
    def factor(self) -> int:
        """What p is multiplied by for the seeds, `factor_of_nth`."""
        return factor_of_nth(self.num_seeds)

    @property
    def layers_committed(self) -> bool:
        """Whether one carrier-to-layer map was stated before the suspect existed, and no other: later it could be chosen to suit it."""
        return (
            bool(self.releases) and not self.num_other_maps and _is_older(self.release_time_stamp, self.suspect_since)
        )

    def in_words(self) -> list[str]:
        """Sentences for `Decision.assumptions`."""
        if self.time_stamp is None:
            dated = "no time-stamp of it was checked, so it may be younger than the suspect"
        elif self.suspect_since is None:
            dated = f"it existed on {_in_words(self.time_stamp)}; since when the suspect exists was not said"
        else:
            compared = "not before" if self.committed else "already since"
            dated = (
                f"it existed on {_in_words(self.time_stamp)}, the suspect {compared} {_date(self.suspect_since)}, by the word of whoever "
                "verifies"
            )
        lines = [
            f"statement {self.statement.number} of signing key {self.statement.public_key[:16]}... commits to this key; {dated}",
            f"it is commitment {self.num_seeds} of that signing key, whose statements were checked without a gap: p was multiplied by "
            f"{self.factor}, so that all seeds it ever commits to err no more often than one",
            "that signing key is the claimant's, who holds no other and no second chain of statements: seeds committed to there would have "
            "to be paid for",
        ]
        if self.layers_committed:
            when = f", by {_in_words(self.release_time_stamp)}" if self.release_time_stamp else ""
            lines.append(
                f"the carrier-to-layer map was stated before release {', '.join(map(repr, self.releases))}{when}"
            )
        elif self.num_other_maps:
            lines.append(
                f"releases with other carrier-to-layer maps were stated too ({self.num_other_maps}): no map counts as committed"
            )
        elif self.releases:
            lines.append(
                "that the carrier-to-layer map was stated before the suspect existed was not shown: it counts as not committed"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; nothing in it is secret."""
        return {
            "public_key": self.statement.public_key,
            "statement": self.statement.number,
            "statement_sha256": self.statement.digest(),
            "commitment": self.statement.commitment,
            "num_seeds": self.num_seeds,
            "factor": self.factor,
            "time": self.time_stamp and self.time_stamp.time.isoformat(),
            "authority": self.time_stamp and self.time_stamp.authority,
            "releases": list(self.releases),
            "release_time": self.release_time_stamp and self.release_time_stamp.time.isoformat(),
            "layers_committed": self.layers_committed,
            "num_other_maps": self.num_other_maps,
            "suspect_since": self.suspect_since and self.suspect_since.isoformat(),
            "committed": self.committed,
        }


def _is_older(time_stamp: TimeStamp | None, suspect_since: datetime.datetime | None) -> bool:
    return time_stamp is not None and suspect_since is not None and time_stamp.time < suspect_since


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A chain of statements, from the first one, whose signatures and time-stamps were checked (`evidence.load_evidence`).

    Args:
        statements: In their order.
        time_stamps: Number of a statement -> when it existed, for those with a time-stamp that was checked.
        suspect_since: Since when the suspect is known to exist, with a time zone, by whoever verifies. Without it, or where no time-stamp
            is older, the statements count seeds and nothing else: a claim is decided as one without a commitment.

    Raises:
        ValueError: If the statements are no chain of one owner's, or the date has no time zone.

    Example:

    >>> first = Statement("ACME Vision", 64 * "1", number=1, previous=None, commitment=64 * "a")
    >>> second = Statement("ACME Vision", 64 * "1", number=2, previous=first.digest(), commitment=64 * "b")
    >>> len(Evidence((first, second)).statements)
    2
    """

    statements: tuple[Statement, ...]
    time_stamps: Mapping[int, TimeStamp] = dataclasses.field(default_factory=dict)
    suspect_since: datetime.datetime | None = None

    def __post_init__(self) -> None:
        if self.suspect_since is not None and self.suspect_since.tzinfo is None:
            raise ValueError(
                "Invalid value for argument `suspect_since`. Expected a moment with a time zone. "
                f"Received: suspect_since={self.suspect_since.isoformat()}"
            )
        if not self.statements:
            raise ValueError("This evidence is empty. Expected at least one statement. Received: none")
        committed, previous, first = set(), None, self.statements[0]
        for number, statement in enumerate(self.statements, 1):
            if (statement.number, statement.previous) != (number, previous):
                raise ValueError(
                    f"Statement {number} does not follow the one before. Expected number {number} and the hash {previous} of the "
                    f"statement before. Received: number {statement.number}, previous={statement.previous}"
                )
            if (statement.owner, statement.public_key) != (first.owner, first.public_key):
                raise ValueError(
                    f"Statement {number} is somebody else's. Expected the owner and the public key of the first one, {first.owner!r} and "
                    f"{first.public_key}. Received: {statement.owner!r} and {statement.public_key}"
                )
            if statement.release is not None and statement.commitment not in committed:
                raise ValueError(
                    f"Statement {number} releases what was not committed to. Expected an earlier statement of its commitment. "
                    f"Received: commitment={statement.commitment}"
                )
            committed.add(statement.commitment)
            previous = statement.digest()

    def _dated(self, number: int) -> TimeStamp | None:
        """Since when a statement has existed: each names the hash of the one before, so that a later one's time-stamp dates it too."""
        stamps = [stamp for later, stamp in self.time_stamps.items() if later >= number]
        return min(stamps, key=lambda stamp: stamp.time, default=None)

    def earlier_releases(self, commitment: str) -> tuple[Release, ...]:
        """The releases that were stated of a key before the suspect existed: afterwards anybody could state its weights.

        Args:
            commitment: The key's.
        """
        return tuple(
            each.release
            for each in self.statements
            if each.release is not None
            and each.commitment == commitment
            and _is_older(self._dated(each.number), self.suspect_since)
        )

    def opened_by(self, owner_key: OwnerKey) -> Opened:
        """What the chain says about a key.

        Args:
            owner_key: The key that is said to open it.

        Returns:
            The statement that commits to it, and what counts beside it.

        Raises:
            ValueError: If the chain is another owner's, does not commit to this key, or states releases of which none opens with the layers
                that the key holds.
        """
        commitment, first = owner_key.commitment(), self.statements[0]
        if owner_key.owner != first.owner:
            raise ValueError(
                f"The evidence is not this key's. Expected statements of {owner_key.owner!r}. Received: those of {first.owner!r}"
            )
        found = [each for each in self.statements if each.commitment == commitment]
        if not found:
            raise ValueError(
                "The evidence is not this key's. Expected a statement that commits to the key, made before marking. "
                f"Received: {len(self.statements)} statements without its commitment {commitment}"
            )
        statement, releases = found[0], [(each.number, each.release) for each in found if each.release is not None]
        readable = bool(owner_key.layers) or not owner_key.carriers
        same = [
            (number, release)
            for number, release in releases
            if readable and release.digest == release_commitment(owner_key, release.weights, release.id)
        ]
        if releases and readable and not same:
            raise ValueError(
                "The releases that were stated are not those of this key. Expected the carrier-to-layer map that was committed to before "
                f"the release. Received: a key with another one, while {len(releases)} releases were stated"
            )
        return Opened(
            statement=statement,
            num_seeds=len({each.commitment for each in self.statements[: statement.number]}),
            time_stamp=self._dated(statement.number),
            releases=tuple(release.id for _, release in same),
            release_time_stamp=self._dated(same[0][0]) if same else None,
            num_other_maps=len(releases) - len(same),
            suspect_since=self.suspect_since,
        )


def seed_factor(opened: Opened | None) -> int:
    """What p is multiplied by for the seeds that an owner committed to; 1 where no statements were shown.

    Args:
        opened: What signed statements say about the key.

    Example:

    >>> seed_factor(None)
    1
    """
    return 1 if opened is None else opened.factor


def release_commitment(owner_key: OwnerKey, weights: str, release_id: str) -> str:
    """C2, a hash to state before a model leaves the house; it reveals nothing, the carrier-to-layer map least of all.

    It covers C1, the map, the released weights and the name of the release. As C1 it is derived from the seed: a map is easily
    guessed, so that its mere hash would tell where the mark is.

    Args:
        owner_key: The key, as `release` returned it.
        weights: `weights_digest` of the released model.
        release_id: Which release it is.

    Returns:
        64 hexadecimal digits, SHA-256.

    Raises:
        ValueError: If the key has carriers but does not know their layers, or cannot be committed to.

    Example:

    >>> import numpy as np
    >>> key = OwnerKey.generate("ACME Vision").with_triggers("noise", 50, 10, np.random.rand(4, 8))
    >>> len(release_commitment(key, weights=64 * "a", release_id="1.0"))
    64
    """
    if owner_key.carriers and not owner_key.layers:
        raise ValueError(
            "This key does not know where its mark is yet. Expected the key that `release` returned. Received: a key without layers"
        )
    layers = sorted((dataclasses.asdict(layer) for layer in owner_key.layers), key=lambda layer: str(layer["carrier"]))
    stated = {"commitment": owner_key.commitment(), "layers": layers, "release": release_id, "weights": weights}
    domain = ("release", SCHEME_VERSION, encode_canonical(stated).decode())
    return hashlib.sha256(derive_bytes(owner_key.seed, domain, 32)).hexdigest()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _in_words(time_stamp: TimeStamp) -> str:
    return f"{_date(time_stamp.time)} by the time-stamp of {time_stamp.authority}"


def _date(moment: datetime.datetime) -> str:
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
