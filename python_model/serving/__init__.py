"""Two-tower serving, three ways: candidates from an index, a ranking feature in batches, sessions event by event.

`export` writes the one directory that all three need; `docs/serving.md` is the contract.
"""
