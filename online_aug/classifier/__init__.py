"""The classifier: timm model, optimizer and schedule, evaluation."""
