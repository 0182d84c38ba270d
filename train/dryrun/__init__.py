"""The train step of a config, compiled for devices that need not be there, and what it would ask of them."""
