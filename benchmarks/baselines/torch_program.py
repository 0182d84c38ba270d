"""Runs the PyTorch course's program for one task: one epoch of training, then the test set.

    python -m benchmarks.baselines.torch_program lstm|mha|vit|aae IMAGES.npz [--loader]

With `--loader`, images come from a Dataset and a DataLoader with two workers, like torchvision's MNIST with `ToTensor`.
Without it, all images are in one tensor in memory, and each batch is indexed from it. The program prints the test
accuracy, or the mean squared error of the AAE's reconstructions.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.baselines.torch_models import AAE, AttentionClassifier, LSTMClassifier, ViT
from benchmarks.baselines.torch_steps import AAEStep
from benchmarks.inputs import BATCH_SIZES


class Digits(Dataset):
    """Images [1, 28, 28] in [0, 1] and labels, one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return torch.from_numpy(self.images[index]).permute(2, 0, 1).float().div(255), int(self.labels[index])


def by_loader(images: np.ndarray, labels: np.ndarray, size: int, train: bool):
    """Returns the batches of one epoch from a DataLoader."""
    return DataLoader(Digits(images, labels), size, shuffle=train, drop_last=train, num_workers=2)


def from_memory(images: np.ndarray, labels: np.ndarray, size: int, train: bool):
    """Yields the batches of one epoch from one tensor."""
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), torch.from_numpy(labels).long()
    order = torch.randperm(len(y)) if train else torch.arange(len(y))
    for index in order.split(size):
        if not train or len(index) == size:
            yield x[index], y[index]


def prepared(task: str, x: torch.Tensor) -> torch.Tensor:
    """Converts images in [0, 1] to the input of the task's model."""
    if task == "lstm":
        return x.squeeze(1)
    if task == "aae":
        return 2 * F.interpolate(x, (32, 32), mode="bilinear") - 1
    return 2 * x.squeeze(1) - 1 if task == "mha" else 2 * x - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(BATCH_SIZES), help="task to train")
    parser.add_argument("images", help=".npz file with train_image, train_label, test_image and test_label")
    parser.add_argument("--loader", action="store_true", help="read images with a DataLoader instead of from memory")
    options = parser.parse_args()
    torch.manual_seed(0)
    task, size, batches = options.task, BATCH_SIZES[options.task], by_loader if options.loader else from_memory
    with np.load(options.images) as file:
        train, test = ((file[f"{split}_image"], file[f"{split}_label"]) for split in ("train", "test"))

    if task == "aae":
        model = AAE()
        step = AAEStep(model)
        for x, _ in batches(*train, size, True):
            step(prepared(task, x))
        model.eval()
        with torch.inference_mode():
            errors = [
                F.mse_loss(model.decoder(model.encoder(x)[0]), x.flatten(1), reduction="none").mean(1)
                for x in (prepared(task, x) for x, _ in batches(*test, 256, False))
            ]
        print(float(torch.cat(errors).mean()))
        return

    model: nn.Module = {"lstm": LSTMClassifier, "mha": AttentionClassifier, "vit": ViT}[task]()
    optimizer = (torch.optim.Adam if task == "lstm" else torch.optim.AdamW)(model.parameters(), lr=1e-3)
    for x, y in batches(*train, size, True):
        optimizer.zero_grad()
        F.cross_entropy(model(prepared(task, x)), y).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        right = [(model(prepared(task, x)).argmax(1) == y) for x, y in batches(*test, 256, False)]
    print(float(torch.cat(right).float().mean()))


if __name__ == "__main__":
    main()
