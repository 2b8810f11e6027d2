"""Diffusion models on disk: loading, adapters, fingerprints."""
