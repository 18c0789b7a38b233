"""What each step does in its processes: `run(context, *arguments)` in a module of the step's name."""
