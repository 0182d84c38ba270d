"""A page in the browser to try a trained model: python -m train.demo RUN_OR_WEIGHTS."""
