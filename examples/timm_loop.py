"""Generated images with timm's model, optimizer, scheduler and loss.

python examples/timm_loop.py [RECIPE] [KEY=VALUE ...]
"""

import timm
import torch
from _recipe import input_of, print_accuracy, recipe
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from online_aug import open_loader


def main() -> None:
    """Train a classifier and print its accuracy."""
    config = recipe()
    with open_loader(config) as loader:
        names = loader.dataset.images.class_names
        torch.manual_seed(config.run.seed)
        model = timm.create_model(config.classifier.name, num_classes=len(names))
        to_input, loss_of = input_of(model), SoftTargetCrossEntropy()
        optimizer = create_optimizer_v2(
            model, opt="adamw", lr=config.optim.lr, weight_decay=config.optim.weight_decay
        )
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=config.run.epochs,
            warmup_epochs=min(1, config.run.epochs - 1),
            warmup_lr=config.optim.lr / 10,
            step_on_epochs=False,
            updates_per_epoch=len(loader),
        )
        updates = 0
        for epoch in range(epochs):
            model.train()
            for images, labels in loader:
                loss = loss_of(model(to_input(images)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                updates += 1
                scheduler.step_update(updates)
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {loader.stats()}")
    print_accuracy(model, config)


if __name__ == "__main__":
    main()
