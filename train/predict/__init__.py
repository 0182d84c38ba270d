"""A trained model as a function of images: `load("runs/vit-sample")`, and the program python -m train.predict."""

from train.predict.loading import load, run_predictor
from train.predict.predictor import Predictor, make_predictor

__all__ = ["Predictor", "load", "make_predictor", "run_predictor"]
