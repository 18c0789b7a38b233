"""Pages that several users share: copied as rarely as can be, whoever is extended in one call."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_kernels import PagedCache
from tests.drawn_examples import examples
from tests.ops.test_paged_cache import MOST, PAGE, USERS, append, events, write


class PlainCache:
    """Users as lists of pages, a page the list of its events: two users share a page where they hold the same list."""

    def __init__(self, pages: int) -> None:
        self.pages, self.users = pages, [list[list[float]]() for _ in range(USERS)]

    def extend(self, users: list[int], values: list[list[float]]) -> bool:
        """Appends events, copying a page that others hold too; False, having changed nothing, where pages run out."""
        before = copy.deepcopy(self.users)
        for user, new in zip(users, values, strict=True):
            for number, value in enumerate(new):
                row = self.users[user]
                if not row or len(row[-1]) == PAGE:
                    row.append([])
                elif number == 0 and self.holders(row[-1]) > 1:
                    row[-1] = list(row[-1])
                row[-1].append(value)
        if self.held() <= self.pages:
            return True
        self.users = before
        return False

    def holders(self, page: list[float]) -> int:
        return sum(page is one for pages in self.users for one in pages)

    def held(self) -> int:
        return len({id(page) for pages in self.users for page in pages})

    def events(self, user: int) -> list[float]:
        return [value for page in self.users[user] for value in page]


@given(seed=st.integers(0, 2**31), pages=st.integers(2, 12))
@settings(max_examples=examples(60))
def test_sharers_that_are_extended_in_one_call_copy_as_few_pages_as_a_plain_model(seed: int, pages: int) -> None:
    """A page's last holder keeps it, whoever else is extended in the call; refused is what the model refuses."""
    draw = random.Random(seed)
    cache = PagedCache.allocate(USERS, MOST, 1, 2, page_size=PAGE, pages=pages)
    model = PlainCache(pages)
    for step in range(1, 25):
        user, *others = draw.sample(range(USERS), draw.randint(2, USERS))
        targets = [other for other in others if not model.users[other]]
        if draw.random() < 0.3 and model.users[user] and targets:
            cache.fork(user, targets)
            for target in targets:
                model.users[target] = list(model.users[user])
        elif draw.random() < 0.2:
            cache.evict([user])
            model.users[user] = []
        else:
            count = draw.randint(1, 4)
            chosen = [one for one in [user, *others] if len(model.events(one)) + count <= MOST]
            values = [[float(100 * step + 10 * one + event) for event in range(count)] for one in chosen]
            if model.extend(chosen, values):
                cache.extend(chosen, count)
                for one, new in zip(chosen, values, strict=True):
                    for event, value in enumerate(new, cache.lengths[one] - count):
                        place = int(cache.block_table[one, event // PAGE]), event % PAGE
                        cache.key_pages[place], cache.value_pages[place] = value, -value
                        cache.time_pages[place] = int(value)
            else:
                with pytest.raises(ValueError, match="pages are wanted"):
                    cache.extend(chosen, count)
        assert [events(cache, one) for one in range(USERS)] == [model.events(one) for one in range(USERS)]
        assert cache.free_pages == pages - model.held()


def test_all_sharers_of_a_page_are_extended_where_one_page_is_free() -> None:
    cache = PagedCache.allocate(3, 4, 1, 2, page_size=2, pages=3)
    append(cache, 0, 1.0)
    cache.fork(0, [1, 2])
    lengths = cache.extend([2, 0, 1])
    for user, length in zip((2, 0, 1), lengths.tolist(), strict=True):
        write(cache, user, length, 10.0 + user)
    assert [events(cache, user) for user in range(3)] == [[1, 10], [1, 11], [1, 12]] and cache.free_pages == 0


def test_an_offloaded_sharer_leaves_nothing_to_copy() -> None:
    """Two users share both pages: the other one is offloaded, and the first keeps its page."""
    cache = PagedCache.allocate(2, 4, 1, 2, page_size=2, pages=2, on_full="offload")
    for value in (1.0, 2.0, 3.0):
        append(cache, 0, value)
    cache.fork(0, [1])
    append(cache, 0, 4.0)
    assert events(cache, 0) == [1, 2, 3, 4] and cache.offloaded == {1: 3}
