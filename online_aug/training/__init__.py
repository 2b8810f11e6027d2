"""The classifier: its timm model, its DeepSpeed engine, evaluation and checkpoints."""
