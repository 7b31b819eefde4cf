"""How the commands present their results: lines of text, charts and images."""
