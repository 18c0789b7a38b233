"""Writes events.csv and books.csv, the log of a made-up bookshop, for users who have no log of their own at hand.

Readers have favourite genres, read a series volume by volume, and return books that they do not like.
"""

from __future__ import annotations

import argparse
import csv
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path

GENRES = ("Crime", "Fantasy", "History", "Poetry", "Science", "Travel")
ADJECTIVES = ("Silent", "Hidden", "Golden", "Northern", "Last", "Burning", "Distant", "Broken")
NOUNS = ("Harbour", "Garden", "Empire", "Winter", "River", "Letter", "Mountain", "Island")
VOLUMES = 4


def books(dice: random.Random) -> list[dict[str, str]]:
    """Series of four volumes, eight in each genre."""
    names = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    dice.shuffle(names)
    out = []
    for number, series in enumerate(names[: 8 * len(GENRES)]):
        price = round(dice.uniform(4, 30), 2)
        for volume in range(1, VOLUMES + 1):
            sku = f"B-{number:02d}-{volume}"
            title = f"{series}, volume {volume}"
            out.append({"sku": sku, "title": title, "genre": GENRES[number % len(GENRES)], "price": f"{price:.2f}"})
    return out


def events(dice: random.Random, catalogue: list[dict[str, str]], readers: int, each: int) -> list[dict[str, str]]:
    """What `readers` people bought, about `each` books a reader, in the order of time."""
    out = []
    for number in range(readers):
        likes = dice.sample(GENRES, 2)
        device = dice.choice(("phone", "tablet", "desktop"))
        at = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=dice.randrange(60 * 24 * 60))
        book = dice.randrange(len(catalogue))
        for _ in range(dice.randint(each // 2, each * 3 // 2)):
            row = catalogue[book]
            returned = dice.random() < (0.05 if row["genre"] in likes else 0.4)
            out.append({"customer": f"reader-{number:03d}", "sku": row["sku"], "at": at.isoformat(), "device": device,
                        "returned": "yes" if returned else "no"})  # fmt: skip
            at += timedelta(minutes=dice.randrange(10, 60 * 24 * 6))
            if book % VOLUMES < VOLUMES - 1 and not returned and dice.random() < 0.8:
                book += 1
            else:
                wanted = dice.choice(likes) if dice.random() < 0.8 else dice.choice(GENRES)
                firsts = [place for place in range(0, len(catalogue), VOLUMES) if catalogue[place]["genre"] == wanted]
                book = dice.choice(firsts)
    return sorted(out, key=lambda row: row["at"])


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """The rows as CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--books-each", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    random_numbers = random.Random(0)
    shelf = books(random_numbers)
    write(given.out / "books.csv", shelf)
    write(given.out / "events.csv", events(random_numbers, shelf, given.readers, given.books_each))
