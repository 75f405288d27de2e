"""The `train` command: one run, from triplets to an aligned policy."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from dro_jax.configs.effects import ELSEWHERE, PARTS, PLACE, RECORDS
from dro_jax.run import replay as replays
from dro_jax.run import train as training
from dro_jax.run.build import build
from dro_jax.run.folder import legacy
from dro_jax.run.folder.configs import Recorded
from dro_jax.run.hooks import make_hooks
from dro_jax.run.spec import RunSpec


def train(
  model_dir: Annotated[str, PLACE],
  spec: Annotated[RunSpec, PARTS],
  *,
  replay: Annotated[str | None, ELSEWHERE] = None,
  metrics: Annotated[str | Sequence[str] | None, RECORDS] = None,
  trackers: Annotated[str | Sequence[str] | None, RECORDS] = None,
  profile_steps: Annotated[str | Sequence[int] | None, RECORDS] = None,
  configs: Callable[[], Recorded] = Recorded,
) -> dict[str, Any]:
  """Trains a policy, or resumes the run in `model_dir`; returns its last metrics.

  Args:
    model_dir: the run's folder: metrics, events, checkpoints, configuration.
    spec: the run.
    replay: a batch whose loss was not finite, MODEL_DIR/nonfinite/STEP: re-runs the steps up to this batch
      from the newest checkpoint, reports its examples and the operation that makes its first NaN, and writes
      nothing.
    metrics: your own metrics, functions of held-out prompts, samples and rewards: FILE.py:NAME, separated by
      commas.
    trackers: services that get the metrics too: wandb, mlflow or FILE.py:NAME, separated by commas.
    profile_steps: the first and the last step that JAX's profiler records in MODEL_DIR/profile, as 10,20.
    configs: how the run is configured, saved with it.

  Raises:
    UsageError: settings or data cannot make a run, or another run has the folder.
    NotFinite: a loss is not finite.
    Failed: the disk is full, or otherwise not to be written.
    Stopped: SIGTERM came; the state is saved.
    Interrupted: Ctrl-C came, which is a KeyboardInterrupt; the state is saved.
  """
  folder = training.local_folder(model_dir)
  hooks = make_hooks(metrics, trackers, profile_steps)
  run = build(spec, legacy=legacy.read(folder))
  if replay is not None:
    return replays.replay(run, folder, replay, configs)
  return training.train(run, folder, configs, hooks)


__all__ = ['train']
