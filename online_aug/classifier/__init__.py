"""The classifier being trained."""
