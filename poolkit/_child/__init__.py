"""WORKS: the worker half. What runs inside a worker, and the template process that forks workers."""
