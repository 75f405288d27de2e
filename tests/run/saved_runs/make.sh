#!/bin/sh
# How the runs of 9c2e7b0.tar.gz were made, by dro_jax at commit 9c2e7b0 on 8 CPU devices. Later versions must
# resume, load, compare and report on them, so do not make them anew. Runs in a folder with the archive's
# triplets.jsonl, thumbs.jsonl, tiny.gin and reward.py. Afterwards the TensorBoard events were removed, and in
# orbax's commit_success.txt the folder's name.
set -e
export JAX_PLATFORMS=cpu XLA_FLAGS='--xla_force_host_platform_device_count=8'
tiny='--set PROMPT_LENGTH=16 --set RESPONSE_LENGTH=16 --set BATCH=8 --set LOG_EVERY=1 --set KEEP_LAST=1
  --set WARMUP_STEPS=2 --set VALIDATION_FRACTION=0.25 --set KL_PROMPTS=2 --set SAMPLE_PROMPTS=1 --set CACHE_DIR=table'
train() { folder=$1; steps=$2; shift 2
  dro_jax train --model_dir="$folder" $tiny --set STEPS="$steps" --set EVAL_EVERY=4 --set CHECKPOINT_EVERY=4 "$@"
}
both() { # The run to go on with, and a straight run of its next steps, of which the numbers are kept.
  name=$1; shift
  train "$name" 4 "$@"
  train straight 8 "$@"
  mkdir -p expected; cp straight/metrics.jsonl "expected/$name.jsonl"; rm -r straight
}
train start 2 --triplets=triplets.jsonl --gin_file=tiny.gin --set ALGORITHM=sft
dro_jax cache_reference --init_from=start --triplets=triplets.jsonl --model_dir=store $tiny
both dro_v --init_from=start --triplets=triplets.jsonl --gin_file=references/cached.gin --set REFERENCE_STORE=store
both kto --init_from=start --triplets=thumbs.jsonl --set ALGORITHM=kto --columns response=completion,reward=label
both batch_value --init_from=start --triplets=triplets.jsonl --set VALUE_READOUT=batch
both tr_dpo --init_from=start --triplets=triplets.jsonl --set ALGORITHM=dpo --gin_file=references/soft.gin \
  --set TRUST_REGION_EVERY=3
both online --init_from=start --triplets=triplets.jsonl --set ALGORITHM=rloo_online --set REWARD=reward.py:vowels \
  --set SAMPLE_LENGTH=8 --set GROUP_SAMPLES=2
