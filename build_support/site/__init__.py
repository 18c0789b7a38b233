"""Makes the documentation site from the repository's documents: mkdocs calls hook.py, the pages stay where they are."""
