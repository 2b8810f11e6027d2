"""Trackers of experiments, such as TensorBoard and W&B, fed through accelerate's classes."""
