"""STARTS: template processes, how they start, and the processes that they fork. Knows no pool and no scheduler."""
