"""The generation process, which makes images while training runs, and the trainer's hold on it."""
