"""OSCD with Sentinel-1: urban change between two dates in 24 cities."""
