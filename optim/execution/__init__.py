"""Who runs the update on which arrays: paths, plans, and what they work on. No formula."""
