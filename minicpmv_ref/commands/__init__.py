"""The commands, one file each: `options` adds what the command takes to its parser, `run` does the work."""
