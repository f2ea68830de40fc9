"""WORKS: the worker half. What runs inside a worker, and the template process that forks workers."""

is_here = False  # this process is one of these; set once, by the first of its own code that runs there
makes_worker = False  # this template process forks just now, and its child is to be a worker; set by its one thread
