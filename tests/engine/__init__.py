"""What shows that poolkit on many machines does what it promises; see each program's header."""
