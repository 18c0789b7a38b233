"""`argus serve --http`: sessions over HTTP, requests of many users answered by one decode."""
