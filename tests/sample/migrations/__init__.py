"""The tables of the sample rows."""
