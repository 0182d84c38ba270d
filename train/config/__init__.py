"""From the command line to a checked config: presets, options with their rules, help, and configs as JSON."""
