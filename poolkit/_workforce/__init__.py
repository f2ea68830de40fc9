"""ACTS: the kinds of workers behind the Workforce protocol, and the supervisor that drives them."""
