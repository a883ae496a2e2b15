"""Dead letters: what will not run again by itself, kept until a person decides."""
