"""Launchers of runs: label-ratio sweeps and clusters. configs/ defines what runs."""
