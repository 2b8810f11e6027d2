"""Generated images in Lightning: a DataModule opens the loader and closes it.

python examples/lightning_module.py [RECIPE] [KEY=VALUE ...]
"""

import lightning
import timm
import torch
from _recipe import input_of, print_accuracy, recipe
from torch.nn.functional import cross_entropy

from online_aug import Config, OnlineAugLoader, open_loader


class Augmented(lightning.LightningDataModule):
    """The batches of a recipe."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def setup(self, stage: str) -> None:
        self.loader = open_loader(self.config)

    def train_dataloader(self) -> OnlineAugLoader:
        return self.loader

    def teardown(self, stage: str) -> None:
        self.loader.close()


class Classifier(lightning.LightningModule):
    """A timm model; its head is made when the classes are known."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def configure_model(self) -> None:
        names = self.trainer.datamodule.loader.dataset.images.class_names
        self.model = timm.create_model(self.config.classifier.name, num_classes=len(names))
        self.to_input = input_of(self.model)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.model(self.to_input(images)), labels, label_smoothing=0.1)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.optim.lr, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


if __name__ == "__main__":
    config, own = recipe(), {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    lightning.seed_everything(config.run.seed)
    classifier = Classifier(config)
    lightning.Trainer(max_epochs=config.run.epochs, **own).fit(classifier, Augmented(config))
    print_accuracy(classifier.model, config)
