"""Decoder-only models: Llama, Qwen, GPT-NeoX, GPT-2, Gemma, OLMo, SmolLM, by one network with switches."""
