"""Networks, in flax.linen: families of policies, and the value networks read beside them."""

# Each family's configuration, as the command line finds it without importing jax.
CONFIGS = (
  'dro_jax.models.t5.config:T5Config',
  'dro_jax.models.causal.config:CausalConfig',
  'dro_jax.models.t5gemma.config:T5GemmaConfig',
)
