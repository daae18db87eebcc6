"""Modelled figures of the CUDA kernels: python -m benchmarks.modelled emulates all cases and rewrites modelled.json."""
