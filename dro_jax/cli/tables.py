"""The tables of commands and of plain flags."""

import pathlib
from typing import NamedTuple

from dro_jax import models

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Installed, the gin files are inside the package; in a checkout they are beside it.
_PLACES = (_PACKAGE / 'gin_configs', _PACKAGE.parent / 'gin_configs')
GIN_CONFIGS = next((place for place in _PLACES if place.is_dir()), _PLACES[0])


class Command(NamedTuple):
  """A command: the function that `dro_jax NAME` runs.

  configurables  other things that gin may bind: a MODULE's public names, or MODULE:NAME.
  bare           the flag that arguments without a flag belong to.
  usage          lines for its help.
  own            whether main.py runs it without gin.
  on_cpu         whether it must not look for an accelerator: a machine with libtpu may have no TPU.
  """

  module: str
  function: str
  summary: str
  configurables: tuple[str, ...] = ()
  bare: str | None = None
  usage: tuple[str, ...] = ()
  own: bool = False
  on_cpu: bool = False


_MODEL = (*models.CONFIGS, 'dro_jax.parallel.partitioning:MeshSpec')
_DATA = ('dro_jax.data.triplets:load_triplets',)
_TRAIN = (
  *_MODEL,
  *_DATA,
  'dro_jax.algorithms',
  'dro_jax.step.optimizers',
  'dro_jax.step.reference:Frozen',
  'dro_jax.step.reference:Cached',
  'dro_jax.step.reference:Soft',
  'dro_jax.step.reference:Hard',
  'dro_jax.step.reference:AdapterOff',
  'dro_jax.algorithms.next_token_kl:NextTokenKl',
  'dro_jax.models.lora:Lora',
  'dro_jax.data.batches.groups:UnitOptions',
  'dro_jax.run.sampling.rollouts:RolloutOptions',
  'dro_jax.run.sampling.rewards',
  'dro_jax.run.batches:RowOptions',
  'dro_jax.run.schedule:Schedule',
  'dro_jax.run.spec',
  'dro_jax.recipes.train:train',
)
COMMANDS = {
  'train': Command(
    'dro_jax.recipes.train',
    'train',
    'aligns a policy with (prompt, response, reward) triplets, or resumes a run',
    _TRAIN,
  ),
  'cache_reference': Command(
    'dro_jax.recipes.cache_reference',
    'cache_reference',
    'scores all responses under the reference policy once, for any run',
    _TRAIN,
  ),
  'fit_value': Command(
    'dro_jax.recipes.fit_value',
    'fit_value',
    'fits V(x) by cross-fitting, for algorithms that read a value',
    _TRAIN,
  ),
  'a_lol': Command(
    'dro_jax.recipes.a_lol',
    'a_lol_stages',
    'runs the stages of A-LoL: fits a value, keeps the responses above it, trains on them',
    (*_TRAIN, 'dro_jax.recipes.fit_value'),
  ),
  'preflight': Command(
    'dro_jax.preflight.preflight',
    'preflight',
    'checks whether a run fits a TPU slice, and estimates its speed, without a TPU',
    _TRAIN,
    on_cpu=True,
  ),
  'evaluate': Command(
    'dro_jax.evaluation.evaluate',
    'evaluate',
    'scores a triplet file: statistics, ranking accuracy, baselines',
    (*_MODEL, *_DATA),
  ),
  'inspect': Command(
    'dro_jax.inspection.inspect',
    'inspect_triplets',
    'describes a triplet file, lists the algorithms that can learn from it, and prints a train command',
    bare='triplets',
  ),
  'train_vocabulary': Command(
    'dro_jax.recipes.train_vocabulary',
    'train_vocabulary',
    'trains a SentencePiece model on the texts of triplets',
    bare='triplets',
  ),
  'build_table': Command(
    'dro_jax.recipes.build_table',
    'build_table',
    'tokenises triplets once for later runs, on this machine or with Apache Beam on many',
    bare='triplets',
  ),
  'export_split': Command(
    'dro_jax.evaluation.export_split',
    'export_split',
    'writes the train, validation and test parts of the triplets of a run',
    bare='model_dir',
  ),
  'generate': Command('dro_jax.evaluation.generate', 'generate', 'samples responses to prompts', _MODEL),
  'answers': Command(
    'dro_jax.evaluation.answers',
    'compare_answers',
    'compares files of answers: rewards, diversity, repetition, length, KL, with paired intervals',
    bare='answers',
  ),
  'score': Command(
    'dro_jax.recipes.score',
    'score',
    'rewards the answers of a file by a reward model, a function or a program',
    ('dro_jax.parallel.partitioning:MeshSpec',),
    bare='triplets',
  ),
  'judge': Command(
    'dro_jax.evaluation.judge.judge',
    'judge',
    'compares the answers of runs, checkpoints and files side by side, and says who wins how often',
    (
      'dro_jax.parallel.partitioning:MeshSpec',
      'dro_jax.run.sampling.decoding:Decoding',
      'dro_jax.evaluation.judge.endpoint:Endpoint',
    ),
    bare='sides',
  ),
  'arena': Command(
    'dro_jax.arena.arena',
    'arena',
    'compares algorithms on equal budgets, against each other and a known optimum',
    (
      *_MODEL,
      'dro_jax.arena.bandit.suite',
      'dro_jax.arena.exact.suite',
      'dro_jax.arena.exact.world:ExactSettings',
      'dro_jax.arena.text.suite',
      'dro_jax.arena.text.worlds',
      'dro_jax.arena.human.suite',
    ),
  ),
  'report': Command(
    'dro_jax.evaluation.report',
    'report',
    'compares runs: settings, curves, metrics with paired intervals',
    bare='runs',
  ),
  'import_checkpoint': Command(
    'dro_jax.checkpoints.import_checkpoint',
    'import_checkpoint',
    'converts a checkpoint of Hugging Face, GGUF or T5X into a folder for --init_from',
  ),
  'export_checkpoint': Command(
    'dro_jax.checkpoints.export_checkpoint', 'export_checkpoint', 'writes a policy for transformers or T5X'
  ),
  'check': Command(
    'dro_jax.evaluation.check',
    'check',
    'checks that a checkpoint scores and samples correctly: ρ = 0 against itself, five answers',
    ('dro_jax.parallel.partitioning:MeshSpec',),
  ),
  'make_world': Command(
    'dro_jax.recipes.make_world',
    'make_world',
    'writes demonstrations and prompts of a small world whose answers a program can check',
  ),
  'keep_answers': Command(
    'dro_jax.recipes.keep_answers',
    'keep_answers',
    'writes the answers of a file that can train: not blank, without NUL',
    bare='answers',
  ),
  'make_comparisons': Command(
    'dro_jax.recipes.make_comparisons',
    'make_comparisons',
    'pairs the answers to each prompt, and lets a reward with noise choose: comparisons for a reward model',
    bare='answers',
  ),
  'reproduce': Command(
    'dro_jax.recipes.reproduce.command',
    'reproduce',
    "runs a paper's experiment from data to judging, and makes its tables and figures",
    bare='reproduction',
    on_cpu=True,
  ),
  'configs': Command(
    'dro_jax.main',
    'main',
    'lists gin files; shows every setting, where it was set and what it means; compares configurations',
    bare='words',
    usage=(
      'configs list [FOLDER]                 the packaged gin files',
      'configs show COMMAND [flags]          the settings with which a command line would run',
      'configs show MODEL_DIR|FILE           the settings of a run or of a file',
      'configs diff A B                      the differences of runs, files or commands; can A resume as B?',
      '',
    ),
    own=True,
  ),
}


class Flag(NamedTuple):
  """A plain flag: the macro that it becomes.

  macro   the macro's name.
  help    its meaning.
  joined  several are one text, joined by commas.
  bare    its value is read as `--set` reads one: a number, a configurable's name, or else text.
  alone   its value where the flag has none.
  """

  macro: str
  help: str
  joined: bool = False
  bare: bool = False
  alone: str | None = None


FLAGS = {
  'model_dir': Flag('MODEL_DIR', "the run's folder: metrics, checkpoints, configuration"),
  'triplets': Flag('TRIPLETS', 'triplet files, or names of data sets, separated by commas', joined=True),
  'eval_triplets': Flag('EVAL_TRIPLETS', 'triplet files held out for validation', joined=True),
  'init_from': Flag('INIT_FROM', 'the checkpoint to start from: the folder of a run or of an import'),
  'columns': Flag('COLUMNS', 'names of the fields in your files: prompt=question,reward=thumbs', joined=True),
  'columns_from': Flag(
    'COLUMNS_FROM', 'folders written by fit_value, whose values join the data', joined=True
  ),
  'map_reward': Flag('MAP_REWARD', 'numbers for rewards that are words: up=1,down=0', joined=True),
  'reward': Flag(
    'REWARD',
    "a name, FILE.py:FUNCTION, a reward model's folder or command:PROGRAM; of score several: a=SPEC,b=SPEC",
    joined=True,
  ),
  'rewards': Flag(
    'REWARDS', 'weights of reward columns, whose sum is the reward: helpful=1,safe=0.5', joined=True
  ),
  'runs': Flag('RUNS', "runs' folders; `dro_jax report RUN ...` takes them without the flag", joined=True),
  'answers': Flag(
    'ANSWERS',
    'files of answers, each FILE or NAME=FILE; `dro_jax answers FILE ...` needs no flag',
    joined=True,
  ),
  'sides': Flag(
    'SIDES', 'who is compared; `dro_jax judge SIDE SIDE ...` takes them without the flag', joined=True
  ),
  'judge_prompt': Flag(
    'JUDGE_PROMPT', "the judge's instructions: helpfulness, safety, summary, or a file of your own"
  ),
  'words': Flag('WORDS', 'the arguments of `dro_jax configs`, which takes them without the flag'),
  'beam_options': Flag('BEAM_OPTIONS', "Apache Beam's own flags: '--runner=DataflowRunner --project=...'"),
  'output': Flag('OUTPUT', 'the file or folder to write'),
  'suite': Flag('SUITE', "the arena's suite: bandit, exact, text or human", bare=True),
  'algorithms': Flag('ALGORITHMS', 'the algorithms to compare, separated by commas', joined=True),
  'seeds': Flag('SEEDS', 'repetitions, numbered from 0', bare=True),
  'dry_run': Flag('DRY_RUN', 'tells what would run, and runs nothing', bare=True, alone='True'),
  'replay': Flag(
    'REPLAY', 're-runs up to a batch with a non-finite loss, MODEL_DIR/nonfinite/STEP, and reports the cause'
  ),
  'topology': Flag('TOPOLOGY', 'the slice to compile for: v5e:4x8, or 2xv5e:4x8 for two of them'),
  'sweep': Flag('SWEEP', 'tries every mesh that divides the slice', bare=True, alone='True'),
  'reproduction': Flag(
    'REPRODUCTION', 'what to reproduce; `dro_jax reproduce NAME` takes it without the flag: dro, copg, ...'
  ),
  'scale': Flag('SCALE', 'paper, small or smoke'),
  'jobs': Flag('JOBS', 'stages at once', bare=True),
  'launch': Flag('LAUNCH', "the launcher's job for stages that train, launch/jobs/NAME.py"),
  'widen': Flag('WIDEN', 'steps by which the grid of every algorithm is extended', bare=True, alone='1'),
}
