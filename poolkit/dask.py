"""Pools on a Dask cluster."""
