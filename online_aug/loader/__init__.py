"""The loader that mixes real, fresh and cached samples."""
