"""What is learned or asked: tasks by name, each with splits kept apart, batches, a metric and what chance reaches."""

from hasten.tasks.task import (
    SPLITS,
    Batch,
    Classification,
    LabelledExamples,
    NextToken,
    Split,
    Task,
    make,
    names,
    of_name,
    registered,
)

__all__ = [
    "SPLITS", "Batch", "Classification", "LabelledExamples", "NextToken", "Split", "Task", "make", "names", "of_name",
    "registered",
]  # fmt: skip
