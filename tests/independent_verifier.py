"""A second verifier, written from docs/evidence-format.md: NumPy and the standard library, nothing of `deepsigns_tf`.

    python tests/independent_verifier.py owner.key dump.npz evidence [--dated]

It reads the opened key, a dump of a suspect's class means and the evidence folder, and says how many bits match and what p is by the hard
test. Signatures and time-stamps are not looked at; section 3 of that page says which programs do.
"""

import dataclasses
import fractions
import functools
import hashlib
import io
import json
import math
import pathlib
import sys
import zipfile

import numpy as np

MAGIC = b"deepsigns_tf owner key\n"
MEMBERS = {"format", "version", "kind", "number", "previous", "owner", "public_key", "commitment"}


# 1. Encodings


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def derive(seed, domain, num_bytes):
    message = b""
    for part in (seed, *domain):
        if isinstance(part, bytes):
            kind, content = b"b", part
        elif isinstance(part, str):
            kind, content = b"s", part.encode("utf-8")
        else:
            kind, content = b"i", b"%d" % part
        message += kind + len(content).to_bytes(8, "big") + content
    return hashlib.shake_256(message).digest(num_bytes)


def words(seed, domain, num):
    data = derive(seed, domain, 8 * num)
    return [int.from_bytes(data[8 * at : 8 * at + 8], "little") for at in range(num)]


def permutations(seed, domain, num, num_items):
    attempt = 0
    while True:
        drawn = words(seed, (*domain, "attempt", attempt), num * num_items)
        rows = [drawn[at * num_items : (at + 1) * num_items] for at in range(num)]
        if all(len(set(row)) == num_items for row in rows):
            return [sorted(range(num_items), key=row.__getitem__) for row in rows]
        attempt += 1


def integers(seed, domain, num, num_values):
    drawn, attempt = [], 0
    while len(drawn) < num:
        limit = 2**64 // num_values * num_values - 1
        drawn += [word for word in words(seed, (*domain, "attempt", attempt), num) if word <= limit]
        attempt += 1
    return [word % num_values for word in drawn[:num]]


# 5. The owner key file


def arrays_of(data):
    """The members of an .npz file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert sum(member.file_size for member in archive.infolist()) <= 2**31, "too large"
        return {
            name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
            for name in archive.namelist()
        }


@dataclasses.dataclass(frozen=True)
class Key:
    """An opened owner key."""

    seed: bytes
    header: dict
    arrays: dict

    @property
    def owner(self):
        return self.header["owner"]

    @property
    def layers(self):
        return {layer["carrier"]: layer for layer in self.header["layers"]}

    @property
    def reference(self):
        return (self.header["reference"],) if "reference" in self.header else ()


def read_key(path):
    content = pathlib.Path(path).read_bytes()
    assert content.startswith(MAGIC), "no owner key"
    digest, data = content[len(MAGIC) :][:32], content[len(MAGIC) + 32 :]
    assert hashlib.sha256(data).digest() == digest, "altered"
    assert int.from_bytes(data[:4], "big") == 1, "another format"
    arrays = arrays_of(data[4:])
    header = json.loads(arrays.pop("header").tobytes())
    assert header["scheme_version"] == 1 and sorted(arrays) == header["arrays"]
    return Key(arrays.pop("seed").tobytes(), header, arrays)


# 6. Hash of examples


def inputs_of(arrays, prefix):
    """Input arrays by name."""
    inputs = {}
    for name, array in arrays.items():
        if name == f"{prefix}input":
            inputs[""] = array
        elif name.startswith(f"{prefix}input:"):
            inputs[name.removeprefix(f"{prefix}input:")] = array
    return inputs


def examples_digest(arrays, prefix):
    """The hash of the key inputs (prefix "") or of the triggers; None where there are none."""
    inputs = inputs_of(arrays, prefix)
    if not inputs:
        return None
    digest = hashlib.sha256()
    for name, array in [*sorted(inputs.items()), ("labels", arrays[f"{prefix}labels"])]:
        array = array.astype(array.dtype.newbyteorder("<"))
        header = json.dumps([name, array.dtype.str, list(array.shape)]).encode()
        digest.update(len(header).to_bytes(8, "big") + header + array.tobytes(order="C"))
    return digest.hexdigest()


# 7. and 8. The two commitments


def c1(key):
    stated = {name: key.header[name] for name in ("scheme_version", "owner", "carriers", "decision")}
    if key.reference:
        (stated["reference"],) = key.reference
    key_inputs, triggers = examples_digest(key.arrays, ""), examples_digest(key.arrays, "trigger ")
    if key_inputs is not None:
        stated["key_inputs"] = key_inputs
    if triggers is not None:
        stated["triggers"] = key.header["triggers"] | {"digest": triggers}
    return hashlib.sha256(derive(key.seed, ("commitment", 1, canonical(stated)), 32)).hexdigest()


def c2(key, weights, release_id):
    layers = [key.layers[carrier] for carrier in sorted(key.layers)]
    stated = canonical({"commitment": c1(key), "layers": layers, "release": release_id, "weights": weights})
    return hashlib.sha256(derive(key.seed, ("release", 1, stated), 32)).hexdigest()


# 2. The folder


def read_chain(folder):
    """The statements of a folder, in their order."""
    numbers = sorted(int(path.stem) for path in pathlib.Path(folder).glob("[0-9][0-9][0-9][0-9].json"))
    assert numbers == list(range(1, len(numbers) + 1)), "a gap"
    chain, previous, committed = [], None, set()
    for number in numbers:
        data = (pathlib.Path(folder) / f"{number:04d}.json").read_bytes()
        statement = json.loads(data)
        assert canonical(statement).encode() == data, "not canonical"
        assert statement.keys() - {"release"} == MEMBERS
        assert canonical([statement["format"], statement["version"]]) == '["deepsigns_tf statement",1]'
        assert (statement["number"], statement["previous"]) == (number, previous), "a broken chain"
        assert statement["kind"] == ("release" if "release" in statement else "commitment")
        assert statement.get("release", {"id": "", "weights": "", "digest": ""}).keys() == {"id", "weights", "digest"}
        assert statement["kind"] == "commitment" or statement["commitment"] in committed
        committed.add(statement["commitment"])
        chain.append(statement)
        previous = hashlib.sha256(data).hexdigest()
    assert len({(statement["owner"], statement["public_key"]) for statement in chain}) <= 1, "several owners"
    return chain


def opened(chain, key):
    """Which commitment of the chain this key is, from 1, and whether its layers are committed."""
    mine, commitments, releases = c1(key), [], []
    assert chain[0]["owner"] == key.owner
    for statement in chain:
        if statement["commitment"] not in commitments:
            commitments.append(statement["commitment"])
        if statement["commitment"] == mine and "release" in statement:
            releases.append(statement["release"])
    opening = [release["digest"] == c2(key, release["weights"], release["id"]) for release in releases]
    assert not releases or any(opening), "other layers were released"
    return commitments.index(mine) + 1, bool(opening) and all(opening)


# 9. Bits


def carrier_named(key, name):
    (carrier,) = (each for each in key.header["carriers"] if each["name"] == name)
    return carrier


def signature(key, name):
    carrier = carrier_named(key, name)
    s, N = len(carrier["classes"]), carrier["bits_per_class"]
    data = derive(key.seed, ("signature", key.owner, 1, name, s, N, *key.reference), -(-s * N // 8))
    bits = [data[at // 8] >> (7 - at % 8) & 1 for at in range(s * N)]
    return np.array(bits, np.uint8).reshape(s, N)


def projection(key, name, num_units):
    carrier = carrier_named(key, name)
    M, N, half = num_units, carrier["bits_per_class"], num_units // 2
    domain = ("projection", key.owner, 1, name, M, N, *key.reference)
    A = np.zeros((M, N))
    if carrier["projection"] == "balanced":
        for column, order in enumerate(permutations(key.seed, domain, N, M)):
            A[order[:half], column] = 1
            A[order[half : 2 * half], column] = -1
        return A
    uniforms = np.array([(word >> 11) * 2.0**-53 for word in words(key.seed, domain, 2 * M * N)])
    u, v = uniforms[: M * N], uniforms[M * N :]
    normals = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)
    return (np.round(normals * 2**16) / 2**16).reshape(M, N)


def choose_key_inputs(key, labels, num_per_class):
    """Rows of the training examples that the key inputs are."""
    rows = []
    for label in sorted({label for carrier in key.header["carriers"] for label in carrier["classes"]}):
        candidates = [row for row, each in enumerate(labels) if each == label]
        domain = ("key inputs", key.owner, 1, label, len(candidates), num_per_class)
        (order,) = permutations(key.seed, domain, 1, len(candidates))
        rows += [candidates[at] for at in order[:num_per_class]]
    return rows


# 10. Verdict


def refusing(judge):
    """Whatever somebody's files make of the judge is one error; only a file that cannot be opened is another."""

    @functools.wraps(judge)
    def judging(*args, **kwargs):
        try:
            return judge(*args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                "There is nothing to judge by. Expected files as docs/evidence-format.md specifies them. "
                f"Received: {type(error).__name__}: {error}"
            ) from error

    return judging


def log10_tail(num_matches, num_drawn, factor, num_values=2):
    ways = sum(math.comb(num_drawn, k) * (num_values - 1) ** (num_drawn - k) for k in range(num_matches, num_drawn + 1))
    p = min(fractions.Fraction(1), fractions.Fraction(ways * factor, num_values**num_drawn))
    return math.log10(p.numerator) - math.log10(p.denominator)


def factor_of(key, number):
    """For tests and seeds; `number` counts commitments up to the key's, 0 without a chain."""
    num_tests = 2 if key.header["carriers"] and "triggers" in key.header else 1
    return num_tests * (number * (number + 1) if number else 1)


def trigger_labels(key):
    """The labels of the key's triggers, derived again."""
    assert key.header["triggers"]["label_rule"] == "uniform", "only uniform labels are known here"
    num_drawn, num_classes = key.header["triggers"]["num_drawn"], key.header["triggers"]["num_classes"]
    numbers = key.arrays["trigger numbers"]
    # Before anything is derived: what a made-up key asks for.
    assert (
        num_drawn <= 64 * len(numbers) and (np.diff(numbers) > 0).all() and 0 <= numbers[0] <= numbers[-1] < num_drawn
    )
    domain = ("trigger labels", key.owner, 1, num_drawn, num_classes)
    return np.array(integers(key.seed, domain, num_drawn, num_classes))[numbers]


def trigger_inputs(key):
    """The inputs of the key's triggers by name, derived again; of noise and tokens alone."""
    family, num_drawn = key.header["triggers"]["family"], key.header["triggers"]["num_drawn"]
    numbers, bases, inputs = key.arrays["trigger numbers"], inputs_of(key.arrays, "trigger basis "), {}
    for name, array in inputs_of(key.arrays, "trigger ").items():
        basis = bases[name]
        # Before anything is derived, as above.
        assert basis.shape[1:] == array.shape[1:] and basis.dtype == array.dtype
        basis = basis[basis != 0] if family == "tokens" else basis.ravel()
        low, high = basis.min().item(), basis.max().item()
        assert family == "noise" or (array.dtype.kind in "iu" and 0 < low < high)
        domain, shape = ("trigger inputs", key.owner, 1, num_drawn, family, name), (num_drawn, *array.shape[1:])
        if array.dtype.kind == "f":
            uniforms = np.array([(word >> 11) * 2.0**-53 for word in words(key.seed, domain, math.prod(shape))])
            drawn = low + (high - low) * uniforms
        else:
            drawn = int(low) + np.array(integers(key.seed, domain, math.prod(shape), int(high) - int(low) + 1))
        inputs[name] = drawn.reshape(shape).astype(array.dtype)[numbers]
    return inputs


@refusing
def verify_answers(key_path, answers, number=0):
    """The number of right answers to all triggers, and log10 p; `number` counts commitments up to the key's, 0 without a chain.

    Of other families than noise and tokens it holds if the inputs were not picked to suit their labels.
    """
    key = read_key(key_path)
    labels, stated = trigger_labels(key), key.header["triggers"]
    assert np.array_equal(labels, key.arrays["trigger labels"]) and len(answers) == len(labels), "others than the key's"
    if stated["family"] in ("noise", "tokens"):
        held = inputs_of(key.arrays, "trigger ")
        assert all(np.array_equal(held[name], each) for name, each in trigger_inputs(key).items()), "other inputs"
    num_matches = int((np.asarray(answers) == labels).sum())
    return num_matches, log10_tail(num_matches, stated["num_drawn"], factor_of(key, number), stated["num_classes"])


def read_dump(path):
    """Carrier -> number of admissible outputs, and (path, call) -> class means."""
    arrays = arrays_of(pathlib.Path(path).read_bytes())
    header = json.loads(arrays.pop("header").tobytes())
    admissible = {each["carrier"]: each["num_admissible"] for each in header["carriers"]}
    means = {name: {} for name in admissible}
    for each in header["means"]:
        means[each["carrier"]][each["path"], each["call"]] = arrays[each["array"]]
    return admissible, means


@refusing
def verify(key_path, dump_path, folder=None, dated=False, search=False):
    """Carrier -> where it was read and which bits match; the number of both; log10 p; whether the claim is proved.

    `dated` is for whoever has seen that the statements' time-stamps hold and are older than the suspect.
    """
    key, (admissible, means) = read_key(key_path), read_dump(dump_path)
    assert key.header["decision"]["test"] == "hard", "only the hard test is known here"
    number, committed = opened(read_chain(folder), key) if folder is not None else (0, False)
    recorded = {name: (layer["path"], 0) for name, layer in key.layers.items()}
    here = all(place in means[name] and np.isfinite(means[name][place]).all() for name, place in recorded.items())
    alone = committed and dated and here and not search
    readings = {}
    for name, layer in key.layers.items():
        carrier = carrier_named(key, name)
        expected = len(carrier["classes"]), layer["num_units"]
        # Before anything is derived: what a made-up key asks for is then no more than what the dump holds.
        assert all(each.shape == expected for each in means[name].values()) and carrier["bits_per_class"] < expected[1]
        bits, A = signature(key, name), projection(key, name, layer["num_units"])
        places = (
            [recorded[name]] if alone else [place for place in means[name] if np.isfinite(means[name][place]).all()]
        )
        found = {place: (means[name][place] @ A > 0) == (bits == 1) for place in places}
        most = max(matches.sum() for matches in found.values())
        best = [place for place, matches in found.items() if matches.sum() == most]
        place = recorded[name] if recorded[name] in best else best[0]
        readings[name] = place, found[place]
    num_bits = sum(matches.size for _, matches in readings.values())
    num_matches = int(sum(matches.sum() for _, matches in readings.values()))
    factor = (1 if alone else math.prod(admissible.values())) * factor_of(key, number)
    log10_p = log10_tail(num_matches, num_bits, factor)
    alpha = key.header["decision"]["alpha_committed" if number and dated else "alpha"]
    return {
        "readings": readings,
        "num_bits": num_bits,
        "num_matches": num_matches,
        "factor": factor,
        "log10_p": log10_p,
        "marked": log10_p <= math.log10(alpha),
    }


if __name__ == "__main__":
    files = [each for each in sys.argv[1:] if each != "--dated"]
    found = verify(*files, dated="--dated" in sys.argv)
    print(f"{found['num_matches']} of {found['num_bits']} bits match, p = 10^{found['log10_p']:.2f}: ", end="")
    print("MARKED" if found["marked"] else "NOT MARKED")
