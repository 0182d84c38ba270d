"""What is known of published datasets without having them. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """A dataset apart from its examples."""

    image_shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images; None where they differ."""
    label_names: list[str]
    """What each label is called."""
    splits: dict[str, int]
    """Examples in each split."""


def _numbers(count: int) -> list[str]:
    return [str(label) for label in range(count)]


PUBLISHED = {
    "mnist": Facts((28, 28, 1), _numbers(10), {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Facts(
        (28, 28, 1),
        [
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ],
        {"train": 60_000, "test": 10_000},
    ),
    "kmnist": Facts((28, 28, 1), _numbers(10), {"train": 60_000, "test": 10_000}),
    "cifar10": Facts((32, 32, 3), _numbers(10), {"train": 50_000, "test": 10_000}),
    "cifar100": Facts((32, 32, 3), _numbers(100), {"train": 50_000, "test": 10_000}),
    "svhn_cropped": Facts((32, 32, 3), _numbers(10), {"train": 73_257, "test": 26_032, "extra": 531_131}),
    "food101": Facts((None, None, 3), _numbers(101), {"train": 75_750, "validation": 25_250}),
    "oxford_flowers102": Facts((None, None, 3), _numbers(102), {"train": 1_020, "validation": 1_020, "test": 6_149}),
    "oxford_iiit_pet": Facts((None, None, 3), _numbers(37), {"train": 3_680, "test": 3_669}),
    "imagenet2012": Facts((None, None, 3), _numbers(1000), {"train": 1_281_167, "validation": 50_000}),
}
"""By TFDS's name; where the label names are not known, the labels are numbered."""
