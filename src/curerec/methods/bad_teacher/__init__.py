"""A competent and an incompetent teacher."""

from curerec.methods.bad_teacher.method import BadTeacherConfig, bad_teacher

__all__ = ["BadTeacherConfig", "bad_teacher"]
