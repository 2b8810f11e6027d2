"""Textual inversion and LoRA: how a diffusion model learns the classes of a training set."""
