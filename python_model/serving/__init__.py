"""Two-tower serving, three ways: candidates from an index, a ranking feature in batches, sessions event by event.

`export` writes one directory that all three need and nothing else; `docs/serving.md` is the contract.
"""
