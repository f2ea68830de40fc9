"""DECIDES: the scheduler and what it needs. Pure: no thread, clock, descriptor, process id or pickle in here."""
