"""The schema that every ratings data set shares: watched or not, and the rating itself."""

from polytask.schema import Schema, Task


def ratings_schema(lowest: float = 1, time: bool = True) -> Schema:
    """A ranking with a dot head (watch) and a regression on ``lowest``..5 (rating), from the two ids alone."""
    return Schema(
        user="user_id",
        item="item_id",
        time="timestamp" if time else None,
        tasks=(
            Task("watch", "ranking", head="dot", loss="bpr"),
            Task("rating", "regression", label="rating", range=(lowest, 5)),
        ),
    )
