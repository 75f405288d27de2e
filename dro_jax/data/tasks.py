"""The old place of `dro_jax.data.sources.seqio_tasks`, for one release."""

from dro_jax.data.sources.seqio_tasks import register, text_features

__all__ = ['register', 'text_features']
