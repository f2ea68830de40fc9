"""What crosses between processes, as bytes: calls, results and exceptions."""
