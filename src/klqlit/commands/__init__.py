"""Commands that do not train: `judge`, `analyse` and `report`. Each is a module with `run(options)`."""
