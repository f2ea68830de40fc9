"""Kinds of workers: processes and threads, behind the Workforce protocol."""
