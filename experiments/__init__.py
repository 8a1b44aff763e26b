"""Where runs are launched: sweeps and, later, clusters. What to run is in configs/."""
