"""The code of each step's processes: `run(context, *arguments)` in a module of the step's name."""
