"""Generated images in a plain PyTorch loop: the lines with `# +` are all there is to it.

python examples/plain_pytorch.py [RECIPE] [KEY=VALUE ...]
"""

import timm
import torch
from _recipe import input_of, print_accuracy, recipe
from torch.nn.functional import cross_entropy

from online_aug import open_loader  # +


def main() -> None:
    """Train a classifier and print its accuracy."""
    config = recipe()
    with open_loader(config) as loader:  # +
        names = loader.dataset.images.class_names
        torch.manual_seed(config.run.seed)
        model = timm.create_model(config.classifier.name, num_classes=len(names))
        to_input = input_of(model)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.optim.weight_decay)
        steps = config.run.epochs * len(loader)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.optim.lr, steps)
        for epoch in range(config.run.epochs):
            model.train()
            for images, labels in loader:
                loss = cross_entropy(model(to_input(images)), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {loader.stats()}")
    print_accuracy(model, config)


if __name__ == "__main__":
    main()
