"""The rows of the fault matrix, by subject."""
