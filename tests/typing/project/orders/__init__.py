"""A program as its users write them: checked by mypy --strict and by pyright, and run."""
