"""Negated task vector."""

from curerec.methods.task_vector.method import TaskVectorConfig, task_vector

__all__ = ["TaskVectorConfig", "task_vector"]
