"""Output for people: the console, charts and the HTML report."""
