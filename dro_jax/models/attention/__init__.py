"""Attention whose queries each read one span of every source of keys, in one softmax: four ways."""
