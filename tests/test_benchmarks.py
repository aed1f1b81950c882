"""The recorded measurements: what turns runs into rows, and rows into the README."""

import math

import numpy as np
import pytest

from deepsigns_tf.statistics import binomial_log10_tail

pytest.importorskip("tqdm", reason="the measurements are made in the environment of requirements.txt")

from benchmarks import calibration, overhead, tables  # noqa: E402


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


def test_calibration_reads_each_key_from_each_model(monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    activations = random.random((2, 1000, 512), np.float32)
    monkeypatch.setattr(calibration, "_shared", (activations, labels), raising=False)
    log10_p = calibration._log10_p_values(np.array([0, 1, 2]))
    assert log10_p.shape == (3, 2, 2) and (log10_p <= 0).all()
    # Each model for itself: alone it reads as among others.
    for model in range(2):
        monkeypatch.setattr(calibration, "_shared", (activations[model : model + 1], labels))
        np.testing.assert_array_equal(calibration._log10_p_values(np.array([0, 1, 2]))[:, 0], log10_p[:, model])
    assert (log10_p[:, 0] != log10_p[:, 1]).any() and len(np.unique(log10_p[:, :, 1])) > 3


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [overhead._interval(list(random.exponential(size=41))) for _ in range(400)]
    covered = np.mean([low <= np.log(2) <= high for low, high in intervals])
    # 95 %, a little more as ranks are whole numbers; three standard errors of 400 are 0.03.
    assert 0.92 < covered < 0.995


def test_overhead_adds_pairs_until_the_interval_is_narrow(monkeypatch):
    """Training that takes 1.1 times as long, on a clock with noise."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(overhead, "_timed", lambda train: (train() * random.normal(1, 0.05), train()))

    def plain():
        return 1.0

    def marked():
        return 1.1

    wall, cpu, plain_wall = overhead._pairs(plain, marked, half_width=0.005, min_pairs=40, max_pairs=100_000)
    assert len(wall) == len(cpu) == len(plain_wall) > 40
    assert overhead._half_width(wall) <= 0.005 < overhead._half_width(wall[: len(wall) // 2])
    assert np.median(wall) == pytest.approx(1.1, abs=0.01) and set(cpu) == {1.1}
    few, _, _ = overhead._pairs(plain, marked, half_width=0.005, min_pairs=20, max_pairs=20)
    assert len(few) == 20


@pytest.mark.parametrize("setting", overhead.SETTINGS[:3], ids=lambda setting: setting.name)
def test_overhead_marks_as_many_bits_as_it_says(setting):
    model = overhead._marked_model(setting)
    carried = [metric.regularizer.carrier.num_bits for metric in model.metrics]
    assert sum(carried) == setting.num_bits and len(carried) == setting.num_layers
