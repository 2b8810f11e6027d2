"""Training-time diffusion augmentation for image classifiers."""

__version__ = "0.1.0"
