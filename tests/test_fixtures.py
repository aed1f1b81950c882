"""Files that released versions wrote: every later version opens them and comes to the same numbers."""

import datetime
import json

import keras
import numpy as np
import pytest

import deepsigns_tf as ds
from deepsigns_tf.weights_digest import weights_digest
from tests.fixtures.make import FOLDER, make

evidence = pytest.importorskip("deepsigns_tf.evidence", reason="evidence needs `deepsigns_tf[evidence]`")

# The suspect is younger than all versions.
LATER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
VERSIONS = sorted(each.name for each in FOLDER.glob("[0-9]*"))


@pytest.fixture(scope="module", params=VERSIONS)
def folder(request):
    return FOLDER / request.param


def assert_same(found, recorded):
    """Every number, name and hash that was recorded; words may be chosen anew, and members added."""
    if isinstance(recorded, dict):
        for name in recorded.keys() - {"assumptions", "headline", "null"}:
            assert_same(found[name], recorded[name])
    elif isinstance(recorded, list):
        assert len(found) == len(recorded)
        for one, other in zip(found, recorded, strict=True):
            assert_same(one, other)
    elif isinstance(recorded, float):
        # Another release of TensorFlow may add up in another order; a bit that this decides is not in these files.
        assert found == pytest.approx(recorded, rel=1e-4, abs=1e-4)
    else:
        assert found == recorded


def test_this_version_has_its_files():
    assert ds.__version__ in VERSIONS
    with pytest.raises(FileExistsError):
        make(FOLDER / ds.__version__)


def test_key_statements_and_model_belong_together(folder):
    key, found = ds.OwnerKey.load(folder / "owner.key"), evidence.load_evidence(folder / "evidence")
    first, second = found.statements
    assert first.commitment == key.commitment()
    assert second.release.weights == weights_digest(keras.models.load_model(folder / "marked.keras"))
    assert found.opened_by(key).releases == ("1.0",)


def test_the_verdicts_are_those_that_were_recorded(folder):
    key = ds.OwnerKey.load(folder / "owner.key")
    found = evidence.load_evidence(folder / "evidence", (folder / "root.pem").read_bytes(), LATER)
    with ds.load_suspect(folder / "marked.keras") as suspect:
        verdicts = {
            "weights": ds.verify(suspect, key, evidence=found),
            "answers": ds.verify_predict_fn(suspect.predict, key, evidence=found),
        }
    for by, verdict in verdicts.items():
        assert verdict.marked
        assert_same(verdict.to_dict(), json.loads((folder / f"verdict_{by}.json").read_text()))


def test_the_files_are_small(folder):
    sizes = [each.stat().st_size for each in folder.rglob("*") if each.is_file()]
    assert np.sum(sizes) < 2**18
