"""The recorded measurements: what turns runs into rows, and rows into the README."""

import math

import numpy as np
import pytest

from benchmarks import calibration, overhead, tables
from deepsigns_tf.statistics import binomial_log10_tail


def test_the_readme_shows_what_was_recorded():
    text = tables.README.read_text()
    assert tables.filled(text) == text
    assert text.count("<!-- table: ") == len(tables.TABLES)


def test_only_marked_places_are_filled():
    text = "a\n<!-- table: errors -->\nold\n<!-- end of table -->\nb"
    result = tables.filled(text)
    assert result.startswith("a\n<!-- table: errors -->\n| bits |") and result.endswith("<!-- end of table -->\nb")
    assert "old" not in result


def test_calibration_accepts_true_p_values_and_sees_false_ones():
    random = np.random.default_rng(0)
    tails = np.array([binomial_log10_tail(matches, 640) for matches in range(641)])
    matches = random.binomial(640, 0.5, size=(4000, 20))
    assert calibration._row("hard", 1e-2, tails[matches])["as_promised"]
    # One message reused over ten classes: the variance of the matches is ten times too large.
    reused = 10 * random.binomial(64, 0.5, size=(4000, 20))
    assert not calibration._row("hard", 1e-2, tails[reused])["as_promised"]
    assert not calibration._row("soft", 1e-2, tails[reused])["as_promised"]


def test_the_attained_size_is_the_largest_tail_below_the_level():
    row = calibration._row("hard", 1e-3, np.zeros((10, 20)))
    assert row["attained"] <= 1e-3
    assert any(math.isclose(row["attained"], 10 ** binomial_log10_tail(m, 640)) for m in range(641))


def test_calibration_reads_each_key_from_each_model():
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    calibration._shared = (random.random((2, 1000, 512), np.float32), labels)
    log10_p = calibration._log10_p_values(np.array([0, 1, 2]))
    assert log10_p.shape == (3, 2, 2)
    assert (log10_p <= 0).all() and len(np.unique(log10_p[:, :, 0])) > 1


def test_the_interval_of_the_median_holds_the_median():
    ratios = list(np.random.default_rng(0).normal(1.01, 0.01, 101))
    low, high = overhead._interval(ratios)
    assert low < np.median(ratios) < high


@pytest.mark.parametrize("setting", overhead.SETTINGS[:3], ids=lambda setting: setting.name)
def test_overhead_marks_as_many_bits_as_it_says(setting):
    model = overhead._marked_model(setting)
    carried = [metric.regularizer.carrier.num_bits for metric in model.metrics]
    assert sum(carried) == setting.num_bits and len(carried) == setting.num_layers
