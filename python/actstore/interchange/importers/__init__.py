"""Reading the formats that can be imported, one file per format."""
