"""Rasters as files: opening, no-data, scale tags, band names, and reading onto a grid."""
