"""Groups: what each unit contributes to forgetting and to retaining, and the role that follows."""

from curerec.groups.assign import assign, random_groups, rows_of_roles

__all__ = ["assign", "random_groups", "rows_of_roles"]
