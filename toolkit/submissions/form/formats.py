"""Submission formats, a class each: what a sample's columns hold, whether its cells speak for it, what is wrong in them."""

from __future__ import annotations
