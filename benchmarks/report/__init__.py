"""The presentation of the results: a table, figures and the report page."""
