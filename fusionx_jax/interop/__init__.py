"""Weights and programs for others: encoders loaded without a config, exports, the PyTorch twin."""

WEIGHTS_FILE = "encoder.safetensors"
"""Name of the weights in an export to safetensors."""
