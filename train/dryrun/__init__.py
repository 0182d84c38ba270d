"""Compiles the train step of a config for devices that need not exist here, and reports its memory and work."""
