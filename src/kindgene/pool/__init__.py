"""Pools: a model taken apart into files, and put together again for a deployment."""
