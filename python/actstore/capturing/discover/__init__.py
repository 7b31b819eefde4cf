"""Finding the sites of a model, by a traced dry run."""
