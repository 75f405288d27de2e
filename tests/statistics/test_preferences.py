import numpy as np
import pytest

from dro_jax.statistics import preferences


def naive_calibration_error(margins, weights):
  """Pair by pair, as Guo et al. write it."""
  bins = {}
  for margin, weight in zip(margins, weights):
    confidence = 1 / (1 + np.exp(-abs(margin)))
    right = 0.5 if margin == 0 else float(margin > 0)
    place = min(int((confidence - 0.5) / 0.05), 9)
    bins.setdefault(place, []).append((weight, right, confidence))
  total = sum(weights)
  error = 0.0
  for members in bins.values():
    w, right, confidence = np.array(members).T
    error += w.sum() / total * abs(w @ right / w.sum() - w @ confidence / w.sum())
  return error


def test_statistics_equal_their_definitions():
  rng = np.random.default_rng(0)
  margins, prompt_P, weights = rng.normal(size=40) * 2, rng.integers(0, 12, 40), rng.integers(0, 3, 12)
  margins[3] = 0.0
  found = {name: f(weights.astype(float)) for name, f in preferences.statistics(margins, prompt_P).items()}
  w = weights[prompt_P]
  chance = 1 / (1 + np.exp(-margins))
  assert found['pair_margin'] == pytest.approx(np.average(margins, weights=w))
  assert found['pair_accuracy'] == pytest.approx(
    np.average(np.where(margins == 0, 0.5, margins > 0), weights=w)
  )
  assert found['pair_brier'] == pytest.approx(np.average((1 - chance) ** 2, weights=w))
  kept = w > 0
  assert found['pair_calibration_error'] == pytest.approx(naive_calibration_error(margins[kept], w[kept]))
  assert tuple(found) == preferences.NAMES


def test_a_calibrated_model_has_little_error_and_an_overconfident_one_its_overconfidence():
  rng = np.random.default_rng(1)
  margins = np.abs(rng.normal(size=40_000) * 1.5)
  wins = rng.random(40_000) < 1 / (1 + np.exp(-margins))
  calibrated = np.where(wins, margins, -margins)
  weights = np.ones(40_000)
  assert preferences.calibration_error(calibrated, weights) < 0.01
  certain = preferences.calibration_error(10_000.0 * calibrated, weights)
  assert certain == pytest.approx(1 - wins.mean(), abs=1e-3)


def test_far_margins_do_not_overflow_and_no_pairs_have_no_statistics():
  statistics = preferences.statistics(np.array([5000.0, -5000.0]), np.array([0, 1]))
  assert {name: f(np.ones(2)) for name, f in statistics.items()} == {
    'pair_accuracy': 0.5, 'pair_margin': 0.0, 'pair_brier': 0.5, 'pair_calibration_error': 0.5,
  }  # fmt: skip
  assert all(np.isnan(f(np.zeros(2))) for f in statistics.values())
