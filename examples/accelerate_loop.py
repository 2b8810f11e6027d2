"""Generated images in a loop with Accelerate, which saves where the loader is.

python examples/accelerate_loop.py [RECIPE] [KEY=VALUE ...]
"""

import tempfile

import timm
import torch
from _recipe import input_of, print_accuracy, recipe
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from online_aug import open_loader


def main() -> None:
    """Train a classifier and print its accuracy."""
    config, accelerator = recipe(), Accelerator(cpu=True)
    with open_loader(config) as loader, tempfile.TemporaryDirectory() as folder:
        names = loader.dataset.images.class_names
        torch.manual_seed(config.run.seed)
        model = timm.create_model(config.classifier.name, num_classes=len(names))
        to_input = input_of(model)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.optim.weight_decay)
        steps = config.run.epochs * len(loader)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.optim.lr, steps)
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        for epoch in range(config.run.epochs):
            model.train()
            for batch in loader:
                images, labels = batch.to(accelerator.device)
                loss = cross_entropy(model(to_input(images)), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
            accelerator.save_state(folder)
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {loader.stats()}")
    print_accuracy(accelerator.unwrap_model(model), config)


if __name__ == "__main__":
    main()
