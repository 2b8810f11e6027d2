"""Generated images in the Trainer of transformers.

python examples/hf_trainer.py [RECIPE] [KEY=VALUE ...]
"""

import tempfile

import timm
import torch
from _recipe import input_of, print_accuracy, recipe
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from online_aug import OnlineAugLoader, open_loader


class AugmentedTrainer(Trainer):
    """Trains on the batches of a loader."""

    def __init__(self, model: torch.nn.Module, args: TrainingArguments, loader: OnlineAugLoader):
        super().__init__(model, args)
        self.loader, self.to_input = loader, input_of(model)

    def get_train_dataloader(self) -> OnlineAugLoader:
        return self.loader

    def compute_loss(self, model, inputs, **_) -> torch.Tensor:
        images, labels = inputs
        return cross_entropy(model(self.to_input(images)), labels, label_smoothing=0.1)


def main() -> None:
    """Train a classifier and print its accuracy."""
    config = recipe()
    with open_loader(config) as loader, tempfile.TemporaryDirectory() as folder:
        names = loader.dataset.images.class_names
        torch.manual_seed(config.run.seed)
        model = timm.create_model(config.classifier.name, num_classes=len(names))
        arguments = TrainingArguments(
            folder,
            num_train_epochs=config.run.epochs,
            learning_rate=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=min(len(loader), 40),
            max_grad_norm=0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        AugmentedTrainer(model, arguments, loader).train()
        print(loader.stats())
    print_accuracy(model, config)


if __name__ == "__main__":
    main()
