"""What a person reads: the console, charts and the HTML report."""
