"""The presentation of results: lines of text, charts and images."""
