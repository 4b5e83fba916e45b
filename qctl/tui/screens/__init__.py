"""Screens above the views: the question before an act, what became of it, and messages that were looked at."""
