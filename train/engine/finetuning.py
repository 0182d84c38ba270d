"""Completes the options of the presets finetune and probe by the weights, the dataset and the batch size."""

from collections.abc import Collection
from dataclasses import replace

from configs.base import Data
from configs.vit import Config
from train.data import abstract_source
from train.data.dataset_info import PUBLISHED, read_dataset_info
from train.process.errors import UserError

LEAST_STEPS = 100  # With few images, the epochs of the preset would be too few steps (docs/photos.md).


def completed(
    config: Config, default: Config, image_size: tuple[int, int] | None, given: Collection[str] = ()
) -> Config:
    """Returns a config of these presets with the values that the user left open. Other presets stay the same.

    - `num_classes` 0 becomes the number of classes of the dataset.
    - `config.data.image_size` None becomes `image_size`, the size of the images that the weights were trained on.
    - The learning rate of the preset is multiplied by the batch size / the batch size of the preset, unless
      --optim.learning-rate is in `given`, the options on the command line.
    - The preset's number of epochs becomes that of `LEAST_STEPS` if it is higher.

    Raises:
        UserError: if there are no weights, or the dataset is not found.
    """
    if default.model.num_classes:
        return config
    if config.init_from is None:
        raise UserError(
            "the presets finetune and probe need weights to start from. Add --init-from with a file, a folder or the "
            "name of a model on the Hugging Face hub"
        )
    model, data, optim, run = config.model, config.data, config.optim, config.run
    if model.num_classes == 0:
        model = model.clone(num_classes=_classes(data))
    data = replace(data, image_size=data.image_size or image_size)
    if "--optim.learning-rate" not in given:
        rate = optim.learning_rate * run.batch_size / default.run.batch_size
        optim = replace(optim, learning_rate=rate)
    if run.epochs is not None and run.epochs == default.run.epochs and "--run.epochs" not in given:
        images = len(abstract_source(data, data.train_split))
        run = replace(run, epochs=max(run.epochs, LEAST_STEPS * run.batch_size / images))
    return replace(config, model=model, data=data, optim=optim, run=run)


def _classes(data: Data) -> int:
    """Returns a dataset's number of classes. A dry run works before the dataset is prepared."""
    try:
        info = read_dataset_info(data.name, data.dir)
    except UserError:
        if data.name not in PUBLISHED:
            raise
        info = PUBLISHED[data.name]
    return len(info.label_names)
