"""Studies: one question each, answered by one command, with a table, a figure and the numbers behind them."""
