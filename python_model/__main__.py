"""`python -m python_model`: the argus command."""

from python_model.cli import main

if __name__ == "__main__":
    main()
