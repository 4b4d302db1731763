"""Execution of the update: paths, plans, and the arrays they work on. No formula."""
