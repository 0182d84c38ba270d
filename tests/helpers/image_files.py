from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


SIZE = (5, 3)


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object) -> np.ndarray:
    """Writes an image with random pixels and returns the pixels; `size` is (h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(mode)
    pixels = RNG.integers(0, 256, (*size, channels), np.uint8)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode).save(path, **options)
    return pixels


def classes(place: Path, counts: dict[str, int], mode: str = "RGB") -> dict[bytes, str]:
    """Writes one folder of PNG images per class; returns a map from an image's bytes to its class."""
    return {
        save(place / name / f"{index}.png", mode).tobytes(): name
        for name, count in counts.items()
        for index in range(count)
    }
