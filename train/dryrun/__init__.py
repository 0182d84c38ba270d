"""Compiles the train step of a config without needing the devices, and reports its memory and work."""
