"""The old place of `dro_jax.data.sources.public`, for one release: importing it registers the data sets."""

import dro_jax.data.sources.public  # noqa: F401
