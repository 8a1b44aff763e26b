"""Weights and programs for others: encoders loaded without a config, exports, the PyTorch twin."""
